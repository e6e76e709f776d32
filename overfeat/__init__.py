"""Run a ConvNet over every place and every size of an image at once (OverFeat, Sermanet et al. 2013)."""

from overfeat.classification.predict import centre_crop, classify, ten_views
from overfeat.dense.candidates import Candidates, candidates
from overfeat.dense.detections import Detections
from overfeat.dense.evaluate import ScoreMap, score_maps
from overfeat.detection.predict import detect, normalize_scores
from overfeat.errors import InputError
from overfeat.localization.predict import localize
from overfeat.models.architecture import Architecture
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.checkpoint import load, load_multibox, load_regressor, save, save_multibox
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat, build
from overfeat.models.released import load_released
from overfeat.multibox.predict import classify_boxes, detect_multibox, propose
from overfeat.ops import Merged, backend, merge_boxes, offset_max_pool, skip_classifier, skip_classifier_scales
from overfeat.ops.boxes import iou, match_score, nms

__version__ = "0.1.0"

__all__ = [
    "Architecture",
    "BoxRegressor",
    "Candidates",
    "Detections",
    "InputError",
    "Merged",
    "MultiBox",
    "OverFeat",
    "ScoreMap",
    "backend",
    "build",
    "candidates",
    "centre_crop",
    "classify",
    "classify_boxes",
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
    "normalize_scores",
    "offset_max_pool",
    "propose",
    "save",
    "save_multibox",
    "score_maps",
    "skip_classifier",
    "skip_classifier_scales",
    "ten_views",
]
