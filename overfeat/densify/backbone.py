"""The feature maps of a converted module at a node, as the feature layers of a net of one's own."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from overfeat.densify.features import feature_graph
from overfeat.densify.net import DensifiedNet
from overfeat.errors import ArgumentError, check_count, check_counts
from overfeat.models.architecture import Architecture
from overfeat.models.backbone import FeatureLayers
from overfeat.models.receptive_field import SlidingWindow, input_size

HIDDEN = (384,)
SHORT_SIDE = 1.15  # what training resizes an image's shorter side to, in windows
MAX_HEAD_WEIGHTS = 1 << 28  # of its first layer: 1 GiB in float32
PROBE_CELLS = 16  # along a side of the maps that give their scale


class Backbone(FeatureLayers):
    """The feature maps of a converted module at a node, as the feature layers of a net.

    `OverFeat(backbone.architecture, classes, backbone=backbone)` is a net on them, with new fully connected layers:
    classifiers, box regressors, detectors and DeepMultiBox train on it as on any other, with the backbone frozen
    (`backbone.requires_grad_(False)`) or fine-tuned. Maps are computed from whole images: padding adds zeros at their
    border alone. The weights are copies of the module's; batch normalisation keeps its statistics.

    Args:
        net: A converted module, see `densify`.
        node: A submodule's path, or a node of the exported graph.
        window: In pixels; the nearest that whole cells of the maps, pooled 2 x 2 if there are enough, have.
        hidden: Channels of the hidden fully connected layers.

    Attributes:
        architecture: Of a net on these features; its `window` is the one that it has.

    Raises:
        ArgumentError: For a net that is not a converted one, and a window smaller than that of a single cell or
            with too large a head.
        InputError: For a node that does not exist, or layers before it that whole images cannot share, such as a mean
            over the window.
    """

    def __init__(self, net: DensifiedNet, *, node: str, window: int, hidden: Sequence[int] = HIDDEN):
        if not isinstance(net, DensifiedNet):
            raise ArgumentError("net", f"must be a converted module, see densify; not {type(net).__name__}")
        check_count("window", window)
        check_counts("hidden", hidden)
        graph, weights = feature_graph(net, node)
        pool, kernel = _pool_and_kernel(graph.step, window, node, graph.channels * (*hidden, 1)[0])
        order = -1 if net.preparation.reverse else 1
        mean, std = net.preparation.mean[::order], net.preparation.std[::order]
        layers = FeatureLayers(graph, weights)
        scaled = graph.then("mul", 1 / _magnitude(layers, mean, std))
        super().__init__(scaled, weights)
        architecture = Architecture(
            f"{net.geometry.name} {node}", (), kernel, tuple(hidden), 0, mean, std, init_std=None, backbone=scaled,
            backbone_pool=pool,
        )  # fmt: skip
        self.architecture = replace(architecture, short_side=round(SHORT_SIDE * architecture.window))


def _pool_and_kernel(step: SlidingWindow, window: int, node: str, weights_per_cell: int) -> tuple[int, int]:
    """The last pooling and the kernel after it that come nearest to a window."""
    cell = input_size([step])
    cells = (window - cell) / step.stride + 1
    if round(cells) < 1:
        raise ArgumentError("window", f"must be at least {cell} px at {node}, not {window}")
    pool = 2 if cells >= 3 else 1
    kernel = max(1, round(cells / pool))
    if kernel**2 * weights_per_cell > MAX_HEAD_WEIGHTS:
        most = cell + step.stride * (pool * math.isqrt(MAX_HEAD_WEIGHTS // weights_per_cell) - 1)
        raise ArgumentError("window", f"must be at most {most} px at {node}, not {window}: the head would be too large")
    return pool, kernel


@torch.no_grad()
def _magnitude(layers: FeatureLayers, mean: Sequence[float], std: Sequence[float]) -> float:
    """The root mean square of the maps of random pixels; a head learns from maps where it is near 1."""
    side = input_size([layers.graph.step], PROBE_CELLS)
    pixels = 255 * torch.rand(1, len(mean), side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    shift, scale = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    normalised = ((pixels - shift) / scale).to(next(layers.parameters(), pixels).dtype)
    return max(1e-6, float(layers(normalised).square().mean().sqrt()))
