"""Detection: any number of objects in images of any size (section 5)."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from overfeat.dense.candidates import Candidates, check_regressor, collect_candidates
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.detections import Detections, clip_boxes, merge
from overfeat.dense.grid import Grid, grids
from overfeat.detection.config import DetectionConfig
from overfeat.detection.targets import expected_votes
from overfeat.errors import ArgumentError, InputError, check_fraction
from overfeat.models.geometry import Stride
from overfeat.models.net import Net, Regressor, as_image
from overfeat.ops.boxes import nms

NMS_IOU_THRESHOLDS = {"merge": 0.3, "nms": 0.2}  # of the merged boxes, of the candidates; chosen on validation images
BOX_AVERAGE = "counts"  # the paper's pairwise average weights the box merged last as much as all before it


def detect(
    net: Net, regressor: Regressor, image: Tensor, *, scales: Scales = None, flip: bool | None = None,
    stride: Stride | None = None, memory_limit: int = MEMORY_LIMIT, postprocess: str = DetectionConfig.postprocess,
    match_threshold: float = DetectionConfig.match_threshold, nms_iou_threshold: float | None = None,
    box_average: str = BOX_AVERAGE, score_threshold: float = DetectionConfig.score_threshold,
) -> Detections:  # fmt: skip
    """The objects in an image, best first (section 5).

    Args:
        net, regressor: A detector, which has a background class, and its regressor, see `load_regressor`; or a
            converted net and its `regressor`, with `net.background` set, or probabilities that need no background:
            sigmoids, and those of a module that gives probabilities.
        image: [C, H, W] or [1, C, H, W], float or uint8 in 0..255, RGB for a net of 3 channels.
        scales, flip, stride, memory_limit: See `DenseConfig`.
        postprocess: "merge": boxes that match merge and their confidences add up (section 4.3), `normalize_scores`
            gives the scores, then NMS; "nms": NMS alone.
        match_threshold, box_average: See `merge_boxes`.
        nms_iou_threshold: Largest IoU of two boxes of a class; None: 0.3 for "merge", 0.2 for "nms".
        score_threshold: Lowest score of a position whose box counts.

    Raises:
        InputError: For a softmax without background, and as `candidates`, `merge_boxes` and `nms` do.
    """
    _check_postprocess(postprocess, nms_iou_threshold)
    check_regressor(net, regressor)
    if not net.background and net.activation == "softmax":
        remedy = "set net.background = True if its last class is that; else use localize, or train a detector"
        raise InputError(f"the net has no background class; {remedy}")
    image = as_image(image, net.in_channels)
    own_grids = grids(net, (image.shape[1], image.shape[2]), DenseConfig(scales, flip, stride, memory_limit))
    boxes = collect_candidates(net, regressor, image, own_grids, memory_limit, score_threshold=score_threshold)
    return combine(
        boxes, own_grids, postprocess=postprocess, match_threshold=match_threshold,
        nms_iou_threshold=nms_iou_threshold, box_average=box_average,
    )  # fmt: skip


def combine(
    candidates: Candidates, grids: Sequence[Grid], *, postprocess: str = DetectionConfig.postprocess,
    match_threshold: float = DetectionConfig.match_threshold, match_metric: str = "normalised",
    nms_iou_threshold: float | None = None, box_average: str = BOX_AVERAGE,
) -> Detections:  # fmt: skip
    """Objects from the candidate boxes of all positions of these grids, best first; arguments as in `detect`."""
    _check_postprocess(postprocess, nms_iou_threshold)
    iou = NMS_IOU_THRESHOLDS[postprocess] if nms_iou_threshold is None else nms_iou_threshold
    if postprocess == "nms":
        kept = candidates[nms(candidates.boxes, candidates.scores, candidates.labels, iou_threshold=iou)]
        return Detections.from_boxes(clip_boxes(kept.boxes, grids[0].image), kept.labels, kept.scores)
    merged = merge(
        candidates, grids[0].image,
        match_threshold=match_threshold, match_metric=match_metric, box_average=box_average,
    )  # fmt: skip
    scores = normalize_scores(merged.confidence_sum, merged.boxes, grids)
    return replace(merged, scores=scores)[nms(merged.boxes, scores, merged.labels, iou_threshold=iou)]


def _check_postprocess(postprocess: str, nms_iou_threshold: float | None) -> None:
    if postprocess not in NMS_IOU_THRESHOLDS:
        raise ArgumentError("postprocess", f"must be one of {', '.join(NMS_IOU_THRESHOLDS)}, not {postprocess!r}")
    if nms_iou_threshold is not None:
        check_fraction("nms_iou_threshold", nms_iou_threshold)


def normalize_scores(confidence_sum: Tensor, boxes: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Accumulated confidences as scores in 0..1 that are comparable between images and object sizes.

    They are s / (s + e), e being how many windows of the grids are positive for an object there
    (`detection.targets.expected_votes`). 0.5 is an object to which all of these give full confidence and no other
    window any, whatever its size, the sizes of the image, the stride, and its distance from the border.
    confidence_sum: [n]; boxes: [n, 4] in pixels of the image; the result is [n].
    """
    return confidence_sum / (confidence_sum + expected_votes(boxes, grids))
