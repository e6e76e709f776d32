"""The detections and objects of one image, matched class by class at one IoU and score threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from overfeat.metrics.average_precision import Boxes, match_class
from overfeat.ops.boxes import iou, scoring


@dataclass(frozen=True)
class ImageMatch:
    """How the n detections in an image match its m objects, with the matching of `operating_points`.

    Attributes:
        selected: bool [n], the detections with a score of the threshold or more.
        partners: int64 [n], the object that each detection matches, or -1.
        verdicts: int64 [n], 1 for a true positive, 0 for a false positive, -1 for a detection that is ignored.
        counted: bool [m], the objects that are not ignored.
        overlaps: float64 [n, m], IoUs.
    """

    selected: Tensor
    partners: Tensor
    verdicts: Tensor
    counted: Tensor
    overlaps: Tensor

    @property
    def false_positives(self) -> Tensor:
        """The selected detections without an object: bool [n]."""
        return self.selected & (self.verdicts == 0)

    @property
    def matched(self) -> Tensor:
        """The detected objects: bool [m]."""
        matched = torch.zeros_like(self.counted)
        matched[self.partners[self.selected & (self.verdicts == 1)]] = True
        return matched

    @property
    def missed(self) -> Tensor:
        """The objects that are not detected: bool [m]."""
        return self.counted & ~self.matched


def match_image(detected: Boxes, truth: Boxes, *, min_iou: float, min_score: float | Sequence[float]) -> ImageMatch:
    """Match the detections in one image; min_score: one number, or one for each class."""
    assert detected.scores is not None
    partners, verdicts = torch.full_like(detected.labels, -1), torch.zeros_like(detected.labels)
    counted = torch.ones_like(truth.labels, dtype=torch.bool)
    for k in torch.cat([detected.labels, truth.labels]).unique().tolist():
        mine, theirs = detected.labels == k, truth.labels == k
        of_class = match_class(detected, truth, k, "coco50", min_iou=min_iou)
        indices = torch.cat([theirs.nonzero()[:, 0], torch.tensor([-1])])  # -1 stays
        partners[mine] = indices[of_class.partners]
        verdicts[mine], counted[theirs] = of_class.verdicts, of_class.counted
    selected = scoring(detected.scores, detected.labels, min_score)
    overlaps = iou(detected.boxes.double(), truth.boxes.double())
    return ImageMatch(selected, partners, verdicts, counted, overlaps)
