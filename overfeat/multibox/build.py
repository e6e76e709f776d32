"""The nets that DeepMultiBox's training starts from."""

from pathlib import Path

from overfeat.data.annotated import Annotated
from overfeat.densify.initial_net import FOR_IMAGES, check_net_name, describe_start, new_net
from overfeat.errors import ArgumentError, InputError
from overfeat.models.architecture import ARCHITECTURES, MULTIBOX_ARCHITECTURES, Architecture
from overfeat.models.checkpoint import load_any
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat, build
from overfeat.models.transfer import copy_matching_weights, with_background
from overfeat.multibox.config import SAMPLES, BoxClassifierConfig, MultiBoxConfig
from overfeat.multibox.data import COVERAGE_BINS, SquareDataset
from overfeat.multibox.matching import fit_priors
from overfeat.training.config import BACKBONE, NetOptions

PRIOR_BOXES = 10_000  # training boxes that are clustered into priors


def build_multibox(
    data: Annotated, options: MultiBoxConfig, *, seed: int = 0, shipped: Path | None = None
) -> tuple[MultiBox, int, Path | None]:
    """The net that training starts from; how many of its layers have the weights of an initial net; that net's file.

    `seed` is of the priors' clusters and the squares that they come from, `shipped` the weights of a small net to start
    from by default. Raises InputError where weights cannot be read or options do not match.
    """
    init, source = _initial(options, shipped, len(data.class_names))
    earlier = source if isinstance(source, MultiBox) else None
    initial_net = source.net if isinstance(source, MultiBox) else source
    architecture = _architecture(options, earlier, initial_net)
    priors = None
    if options.priors and earlier and earlier.priors is not None and earlier.num_boxes == options.num_boxes:
        priors = earlier.priors
    elif options.priors:
        samples = options.samples_per_image or samples_for(len(data), len(COVERAGE_BINS))
        squares = SquareDataset(data, architecture.window, samples, flip=options.flip, seed=seed)
        priors = fit_priors(squares.ground_truth(PRIOR_BOXES), options.num_boxes, seed)
    model = MultiBox(architecture, options.num_boxes, data.class_names if options.per_class else None, priors)
    if initial_net is None:
        return model, 0, init
    net, frozen = model.net, options.frozen(architecture.backbone is not None)
    copied = copy_matching_weights(net.conv_layers, initial_net.conv_layers)
    net.conv_layers[: copied if frozen else 0].requires_grad_(False)
    if net.backbone is not None and initial_net.backbone is not None:
        net.backbone.load_state_dict(initial_net.backbone.state_dict())
        net.backbone.requires_grad_(not frozen)
        copied += 1
    if earlier and (earlier.num_boxes, earlier.class_names) == (model.num_boxes, model.class_names):
        copied += copy_matching_weights(net.fc_layers, initial_net.fc_layers)
    return model, copied, init


def build_box_classifier(
    data: Annotated, options: BoxClassifierConfig, *, shipped: Path | None = None
) -> tuple[OverFeat, Path | None]:
    """The classifier with a background class that training starts from, and the file of its initial weights."""
    init, net = _initial(options, shipped, len(data.class_names))
    if isinstance(net, MultiBox):
        raise InputError(f"{init}: predicts boxes and has no classes; start from a classifier or a detector")
    if net is None:
        net = build(options.net or "small", len(data.class_names))
    net = with_background(net, data.class_names)
    net.context, net.scale_factors = None, None
    net.feature_layers.requires_grad_(not options.frozen(net.backbone is not None))
    return net, init


def samples_for(images: int, multiple: int) -> int:
    """Samples per image for an epoch of SAMPLES, a multiple of a number."""
    return multiple * -(-SAMPLES // (multiple * images))


def _initial(options: NetOptions, shipped: Path | None, classes: int) -> tuple[Path | None, OverFeat | MultiBox | None]:
    """The file of the initial net, and the net; None for random weights."""
    check_net_name(options.net)
    if options.net == BACKBONE:
        return None, new_net(options, BACKBONE, classes, FOR_IMAGES)
    init = options.init
    if init is None and not options.from_scratch and options.net in (None, "small"):
        init = shipped
    if init is None and options.freeze_features:
        raise ArgumentError("freeze_features", "needs the weights of a trained net; give init")
    return init, load_any(init) if init else None


def _architecture(options: MultiBoxConfig, earlier: MultiBox | None, initial_net: OverFeat | None) -> Architecture:
    architecture = initial_net.architecture if initial_net else MULTIBOX_ARCHITECTURES[options.net or "small"]
    if not earlier and ARCHITECTURES.get(architecture.name) == architecture:
        architecture = MULTIBOX_ARCHITECTURES[architecture.name]
    if options.image_size or options.hidden is not None:
        try:
            return architecture.with_input_size(options.image_size or architecture.window, options.hidden)
        except ValueError as error:
            raise ArgumentError("image_size", f"{options.image_size} is too small: {error}") from error
    return architecture


def describe_multibox(
    data: Annotated, model: MultiBox, options: MultiBoxConfig, copied: int, init: Path | None
) -> list[str]:
    """Lines about the data, the net, its initial weights and the samples; arguments as of `build_multibox`."""
    architecture = model.net.architecture
    layers = len(model.net.conv_layers) + (model.net.backbone is not None) + len(model.net.fc_layers)
    groups = f" for each of {model.num_groups} classes" if options.per_class else ""
    samples = options.samples_per_image or samples_for(len(data), len(COVERAGE_BINS))
    return [
        f"data: {data.describe()}",
        f"net: {architecture.name}, input of {model.image_size} px, hidden layers {list(architecture.hidden)}, "
        f"{model.num_boxes} boxes{groups}",
        f"start: {copied} of {layers} layers have the weights of {init}"
        if init
        else f"start: {describe_start(model.net, init)}",
        f"samples: {samples} squares per image and epoch",
    ]
