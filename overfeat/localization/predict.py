"""Localization: boxes predicted at every place of every scale, merged so that they add up (section 4)."""

from collections.abc import Sequence

from torch import Tensor

from overfeat.dense.candidates import SHARE, THRESHOLD, TOP, candidates
from overfeat.dense.detections import Detections, guesses, merge
from overfeat.dense.scales import Scale
from overfeat.dense.tiling import MEMORY
from overfeat.models.architecture import Stride
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.overfeat import OverFeat


def localize(
    net: OverFeat,
    regressor: BoxRegressor,
    image: Tensor,
    scales: Sequence[Scale] | None = None,
    flip: bool | None = None,
    stride: Stride = "fine",
    top: int = TOP,
    threshold: float = THRESHOLD,
    match: str = "normalised",
    average: str = "pairwise",
    memory: int = MEMORY,
    share: float = SHARE,
) -> Detections:
    """Up to `top` guesses of a class and its box for an image, best first, as ILSVRC asks (section 4).

    The boxes that the regressor predicts at all places of all scales are merged class by class, and
    of each class the one with the largest accumulated score is its guess. net, regressor: of one
    file, see `load` and `load_regressor`. image: [3, H, W] or [1, 3, H, W], float or uint8, RGB in
    0..255. scales, flip, stride, memory: as in `classify`. threshold, match, average: see
    ops.merge_boxes. top, share: see `candidates`. Raises InputError as those do.
    """
    raw = candidates(net, regressor, image, scales, flip, stride, top, share, memory)
    return guesses(merge(raw, tuple(image.shape[-2:]), threshold, match, average), top)
