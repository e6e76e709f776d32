"""Features of windows: a net without its last layers."""

import copy
from dataclasses import replace

from overfeat.densify.embedding import embedding_net
from overfeat.densify.net import DensifiedNet
from overfeat.errors import ArgumentError, in_one_line
from overfeat.models.fc_layers import ConvList
from overfeat.models.net import Net
from overfeat.models.overfeat import OverFeat


def features_of(net: Net, layer: str | int | None, cells: int) -> Net:
    """A net that gives the features of every window as its outputs; its weights are shared.

    Args:
        net, layer, cells: As of `Prototypes`.
    """
    if isinstance(net, DensifiedNet):
        return embedding_net(net, layer, cells)  # type: ignore[arg-type]
    if isinstance(net, OverFeat):
        return _hidden_layers(net, layer)
    raise ArgumentError("net", f"must be a net of overfeat.build, load or densify, not {type(net).__name__}")


def _hidden_layers(net: OverFeat, layer: str | int | None) -> OverFeat:
    """A built-in net up to a hidden fully connected layer, without its ReLU."""
    layers, count = net.architecture.layers, len(net.architecture.hidden)
    hidden = {str(n): own.index for n, own in enumerate(layers) if own.kind == "full" and own.index < count}
    if not hidden:
        raise ArgumentError("net", "must have a hidden fully connected layer, whose outputs are the features")
    name = str(net.architecture.feature_layer if layer is None else layer)
    if name not in hidden:
        raise ArgumentError("layer", f"must be one of {', '.join(hidden)} in this net, not {in_one_line(layer)}")
    features = copy.copy(net)
    features._modules = dict(net._modules)
    features.architecture = replace(net.architecture, hidden=net.architecture.hidden[: hidden[name]])
    features.fc_layers = ConvList(net.fc_layers[: hidden[name] + 1])
    features.class_names = [f"feature {i}" for i in range(features.num_classes)]
    features.background, features.thresholds, features.activation = False, None, "none"
    return features
