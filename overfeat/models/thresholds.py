"""The thresholds that a detector was given on validation images; they travel with its weights."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real

from overfeat.errors import ArgumentError, check_choice, check_fraction
from overfeat.models.metadata import entries, parse, real

POSTPROCESSES = ("vote", "merge", "nms")  # of `detect`; the first is the default


@dataclass(frozen=True)
class DetectionThresholds:
    """What `detect` uses where its caller names no thresholds; None: its own defaults.

    `detection.calibrate.choose_thresholds` chooses them on validation images, `save` and `load` keep them.

    Attributes:
        match_threshold: Boxes merge while their match score is at most this; one number, or one for each class.
        nms_iou_threshold: Largest IoU of two boxes of a class, after merging where they merge.
        class_iou_threshold: Largest IoU of two boxes of different classes; 1 keeps all.
        score_threshold: Lowest score of a position whose box counts.
        postprocess: Of `detect`; match_threshold, nms_iou_threshold and min_score are for it.
        min_score: Lowest score of a detection; one number, or one for each class.
    """

    match_threshold: float | tuple[float, ...] | None = None
    nms_iou_threshold: float | None = None
    class_iou_threshold: float | None = None
    score_threshold: float | None = None
    postprocess: str | None = None
    min_score: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_match_threshold(self.match_threshold)
        check_min_score(self.min_score)
        if self.postprocess is not None:
            check_choice("postprocess", self.postprocess, POSTPROCESSES)
        for name in ("nms_iou_threshold", "class_iou_threshold", "score_threshold"):
            value = getattr(self, name)
            if value is not None:
                check_fraction(name, value)

    def __str__(self) -> str:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in given.items()) or "the defaults"

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, num_classes: int) -> "DetectionThresholds | None":
        """The thresholds of a net of so many classes with boxes; ValueError for invalid ones."""
        values = parse(text)
        if values is None:
            return None
        values = entries(values, "thresholds", (), [field.name for field in fields(cls)])
        postprocess = values.pop("postprocess", None)
        numbers = {key: _read_numbers(value, key) for key, value in values.items()}
        thresholds = cls(**numbers, postprocess=postprocess)  # type: ignore[arg-type]
        check_match_threshold(thresholds.match_threshold, num_classes)
        check_min_score(thresholds.min_score, num_classes)
        return thresholds


def _read_numbers(value: object, what: str) -> float | tuple[float, ...] | None:
    """A number or None from a file, or numbers of classes."""
    if isinstance(value, list):
        return tuple(real(number, what) for number in value)
    return None if value is None else real(value, what)


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_match_threshold(value: float | Sequence[float] | None, num_classes: int | None = None) -> None:
    """Raises ArgumentError unless it is None, a number from 0 up, or one for each class (None: for any number)."""
    if value is None:
        return
    numbers = value if isinstance(value, Sequence) else [value]
    if not numbers or not all(isinstance(number, Real) and 0 <= number <= sys.float_info.max for number in numbers):
        raise ArgumentError("match_threshold", f"must be a number, 0 or more, or one for each class, not {value!r}")
    _check_count("match_threshold", value, num_classes)


def check_min_score(value: float | Sequence[float] | None, num_classes: int | None = None) -> None:
    """Raises ArgumentError unless it is None, a number from 0 to 1, or one for each class (None: for any number)."""
    if value is None:
        return
    for number in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        check_fraction("min_score", number)
    _check_count("min_score", value, num_classes)


def _check_count(name: str, value: float | Sequence[float], num_classes: int | None) -> None:
    """Raises ArgumentError for several numbers that are not one for each class."""
    if isinstance(value, Sequence) and (not value or num_classes not in (None, len(value))):
        count = "" if num_classes is None else f" or {num_classes}"
        raise ArgumentError(name, f"must be one number{count}, one for each class, not {value}")
