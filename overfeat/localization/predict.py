"""Localization: boxes predicted at every position of every scale, merged, their confidences summed (section 4)."""

from collections.abc import Sequence

from overfeat.data.arrays import ImageLike, ValueRange
from overfeat.dense.candidates import collect_candidates
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.detections import Detections, best_per_class, merge
from overfeat.dense.grid import grids
from overfeat.dense.inputs import one_image
from overfeat.dense.source import Source
from overfeat.localization.config import LocalizationConfig
from overfeat.models.geometry import Stride
from overfeat.models.net import Net, Regressor
from overfeat.models.thresholds import check_match_threshold
from overfeat.models.wrappers import as_net, as_regressor


def localize(
    net: Net, regressor: Regressor, image: ImageLike, *, scales: Scales = None, flip: bool | None = None,
    stride: Stride | None = None, memory_limit: int = MEMORY_LIMIT, top_k: int = LocalizationConfig.top_k,
    relative_threshold: float = LocalizationConfig.relative_threshold,
    match_threshold: float | Sequence[float] | None = None, value_range: ValueRange | None = None,
) -> Detections:  # fmt: skip
    """Up to `top_k` predictions of a class and its box for an image, best first, as ILSVRC asks (section 4).

    The boxes that the regressor predicts at all positions of all scales are merged class by class, and of each class
    the one with the largest accumulated confidence is its prediction.

    Args:
        net: A classifier.
        regressor: Of the same file, see `load_regressor`; of a converted net `net.regressor`.
        image: A path, a PIL image, an array or a tensor, see `each_image`.
        scales, flip, stride, memory_limit: See `DenseConfig`.
        value_range: The values of black and white, see `to_pixels`; None: 0..255.
        top_k: Classes of each scale whose boxes are merged, and predictions at most.
        relative_threshold: Lowest score of a position whose box counts, as a fraction of the class's maximum.
        match_threshold: Largest match score at which boxes merge, see `merge_boxes`; one number or one for each class.
            None: 0.4.

    Raises:
        InputError: As `candidates` and `merge_boxes` do.
    """
    net, regressor = as_net(net), as_regressor(regressor)
    pixels = one_image(net, image, value_range)
    size = pixels.shape[1], pixels.shape[2]
    own_grids = grids(net, size, DenseConfig(scales, flip, stride, memory_limit))
    own_match = LocalizationConfig.match_threshold if match_threshold is None else match_threshold
    check_match_threshold(own_match, net.num_foreground_classes)
    boxes = collect_candidates(
        net, regressor, pixels, own_grids, memory_limit, top_k=top_k, relative_threshold=relative_threshold
    )
    predictions = best_per_class(merge(boxes, size, match_threshold=own_match), top_k)
    return predictions.with_source(Source.of(net, image, size, value_range))
