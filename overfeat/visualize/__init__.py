"""Pictures of results: PNG files, written atomically. Needs matplotlib (the `demo` extra)."""

from overfeat.visualize.boxes import comparison, detections, localization
from overfeat.visualize.curves import multibox, precision_recall, stage_times
from overfeat.visualize.explanation import explanation
from overfeat.visualize.figures import check_picture, figure_class
from overfeat.visualize.mistakes import check_mistakes, mistakes
from overfeat.visualize.overview import overview
from overfeat.visualize.scores import classification, heat_maps

__all__ = [
    "check_mistakes", "check_picture", "classification", "comparison", "detections", "explanation", "figure_class",
    "heat_maps", "localization", "mistakes", "multibox", "overview", "precision_recall", "stage_times",
]  # fmt: skip
