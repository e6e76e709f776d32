"""How far a converted net whose padding sees the image is from the module itself, on images of the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.evaluate import grid_scores
from overfeat.dense.grid import grids
from overfeat.dense.inputs import Images, each_image
from overfeat.densify.net import DensifiedNet
from overfeat.errors import InputError
from overfeat.models.geometry import Stride
from overfeat.models.net import as_batch
from overfeat.models.wrappers import unwrap


@dataclass(frozen=True)
class BorderComparison:
    """How much the scores of the same windows differ between the borders "neighbours" and "exact".

    Attributes:
        agreement: Fraction of the windows that have the same best class; of one class, the same side of 0.5.
        total_variation: Mean over the windows of the total variation distance between their scores, from 0 to 1.
        windows: How many were compared.
    """

    agreement: float
    total_variation: float
    windows: int

    def __str__(self) -> str:
        agreement = f"same best class in {100 * self.agreement:.1f} % of {self.windows:,} windows"
        return f"{agreement}, mean total variation {self.total_variation:.3f}"


def compare_borders(
    net: DensifiedNet, images: Images, *, scales: Scales = None, stride: Stride | None = None,
    memory_limit: int = MEMORY_LIMIT, value_range: ValueRange | None = None,
) -> BorderComparison:  # fmt: skip
    """Compare the scores with borders="neighbours" with the exact ones, in every window of the images.

    Args:
        net: From `densify`, with any borders; without padding both are the same.
        images: As in `classify`.
        scales, stride, memory_limit: See `DenseConfig`; mirror images are not evaluated.
        value_range: The values of black and white, see `to_pixels`; None: 0..255.

    Raises:
        InputError: For a net that `densify` did not make, no images, sizes below the window, or too little memory.
    """
    net = unwrap(net)
    if not isinstance(net, DensifiedNet):
        raise InputError(
            "compare_borders needs a converted net, from overfeat.densify; padding of others sees the image"
        )
    nets = net.with_borders("exact"), net.with_borders("neighbours")
    config = DenseConfig(scales, False, stride, memory_limit)
    results = []
    for image in each_image([net], images, value_range):
        batch = as_batch(image, net.in_channels)
        for grid in grids(net, (batch.shape[2], batch.shape[3]), config):  # one scale at a time: maps can be large
            exact, neighbours = (grid_scores(each, batch, [grid], memory_limit)[0] for each in nets)
            results.append(_compare(exact, neighbours))
    if not results:
        raise InputError("compare_borders needs at least one image")
    return combine(results)


def combine(results: Sequence[BorderComparison]) -> BorderComparison:
    """The comparison of all windows of several."""
    windows = sum(result.windows for result in results)
    agreement = sum(result.agreement * result.windows for result in results) / windows
    return BorderComparison(agreement, sum(r.total_variation * r.windows for r in results) / windows, windows)


def _compare(exact: Tensor, neighbours: Tensor) -> BorderComparison:
    """Of scores [N, classes, h, w] of the same windows."""
    difference = (exact - neighbours).abs().sum(dim=1).double()
    variation = difference / 2 if exact.shape[1] > 1 else difference
    agreeing = (_best(exact) == _best(neighbours)).double()
    return BorderComparison(float(agreeing.mean()), float(variation.mean()), agreeing.numel())


def _best(scores: Tensor) -> Tensor:
    """The best class of every window, of scores [N, classes, h, w]; of one class, whether it is above 0.5."""
    return scores.argmax(dim=1) if scores.shape[1] > 1 else scores[:, 0] > 0.5
