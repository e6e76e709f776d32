"""The net that training starts from, by its options, and its initial weights in words."""

from pathlib import Path

from overfeat.densify.backbone import Backbone
from overfeat.densify.squeezenet import squeezenet
from overfeat.errors import ArgumentError, InputError
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.overfeat import OverFeat, build
from overfeat.training.config import BACKBONE, FeatureOptions

FOR_IMAGES, FOR_OBJECTS = ("fire9", 143), ("fire5", 55)  # node and window of nets on SqueezeNet


def new_net(options: FeatureOptions, default: str, classes: int, on_backbone: tuple[str, int]) -> OverFeat:
    """The net of the options, or of the default name, with random weights but for a backbone's.

    on_backbone: node and window of a net on SqueezeNet, where the options leave them open.
    """
    check_net_name(options.net)
    name = options.net or default
    if name != BACKBONE:
        if options.freeze_features:
            raise ArgumentError("freeze_features", "needs the weights of a trained net; give init")
        return build(name, classes)
    node, window = on_backbone
    backbone = Backbone(squeezenet(), node=options.node or node, window=options.window or window)
    return OverFeat(backbone.architecture, classes, backbone=backbone)


def check_net_name(name: str | None) -> None:
    """Raises InputError for a net that training does not know; None: the task's default."""
    names = (*ARCHITECTURES, BACKBONE)
    if name not in (None, *names):
        raise InputError(f"no net is called {name!r}; there are {', '.join(names)}")


def describe_start(net: OverFeat, init: Path | None) -> str:
    """The initial weights of a net in words."""
    if init is not None:
        return f"initial weights from {init}"
    if net.backbone is None:
        return "random initial weights"
    trained = any(weight.requires_grad for weight in net.backbone.parameters())
    return f"feature layers trained on ImageNet, {'fine-tuned' if trained else 'frozen'}"
