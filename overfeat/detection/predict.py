"""Detection: any number of objects in images of any size (section 5)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from overfeat.data.arrays import ImageLike, ValueRange
from overfeat.dense.candidates import Candidates, collect_candidates
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.detections import Detections, merge
from overfeat.dense.grid import Grid, grids
from overfeat.dense.inputs import one_image
from overfeat.dense.source import Source
from overfeat.detection.config import MATCH_THRESHOLD, MAX_CANDIDATES, MIN_SCORE, SCORE_THRESHOLD
from overfeat.detection.targets import expected_votes, typical_votes
from overfeat.errors import ArgumentError, InputError, check_choice, check_count, check_fraction
from overfeat.models.geometry import Stride
from overfeat.models.net import Net, Regressor
from overfeat.models.thresholds import POSTPROCESSES, DetectionThresholds, check_match_threshold, check_min_score
from overfeat.models.wrappers import as_net, as_regressor
from overfeat.ops.boxes import nms, scoring
from overfeat.ops.merge_boxes import BOX_AVERAGES
from overfeat.ops.vote_boxes import averages, support
from overfeat.regions import region

NMS_IOU_THRESHOLDS = {"vote": 0.35, "merge": 0.3, "nms": 0.2}  # by post-processing, chosen on validation images
VOTE_IOU = 0.4  # from which on boxes support each other
BOX_AVERAGE = "counts"  # the paper's pairwise average weights the box merged last as much as all before it
Value = TypeVar("Value")


def detect(
    net: Net, regressor: Regressor, image: ImageLike, *, scales: Scales = None, flip: bool | None = None,
    stride: Stride | None = None, memory_limit: int = MEMORY_LIMIT, postprocess: str | None = None,
    match_threshold: float | Sequence[float] | None = None, nms_iou_threshold: float | None = None,
    class_iou_threshold: float | None = None, box_average: str = BOX_AVERAGE, score_threshold: float | None = None,
    max_candidates: int | None = MAX_CANDIDATES, min_score: float | Sequence[float] | None = None,
    value_range: ValueRange | None = None,
) -> Detections:  # fmt: skip
    """The objects in an image, best first (section 5).

    Boxes are clipped to the image, and those outside it left out. Thresholds that are None are the net's own,
    `net.thresholds`, where it has them.

    Args:
        net, regressor: A detector, which has a background class, and its regressor, see `load_regressor`; or a
            converted net and its `regressor`, with `net.background` set, or probabilities that need no background:
            sigmoids, and those of a module that gives probabilities.
        image: A path, a PIL image, an array or a tensor, see `each_image`; or an image that is read in windows, see
            `large.detect_large`, whose boxes are in pixels of its finest level.
        scales, flip, stride, memory_limit: See `DenseConfig`.
        value_range: The values of black and white, see `to_pixels`; None: 0..255.
        postprocess: "merge": boxes that match merge and their confidences add up (section 4.3), `normalize_scores`
            gives the scores, then NMS; "vote": a box's confidence is that of the boxes around it, weighted by their
            overlap (`ops.vote_boxes.support`), then NMS, and each box left becomes their average; "nms": NMS alone.
            None: the net's own, else "vote".
        match_threshold: See `merge_boxes`; one number or one for each class. None: the net's own, else 0.5.
        nms_iou_threshold: Largest IoU of two boxes of a class; None: the net's own, else 0.3 for "merge",
            0.35 for "vote", 0.2 for "nms".
        class_iou_threshold: Largest IoU of two boxes of different classes; None: the net's own, else 1, which keeps
            all.
        box_average: See `merge_boxes`.
        score_threshold: Lowest score of a position whose box counts; None: the net's own, else 0.3.
        max_candidates: Of more such boxes only the best are used, with a warning; None: all, whatever their number.
        min_score: Lowest score of a detection; one number or one for each class. None: the net's own, else 0.3. Average
            precision needs all: 0.

    Raises:
        InputError: For a softmax without background, and as `candidates`, `merge_boxes` and `nms` do.
    """
    net, regressor = as_net(net), as_regressor(regressor)
    rule = detection_rule(
        net, regressor, postprocess=postprocess, match_threshold=match_threshold, nms_iou_threshold=nms_iou_threshold,
        class_iou_threshold=class_iou_threshold, box_average=box_average, score_threshold=score_threshold,
        max_candidates=max_candidates, min_score=min_score,
    )  # fmt: skip
    pixels = one_image(net, image, value_range)
    size = pixels.shape[1], pixels.shape[2]
    own_grids = grids(net, size, DenseConfig(scales, flip, stride, memory_limit))
    boxes = collect_candidates(
        net, regressor, pixels, own_grids, memory_limit, max_candidates=max_candidates,
        score_threshold=rule.score_threshold,
    )  # fmt: skip
    return apply_rule(boxes, own_grids, rule).with_source(Source.of(net, image, size, value_range))


@dataclass(frozen=True)
class DetectionRule:
    """How `detect` selects and merges boxes: its arguments, with what the net or the defaults give for None."""

    postprocess: str
    match_threshold: float | Sequence[float]
    nms_iou_threshold: float
    class_iou_threshold: float
    box_average: str
    score_threshold: float
    max_candidates: int | None
    min_score: float | Sequence[float]


def detection_rule(
    net: Net, regressor: Regressor, *, postprocess: str | None = None,
    match_threshold: float | Sequence[float] | None = None, nms_iou_threshold: float | None = None,
    class_iou_threshold: float | None = None, box_average: str = BOX_AVERAGE, score_threshold: float | None = None,
    max_candidates: int | None = MAX_CANDIDATES, min_score: float | Sequence[float] | None = None,
) -> DetectionRule:  # fmt: skip
    """The rule of these arguments of `detect`, which raises what `detect` raises for them."""
    postprocess = choose_postprocess(net, postprocess, match_threshold)
    _check_postprocess(postprocess, nms_iou_threshold, class_iou_threshold)
    own, lowest = _thresholds_for(net, postprocess), lowest_score(net, min_score, postprocess)
    regressor.check_made_for(net)
    if not net.background and net.activation == "softmax":
        remedy = "set net.background = True if its last class is that; else use localize, or train a detector"
        raise InputError(f"the net has no background class; {remedy}")
    own_match = MATCH_THRESHOLD if own.match_threshold is None else own.match_threshold
    matching = own_match if match_threshold is None else match_threshold
    check_match_threshold(matching, net.num_foreground_classes)
    check_choice("box_average", box_average, BOX_AVERAGES)
    lowest_position = _first(score_threshold, own.score_threshold, SCORE_THRESHOLD)
    check_fraction("score_threshold", lowest_position)
    if max_candidates is not None:
        check_count("max_candidates", max_candidates)
    return DetectionRule(
        postprocess=postprocess, match_threshold=matching, box_average=box_average, max_candidates=max_candidates,
        min_score=lowest, score_threshold=lowest_position,
        nms_iou_threshold=_first(nms_iou_threshold, own.nms_iou_threshold, NMS_IOU_THRESHOLDS[postprocess]),
        class_iou_threshold=_first(class_iou_threshold, own.class_iou_threshold, 1.0),
    )  # fmt: skip


def choose_postprocess(
    net: Net, postprocess: str | None = None, match_threshold: float | Sequence[float] | None = None
) -> str:
    """The post-processing that `detect` uses with these arguments: a match threshold is for merging.

    Raises ArgumentError where both are given and do not go together.
    """
    if match_threshold is None:
        own = None if net.thresholds is None else net.thresholds.postprocess
        return _first(postprocess, own, POSTPROCESSES[0])
    if postprocess is not None:
        check_choice("postprocess", postprocess, NMS_IOU_THRESHOLDS)
    if postprocess not in (None, "merge"):
        raise ArgumentError("match_threshold", f"does not apply to postprocess {postprocess}, but to merge")
    return "merge"


def _thresholds_for(net: Net, postprocess: str) -> DetectionThresholds:
    """The net's own thresholds if they are for this post-processing, else none."""
    own = net.thresholds or DetectionThresholds()
    return own if postprocess == (own.postprocess or POSTPROCESSES[0]) else DetectionThresholds()


def lowest_score(
    net: Net, min_score: float | Sequence[float] | None = None, postprocess: str | None = None
) -> float | Sequence[float]:
    """The lowest score of a detection, one number or one for each class, as `detect` uses these arguments.

    The net's own is for its own post-processing alone.
    """
    if min_score is None:
        min_score = _thresholds_for(net, choose_postprocess(net, postprocess)).min_score
    check_min_score(min_score, net.num_foreground_classes)
    return MIN_SCORE if min_score is None else min_score


def _first(*values: Value | None) -> Value:
    """The first that is not None."""
    return next(value for value in values if value is not None)


def apply_rule(candidates: Candidates, grids: Sequence[Grid], rule: DetectionRule) -> Detections:
    """`combine` by a rule, and without the objects that score less than its minimum."""
    detections = combine(
        candidates, grids, postprocess=rule.postprocess, match_threshold=rule.match_threshold,
        nms_iou_threshold=rule.nms_iou_threshold, class_iou_threshold=rule.class_iou_threshold,
        box_average=rule.box_average,
    )  # fmt: skip
    return detections[scoring(detections.scores, detections.labels, rule.min_score)]


def combine(
    candidates: Candidates, grids: Sequence[Grid], *, postprocess: str = POSTPROCESSES[0],
    match_threshold: float | Sequence[float] = MATCH_THRESHOLD, match_metric: str = "normalised",
    nms_iou_threshold: float | None = None, class_iou_threshold: float = 1.0, box_average: str = BOX_AVERAGE,
) -> Detections:  # fmt: skip
    """Objects from the candidate boxes of all positions of these grids, best first; arguments as in `detect`."""
    _check_postprocess(postprocess, nms_iou_threshold, class_iou_threshold)
    own_limit = NMS_IOU_THRESHOLDS[postprocess] if nms_iou_threshold is None else nms_iou_threshold
    limits = {"iou_threshold": own_limit, "across_iou_threshold": class_iou_threshold}
    if postprocess == "nms":
        kept = candidates[nms(candidates.boxes, candidates.scores, candidates.labels, **limits)]
        return Detections.from_boxes(kept.boxes, kept.labels, kept.scores).clip(grids[0].image)
    if postprocess == "vote":
        return _vote(candidates, grids, limits)
    merged = merge(
        candidates, grids[0].image,
        match_threshold=match_threshold, match_metric=match_metric, box_average=box_average,
    )  # fmt: skip
    scores = normalize_scores(merged.confidence_sum, merged.boxes, grids)
    return replace(merged, scores=scores)[nms(merged.boxes, scores, merged.labels, **limits)]


def _vote(candidates: Candidates, grids: Sequence[Grid], limits: dict[str, float]) -> Detections:
    """Keep the boxes that most others support, as the average of these; squares let confident boxes count more."""
    boxes, scores, labels = candidates.boxes, candidates.scores**2, candidates.labels
    with region("merge"):
        sums = support(boxes, scores, labels, min_iou=VOTE_IOU)
        ranks = sums / (sums + typical_votes(grids))
        kept = nms(boxes, ranks, labels, **limits)
        means, counts, max_score = averages(boxes, scores, labels, chosen=kept, min_iou=VOTE_IOU)
    detections = Detections(means, labels[kept], ranks[kept], counts, sums[kept], max_score.sqrt())
    return detections.clip(grids[0].image)


def _check_postprocess(postprocess: str, nms_iou_threshold: float | None, class_iou_threshold: float | None) -> None:
    check_choice("postprocess", postprocess, NMS_IOU_THRESHOLDS)
    for name, value in (("nms_iou_threshold", nms_iou_threshold), ("class_iou_threshold", class_iou_threshold)):
        if value is not None:
            check_fraction(name, value)


def normalize_scores(confidence_sum: Tensor, boxes: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Accumulated confidences as scores in 0..1 that are comparable between images and object sizes.

    They are s / (s + e), e being the geometric mean of how many windows of the grids are positive for an object there
    (`detection.targets.expected_votes`) and for any object away from the border (`typical_votes`): the first alone
    favours sizes at which few scales have positive windows, the second objects away from the border. Where both are
    equal, 0.5 is an object to which all of these windows give full confidence and no other any.

    Args:
        confidence_sum: [n].
        boxes: [n, 4], in pixels of the image.
        grids: Of all scales.

    Returns:
        [n].
    """
    given = confidence_sum, boxes
    if not all(isinstance(value, Tensor) for value in given):
        types = " and ".join(type(value).__name__ for value in given)
        raise TypeError(f"confidence_sum and boxes must be tensors [n] and [n, 4], not {types}")
    if boxes.dim() != 2 or boxes.shape[1] != 4 or confidence_sum.shape != boxes.shape[:1]:
        shapes = f"{tuple(confidence_sum.shape)} and {tuple(boxes.shape)}"
        raise ValueError(f"confidence_sum and boxes must be [n] and [n, 4], not {shapes}")
    if not isinstance(grids, Sequence) or not grids or not all(isinstance(grid, Grid) for grid in grids):
        raise TypeError("grids must be at least one Grid, see dense.grid.grids")
    return confidence_sum / (confidence_sum + (expected_votes(boxes, grids) * typical_votes(grids)).sqrt())
