"""The thresholds of a detector, chosen on validation images at the end of its training."""

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from overfeat.data.annotated import Annotated
from overfeat.data.images import MAX_PIXELS
from overfeat.data.map_images import map_annotated
from overfeat.dense.candidates import Candidates, collect_candidates
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig
from overfeat.dense.detections import Detections
from overfeat.dense.grid import Grid, grids
from overfeat.dense.inputs import one_image
from overfeat.detection.config import MATCH_THRESHOLD, MIN_SCORE, SCORE_THRESHOLD
from overfeat.detection.predict import NMS_IOU_THRESHOLDS, combine
from overfeat.errors import ArgumentError, InputError
from overfeat.metrics.average_precision import Boxes, curve_of_matches, curves, ground_truth, match_class
from overfeat.metrics.operating_points import best_f1
from overfeat.models.geometry import Stride
from overfeat.models.net import Net, Regressor
from overfeat.models.thresholds import POSTPROCESSES, DetectionThresholds
from overfeat.ops.boxes import nms

SCORE_THRESHOLDS = (0.1, 0.2, 0.3, 0.5)
MATCH_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
NMS_THRESHOLDS = (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.7)
CLASS_THRESHOLDS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2)
MAX_CANDIDATES = 5_000  # in an image, so that a net that has not learned takes minutes at most
MAX_IMAGES = 60  # of the validation data
LEARNED = 0.01  # mean average precision below which there is nothing to choose
MIN_GAIN, MIN_CLASS_GAIN = 0.005, 0.02  # of average precision, for which a default is left: less was chance
MIN_SCORES, MIN_OBJECTS = (0.05, 0.95), 10  # the range of lowest scores; objects that a class needs for its own
Value = TypeVar("Value")
Figures = Tensor  # average precisions, float64 [3, classes]: of all images and of two halves; NaN without objects


@dataclass(frozen=True)
class _Image:
    candidates: Candidates
    grids: list[Grid]
    truth: Boxes

    def strong(self, score_threshold: float) -> Candidates:
        """The candidates with this score or more."""
        return self.candidates[self.candidates.scores >= score_threshold]


def choose_thresholds(
    net: Net, regressor: Regressor, data: Annotated, *, postprocess: str | None = None,
    stride: Stride | None = None, flip: bool | None = None,
    memory_limit: int = MEMORY_LIMIT, max_images: int | None = MAX_IMAGES, max_pixels: int = MAX_PIXELS,
    progress: bool = True,
) -> DetectionThresholds:  # fmt: skip
    """The thresholds of `detect` with the best average precision (VOC's, at an IoU of 0.5) on annotated images.

    In this order: the score of windows that count, the match score, a match score for each class, NMS within classes,
    NMS across classes. Another value than the default must gain MIN_GAIN in the mean, a match score of a class
    MIN_CLASS_GAIN in that class, and neither may lose on one of two halves of the images. The windows of each image are
    evaluated once. The same arguments give the same thresholds. Last, the lowest score of a detection of each class is
    that with the best F1 at this IoU, rounded down to two digits and within MIN_SCORES; of classes with fewer than
    MIN_OBJECTS objects it is that of all classes together.

    Args:
        net, regressor: A detector, as `detect` takes it; its own thresholds make no difference.
        data: Images other than those of the training, labelled by the net's class_names without the background.
        postprocess: Of `detect`; None: voting, or another if that gains MIN_GAIN.
        stride, flip, memory_limit: See `DenseConfig`.
        max_images: At most so many images, evenly spaced.
        max_pixels: Larger images are left out, as are those that cannot be read.
        progress: Show it on stderr, if that is a terminal.

    Returns:
        The thresholds, for `net.thresholds`; without any (all None) for a net that detects nothing yet.

    Raises:
        InputError: For other classes than the net's, and where no image with an object can be used.
    """
    if postprocess not in (None, *POSTPROCESSES):
        raise ArgumentError("postprocess", f"must be one of {', '.join(POSTPROCESSES)}, not {postprocess!r}")
    if data.class_names != net.class_names[: net.num_foreground_classes]:
        raise InputError("the boxes' classes are not the net's class_names; see data.annotated.align_boxes")
    dense = DenseConfig(None, flip, stride, memory_limit)

    def collect(image: Tensor) -> tuple[Candidates, list[Grid]]:
        image = one_image(net, image)
        own_grids = grids(net, (image.shape[1], image.shape[2]), dense)
        lowest = min(SCORE_THRESHOLDS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # at such low scores there may be many
            raw = collect_candidates(
                net, regressor, image, own_grids, memory_limit, score_threshold=lowest, max_candidates=MAX_CANDIDATES
            )
        return Candidates(*(values.cpu() for values in vars(raw).values())), own_grids

    limits = {"max_images": max_images, "max_pixels": max_pixels, "progress": progress}
    mapped = map_annotated(data.samples, collect, **limits)
    images = [_Image(raw, own_grids, ground_truth(sample)) for _, sample, (raw, own_grids) in mapped.results]
    search = _Search(images, len(data.class_names), progress)
    chosen = search.run(postprocess)
    return chosen if chosen.postprocess is None else replace(chosen, min_score=search.min_score(chosen))


class _Search:
    """The search over thresholds, on candidates that were collected once."""

    def __init__(self, images: Sequence[_Image], classes: int, progress: bool):
        self.images, self.classes, self.progress = images, classes, progress
        self.truths = [image.truth for image in images]

    def run(self, postprocess: str | None = None) -> DetectionThresholds:
        """The best thresholds for a post-processing, or for the best of all."""
        choices = POSTPROCESSES if postprocess is None else (postprocess,)
        lowest = self.merged(min(SCORE_THRESHOLDS), MATCH_THRESHOLD)
        if not _mean(self.figures(lowest, NMS_IOU_THRESHOLDS["merge"])[0]) >= LEARNED:
            return DetectionThresholds()
        best = {choice: self.merging() if choice == "merge" else self.other(choice) for choice in choices}
        return best[_best(choices, choices[0], lambda choice: best[choice][1], MIN_GAIN)][0]

    def merging(self) -> tuple[DetectionThresholds, Figures]:
        """The best thresholds of merging, and their figures."""
        nms_iou = NMS_IOU_THRESHOLDS["merge"]
        merged = cache(self.merged)
        figures = cache(lambda score, match: self.figures(merged(score, match), nms_iou))
        bar = self.bar(SCORE_THRESHOLDS, "merge")
        score = _best(bar, SCORE_THRESHOLD, lambda value: figures(value, MATCH_THRESHOLD), MIN_GAIN)
        bar = self.bar(MATCH_THRESHOLDS, "merge")
        match = _best(bar, MATCH_THRESHOLD, lambda value: figures(score, value), MIN_GAIN)
        of_match = {value: figures(score, value) for value in MATCH_THRESHOLDS}
        of_class = [self.class_match(label, match, of_match) for label in range(self.classes)]
        chosen = _per_class({value: merged(score, value) for value in set(of_class)}, of_class)
        nms_iou = _best(NMS_THRESHOLDS, nms_iou, lambda value: self.figures(chosen, value), MIN_GAIN)
        class_iou = _best(CLASS_THRESHOLDS, 1.0, lambda value: self.figures(chosen, nms_iou, value), MIN_GAIN)
        matches = of_class[0] if len(set(of_class)) == 1 else tuple(of_class)
        thresholds = DetectionThresholds(matches, nms_iou, class_iou, score, "merge")
        return thresholds, self.figures(chosen, nms_iou, class_iou)

    def other(self, postprocess: str) -> tuple[DetectionThresholds, Figures]:
        """The best thresholds of voting or NMS, and their figures."""

        @cache
        def figures(score: float, nms_iou: float, class_iou: float) -> Figures:
            options: dict[str, Any] = {"nms_iou_threshold": nms_iou, "class_iou_threshold": class_iou}
            return self.figures([
                combine(image.strong(score), image.grids, postprocess=postprocess, **options) for image in self.images
            ])  # fmt: skip

        nms_iou = NMS_IOU_THRESHOLDS[postprocess]
        bar = self.bar(SCORE_THRESHOLDS, postprocess)
        score = _best(bar, SCORE_THRESHOLD, lambda value: figures(value, nms_iou, 1.0), MIN_GAIN)
        nms_iou = _best(NMS_THRESHOLDS, nms_iou, lambda value: figures(score, value, 1.0), MIN_GAIN)
        class_iou = _best(CLASS_THRESHOLDS, 1.0, lambda value: figures(score, nms_iou, value), MIN_GAIN)
        chosen = DetectionThresholds(None, nms_iou, class_iou, score, postprocess)
        return chosen, figures(score, nms_iou, class_iou)

    def min_score(self, chosen: DetectionThresholds) -> float | tuple[float, ...]:
        """The lowest score of a detection with the other thresholds, one for each class unless all are equal."""
        score = chosen.score_threshold or 0.0
        options: dict[str, Any] = {key: getattr(chosen, key) for key in ("nms_iou_threshold", "class_iou_threshold")}
        if chosen.match_threshold is not None:
            options["match_threshold"] = chosen.match_threshold
        options["postprocess"] = chosen.postprocess or POSTPROCESSES[0]
        detections = [combine(image.strong(score), image.grids, **options) for image in self.images]
        boxes = [Boxes(one.boxes, one.labels, one.scores) for one in detections]
        of_classes = curves(boxes, self.truths, self.classes, "coco50")
        together = best_f1(of_classes)[1]
        own = [best_f1([curve])[1] if curve.objects >= MIN_OBJECTS else math.nan for curve in of_classes]
        scores = tuple(_rounded(together if math.isnan(value) else value) for value in own)
        return scores[0] if len(set(scores)) == 1 else scores

    def bar(self, values: Iterable[Value], postprocess: str) -> Iterable[Value]:
        """The values, with progress."""
        disable = None if self.progress else True
        return tqdm(values, f"thresholds ({postprocess})", leave=False, file=sys.stderr, disable=disable)

    @staticmethod
    def class_match(label: int, match: float, figures: dict[float, Figures]) -> float:
        """The match threshold of one class; figures: by match threshold."""
        return _best(MATCH_THRESHOLDS, match, lambda value: figures[value][:, [label]], MIN_CLASS_GAIN)

    def merged(self, score_threshold: float, match_threshold: float) -> list[Detections]:
        """The merged boxes of each image, before NMS."""
        options: dict[str, Any] = {"postprocess": "merge", "match_threshold": match_threshold, "nms_iou_threshold": 1.0}
        return [combine(image.strong(score_threshold), image.grids, **options) for image in self.images]

    def figures(self, boxes: Sequence[Detections], nms_iou: float = 1.0, class_iou: float = 1.0) -> Figures:
        """Average precisions after NMS."""
        limits = {"iou_threshold": nms_iou, "across_iou_threshold": class_iou}
        kept = [one[nms(one.boxes, one.scores, one.labels, **limits)] for one in boxes]
        detections = [Boxes(one.boxes, one.labels, one.scores) for one in kept]
        columns = []
        for label in range(self.classes):
            pairs = zip(detections, self.truths, strict=True)
            matches = [match_class(detected, truth, label, "voc") for detected, truth in pairs]
            parts = (matches, matches[::2], matches[1::2])
            columns.append([curve_of_matches(part, "voc").average for part in parts])
        return torch.tensor(columns, dtype=torch.float64).T


def _per_class(merged: dict[float, list[Detections]], of_class: Sequence[float]) -> list[Detections]:
    """The boxes of each class by its own match threshold, highest score first."""
    own, images = torch.tensor(of_class, dtype=torch.float64), []
    for number in range(len(next(iter(merged.values())))):
        parts = [every[number][own[every[number].labels] == value] for value, every in sorted(merged.items())]
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        boxes = Detections(*(torch.cat(values) for values in columns))
        by_class = boxes[boxes.labels.argsort(stable=True)]
        images.append(by_class[by_class.scores.argsort(descending=True, stable=True)])
    return images


def _best(values: Iterable[Value], default: Value, figures: Callable[[Value], Figures], min_gain: float) -> Value:
    """The value with the best mean average precision; the default where it gains less or loses on a half."""
    of_default = figures(default)
    gains = {value: [_mean(row) for row in figures(value) - of_default] for value in values}
    allowed = {value: gain for value, (gain, *halves) in gains.items() if gain >= min_gain and min(halves) >= 0}
    return max(allowed, key=lambda value: allowed[value]) if allowed else default


def _rounded(score: float) -> float:
    """A score threshold in two digits; the default for one that is not known."""
    lowest, highest = MIN_SCORES
    return MIN_SCORE if math.isnan(score) else min(max(math.floor(100 * score) / 100, lowest), highest)


def _mean(averages: Tensor) -> float:
    """The mean over the classes that have objects; 0 if none has."""
    return float(averages.nanmean().nan_to_num())
