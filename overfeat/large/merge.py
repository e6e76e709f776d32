"""Merging the candidates of a large image by a sweep over its rows, to the result of all of them together.

Boxes that can change one another's fate are in one component. A component whose boxes all end above every box that has
not been read is complete: it is merged, and its candidates are freed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from overfeat.dense.candidates import Candidates
from overfeat.dense.detections import Detections, merge
from overfeat.dense.grid import Grid
from overfeat.detection.predict import VOTE_IOU, DetectionRule, apply_rule, normalize_scores
from overfeat.files import atomic_write
from overfeat.large.blocks import read_metadata
from overfeat.ops.backends import eager_boxes, numba_modules
from overfeat.ops.boxes import nms, scoring

HELD = 100_000  # candidates, about, up to which more are read before the complete ones are merged
SLACK = 0.01  # pixels that merged boxes may exceed those that they are made of; more than rounding can add


def save_candidates(path: Path, candidates: Candidates, numbers: Tensor, damaged: Sequence[str] = ()) -> None:
    """Write the candidates of a block, and the messages of its damaged tiles, atomically.

    numbers: int64 [T], of each among all candidates of the image, see `group_candidates`.
    """
    tensors = {**{name: value.cpu() for name, value in vars(candidates).items()}, "numbers": numbers.cpu()}
    boxes = tensors["boxes"]
    ends = [float(boxes[:, 1].min()), float(boxes[:, 3].max())] if len(boxes) else []
    with atomic_write(path) as part:
        save_file(tensors, part, {"rows": json.dumps(ends), "damaged": json.dumps(list(damaged))})


def merge_files(paths: Sequence[Path], grids: Sequence[Grid], rule: DetectionRule) -> Detections:
    """The objects of an image from the candidates of its blocks, best first, of equal scores the leftmost first.

    Merged boxes of `postprocess="merge"` can lie between those that they are made of: there the enclosing rectangles of
    components must not overlap either. With a match threshold of 1 or more, at which disjoint boxes merge, all
    candidates are merged at once.

    Args:
        paths: Of `save_candidates`.
    """
    starts = {path: ends[0] for path in paths if (ends := read_metadata(path)["rows"])}
    ordered = sorted(starts, key=lambda path: starts[path])
    chunks = [vars(detections).values() for detections in _merged(ordered, starts, grids, rule)]
    merged = Detections(*(torch.cat(values) for values in zip(*chunks, strict=True)))
    if rule.postprocess == "merge":
        merged = merged[_order(merged.labels, -merged.scores)]  # as `merge` orders those of one image
        merged = replace(merged, scores=normalize_scores(merged.confidence_sum, merged.boxes, grids))
        limits = {"iou_threshold": rule.nms_iou_threshold, "across_iou_threshold": rule.class_iou_threshold}
        merged = merged[nms(merged.boxes, merged.scores, merged.labels, **limits)]
        merged = merged[scoring(merged.scores, merged.labels, rule.min_score)]
    return merged[_order(merged.boxes[:, 0], merged.boxes[:, 1], merged.labels, -merged.scores)]


def _components(boxes: np.ndarray, groups: np.ndarray, min_iou: float) -> np.ndarray:
    """See numba_components.components."""
    return (numba_modules.load("numba_components") or eager_boxes).components(boxes, groups, min_iou)


def _order(*keys: Tensor) -> Tensor:
    """The indices that sort by the last key, of equal ones by the key before it, ..., of equal ones as they are."""
    return torch.from_numpy(np.lexsort([key.numpy() for key in keys]))


def _merged(
    paths: Sequence[Path], starts: dict[Path, float], grids: Sequence[Grid], rule: DetectionRule
) -> Iterator[Detections]:
    """The merged boxes of complete components."""
    held, limit, complete = _Held(), HELD, _completeness(paths, starts, rule)
    for number, path in enumerate(paths):
        held.add(path)
        is_last = number + 1 == len(paths)
        if is_last or len(held) > limit:
            candidates = held.candidates()
            done = complete(candidates, torch.inf if is_last else starts[paths[number + 1]])
            yield _merge(candidates[torch.from_numpy(done)], grids, rule)
            held.keep(~done)
            limit = max(HELD, 2 * len(held))
    yield _merge(held.candidates(), grids, rule)  # none, but of the right shape


def _merge(candidates: Candidates, grids: Sequence[Grid], rule: DetectionRule) -> Detections:
    if rule.postprocess == "merge":
        own = {"match_threshold": rule.match_threshold, "box_average": rule.box_average}
        return merge(candidates, grids[0].image, **own)  # type: ignore[arg-type]
    return apply_rule(candidates, grids, rule)


class _Held:
    """Candidates that are held."""

    def __init__(self) -> None:
        none = torch.empty(0, dtype=torch.int64)
        self._chunks = [{"boxes": torch.empty(0, 4), "scores": torch.empty(0), "labels": none, "scales": none}]
        self._chunks[0]["numbers"] = none

    def __len__(self) -> int:
        return sum(len(chunk["numbers"]) for chunk in self._chunks)

    def add(self, path: Path) -> None:
        """Read those of a block."""
        self._chunks.append(load_file(path))

    def candidates(self) -> Candidates:
        """All of them, in the order of all candidates of the image."""
        values = {name: torch.cat([chunk[name] for chunk in self._chunks]) for name in self._chunks[0]}
        order = values["numbers"].argsort()
        self._chunks = [{name: value[order] for name, value in values.items()}]
        return Candidates(**{name: value for name, value in self._chunks[0].items() if name != "numbers"})

    def keep(self, chosen: np.ndarray) -> None:
        """Remove all but the chosen ones of `candidates`, bool [n]."""
        (chunk,) = self._chunks
        self._chunks = [{name: value[torch.from_numpy(chosen)] for name, value in chunk.items()}]


Completeness = Callable[[Candidates, float], np.ndarray]  # of candidates and the first row of all that are not read


def _completeness(paths: Sequence[Path], starts: dict[Path, float], rule: DetectionRule) -> Completeness:
    """The function that gives, bool [n], which candidates are of complete components."""
    if rule.postprocess == "merge":
        return _merge_completeness(paths, rule)
    limits = [rule.nms_iou_threshold, rule.class_iou_threshold, *([VOTE_IOU] if rule.postprocess == "vote" else [])]
    by_class = rule.class_iou_threshold == 1

    def complete(candidates: Candidates, row: float) -> np.ndarray:
        boxes, labels = candidates.boxes.double().numpy(), candidates.labels.numpy()
        component = _components(boxes, labels if by_class else np.zeros_like(labels), min(limits))
        ends = np.full(component.max(initial=-1) + 1, -np.inf)
        np.maximum.at(ends, component, boxes[:, 3])
        return ends[component] < row

    return complete


def _merge_completeness(paths: Sequence[Path], rule: DetectionRule) -> Completeness:
    thresholds = rule.match_threshold if isinstance(rule.match_threshold, Sequence) else [rule.match_threshold]
    if max(thresholds) >= 1:
        return lambda candidates, row: np.full(len(candidates.labels), row == torch.inf)
    hulls, labels = np.empty((0, 4)), np.empty(0, np.int64)
    for path in paths:
        block = load_file(path)
        every = np.concatenate([hulls, _widened(block["boxes"])])
        hulls, labels = _hulls(every, np.concatenate([labels, block["labels"].numpy()]))

    def complete(candidates: Candidates, row: float) -> np.ndarray:
        boxes = _widened(candidates.boxes)
        near = (hulls[:, 3] >= boxes[:, 1].min(initial=np.inf)) & (hulls[:, 1] <= boxes[:, 3].max(initial=-np.inf))
        count, every = near.sum(), np.concatenate([hulls[near], boxes])
        component = _components(every, np.concatenate([labels[near], candidates.labels.numpy()]), 0.0)
        ends = np.full(component.max(initial=-1) + 1, -np.inf)
        ends[component[:count]] = every[:count, 3]  # each box lies in one hull
        return ends[component[count:]] < row

    return complete


def _widened(boxes: Tensor) -> np.ndarray:
    return boxes.double().numpy() + (-SLACK, -SLACK, SLACK, SLACK)


def _hulls(boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The enclosing rectangles of boxes that overlap, joined until none of a class overlap: [m, 4], and labels [m]."""
    while True:
        component = _components(boxes, labels, 0.0)
        count = component.max(initial=-1) + 1
        if count == len(boxes):
            return boxes, labels
        hulls = np.concatenate([np.full((count, 2), np.inf), np.full((count, 2), -np.inf)], axis=1)
        np.minimum.at(hulls[:, :2], component, boxes[:, :2])
        np.maximum.at(hulls[:, 2:], component, boxes[:, 2:])
        first = np.unique(component, return_index=True)[1]
        boxes, labels = hulls, labels[first]
