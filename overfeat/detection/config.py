"""The options of detection."""

from dataclasses import dataclass
from typing import Literal

from overfeat.options import fraction, non_negative, option


@dataclass(frozen=True)
class DetectionConfig:
    """How `detect` selects and merges boxes; the thresholds were chosen on validation images."""

    postprocess: Literal["merge", "nms"] = option(
        "merge", "merge boxes that match and sum their confidences; or non-maximum suppression (NMS)"
    )
    match_threshold: float = option(
        0.5, "merge boxes while the best match score is this or less", parse=non_negative, metavar="T"
    )
    nms_iou_threshold: float | None = option(
        None, "NMS drops boxes with a larger IoU with a box of their class that scores higher (default: 0.3 after "
        "merging, where 1 keeps all; 0.2 with --postprocess nms; 0.5 for DeepMultiBox)",
        parse=fraction, metavar="T", flags=("--nms-iou",),
    )  # fmt: skip
    score_threshold: float = option(0.3, "drop the boxes of positions that score less", parse=fraction, metavar="S")
