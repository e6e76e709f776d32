"""The options of DeepMultiBox."""

from dataclasses import dataclass
from typing import Literal

from overfeat.options import fraction, option, positive


@dataclass(frozen=True)
class ProposalConfig:
    """How `propose` and `detect_multibox` select boxes (section 4.2.2)."""

    crops: Literal["both", "centre"] = option(
        "both", "evaluate the square in the middle of the image (centre), or 3 x 3 smaller squares as well"
    )
    max_detections: int = option(10, "highest-confidence boxes to keep", parse=positive, metavar="N")
    nms_iou_threshold: float = option(
        0.5, "NMS drops boxes with a larger IoU with a higher-confidence box", parse=fraction, metavar="T",
        flags=("--nms-iou",),
    )  # fmt: skip
