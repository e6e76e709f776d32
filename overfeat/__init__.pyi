"""The public names of the library; `__init__.py` imports them at their first use."""

__all__ = [
    "Architecture", "Backbone", "BorderComparison", "BoxRegressor", "Candidates", "DensifiedNet", "DetectionThresholds",
    "Detections", "InputError", "Merged", "MultiBox", "OverFeat", "Prototypes", "ScoreMap", "ScoreMaps", "SixScales",
    "backend", "build", "candidates", "centre_crop", "classify", "classify_boxes", "cluster", "compare_borders",
    "densify", "detect", "detect_multibox", "iou", "load", "load_multibox", "load_regressor", "load_released",
    "localize", "match_score", "merge_boxes", "nms", "normalize_scores", "offset_max_pool", "ops", "propose", "save",
    "save_multibox", "score_maps", "skip_classifier", "skip_classifier_scales", "squeezenet", "ten_views",
]  # fmt: skip
__version__: str

from . import cluster as cluster
from . import ops as ops
from .classification.predict import centre_crop as centre_crop
from .classification.predict import classify as classify
from .classification.predict import ten_views as ten_views
from .dense.candidates import Candidates as Candidates
from .dense.candidates import candidates as candidates
from .dense.compare import BorderComparison as BorderComparison
from .dense.compare import compare_borders as compare_borders
from .dense.config import SixScales as SixScales
from .dense.detections import Detections as Detections
from .dense.maps import ScoreMap as ScoreMap
from .dense.maps import ScoreMaps as ScoreMaps
from .densify.backbone import Backbone as Backbone
from .densify.convert import densify as densify
from .densify.net import DensifiedNet as DensifiedNet
from .densify.squeezenet import squeezenet as squeezenet
from .detection.predict import normalize_scores as normalize_scores
from .errors import InputError as InputError
from .large.detect import detect as detect
from .large.score_maps import score_maps as score_maps
from .localization.predict import localize as localize
from .models.architecture import Architecture as Architecture
from .models.box_regressor import BoxRegressor as BoxRegressor
from .models.checkpoint import load as load
from .models.checkpoint import load_multibox as load_multibox
from .models.checkpoint import load_regressor as load_regressor
from .models.checkpoint import save as save
from .models.checkpoint import save_multibox as save_multibox
from .models.multibox import MultiBox as MultiBox
from .models.overfeat import OverFeat as OverFeat
from .models.overfeat import build as build
from .models.released import load_released as load_released
from .models.thresholds import DetectionThresholds as DetectionThresholds
from .multibox.predict import classify_boxes as classify_boxes
from .multibox.predict import detect_multibox as detect_multibox
from .multibox.predict import propose as propose
from .ops import Merged as Merged
from .ops import backend as backend
from .ops import merge_boxes as merge_boxes
from .ops import offset_max_pool as offset_max_pool
from .ops import skip_classifier as skip_classifier
from .ops import skip_classifier_scales as skip_classifier_scales
from .ops.boxes import iou as iou
from .ops.boxes import match_score as match_score
from .ops.boxes import nms as nms
from .prototypes.predict import Prototypes as Prototypes
