"""Run a ConvNet over every place and every size of an image at once (OverFeat, Sermanet et al. 2013)."""

from overfeat.architectures import Architecture
from overfeat.boxes import iou, match_score, nms
from overfeat.classify import centre_crop, classify, ten_views
from overfeat.dense import ScoreMap, score_maps
from overfeat.detect import comparable, detect
from overfeat.files import InputError
from overfeat.heads import MultiBox, Regressor
from overfeat.localize import Candidates, Detections, candidates, localize
from overfeat.multibox import classify_boxes, detect_multibox, propose
from overfeat.nets import OverFeat, build
from overfeat.ops import Merged, backend, merge_boxes, offset_max_pool, skip_classifier, skip_classifier_scales
from overfeat.weights import load, load_multibox, load_regressor, load_released, save, save_multibox

__version__ = "0.1.0"

__all__ = [
    "Architecture",
    "Candidates",
    "Detections",
    "InputError",
    "Merged",
    "MultiBox",
    "OverFeat",
    "Regressor",
    "ScoreMap",
    "backend",
    "build",
    "candidates",
    "centre_crop",
    "classify",
    "classify_boxes",
    "comparable",
    "detect",
    "detect_multibox",
    "iou",
    "load",
    "load_multibox",
    "load_regressor",
    "load_released",
    "localize",
    "match_score",
    "merge_boxes",
    "nms",
    "offset_max_pool",
    "propose",
    "save",
    "save_multibox",
    "score_maps",
    "skip_classifier",
    "skip_classifier_scales",
    "ten_views",
]
