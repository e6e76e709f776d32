"""The answers of a net to queries: what the worker thread does."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from overfeat.classification.predict import classify
from overfeat.data.arrays import to_pixels
from overfeat.dense.candidates import Candidates, candidates, collect_candidates
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.detections import best_per_class, clip_boxes, merge
from overfeat.dense.evaluate import ScoreMap, score_maps
from overfeat.dense.grid import Grid, grids
from overfeat.dense.heat_maps import class_scores
from overfeat.dense.layer_output import find_layer, layer_output
from overfeat.dense.results import object_entries
from overfeat.detection.predict import apply_rule, detection_rule
from overfeat.errors import InputError
from overfeat.localization.config import LocalizationConfig
from overfeat.models.geometry import Size, Stride
from overfeat.profiling.table import by_stage
from overfeat.prototypes.predict import Prototypes
from overfeat.regions import collect_timings
from overfeat.serve.models import Model
from overfeat.serve.query import Query

TAUGHT = "taught"  # the task of classes that a stream's client taught
MAX_RAW = 300  # raw boxes of an answer, the best
MAX_MAP_BYTES = 1 << 28  # of the score maps of all classes


@dataclass(frozen=True)
class Answer:
    """What a net answers for one image.

    Attributes:
        entries: As JSON holds them: classes or objects, and raw boxes.
        maps: The maps of the classes in `labels`, [1, labels, h, w] of each scale.
        features: Of a layer, [channels, h, w], and the layer's name or number.
        seconds: Of the image's batch, by stage.
    """

    entries: dict[str, Any] = field(default_factory=dict)
    maps: Sequence[ScoreMap] = ()
    labels: tuple[str, ...] = ()
    features: tuple[str | int, Tensor] | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def evaluate(model: Model, query: Query, images: Sequence[Tensor]) -> list[Answer]:
    """Answers for images of one size. Raises InputError."""
    start = time.perf_counter()
    with torch.no_grad(), collect_timings(model.net.device) as timer:
        if query.task == "classify":
            answers = _classify(model, query, torch.stack(list(images)))
        else:
            run = {"detect": _detect, "localize": _localize, "features": _features, TAUGHT: _taught}[query.task]
            answers = [run(model, query, image) for image in images]
        seconds = by_stage(timer.seconds(), time.perf_counter() - start)
    for answer in answers:
        answer.seconds.update(seconds)
    return answers


def check_work(model: Model, query: Query, size: Size, limit: float) -> None:
    """Raises InputError where a query of an image of (height, width) takes more than `limit` multiplications.

    Also for scales and strides that the net does not have for that size, and for maps that are too large.
    """
    net = model.net
    if query.task != TAUGHT and query.label is not None and query.label not in net.class_names:
        raise InputError(f"{model.name} has no class {query.label!r}; GET /v1/models lists them")
    if query.task == "features":
        find_layer(net, query.layer, query.stride)
    work, positions = _work(model, query.task, query.scales, query.flip, query.stride, size)
    if work > limit:
        remedy = "choose fewer or smaller scales, a larger stride, or a smaller image"
        billions = f"{work / 1e9:,.1f} billion multiplications, more than the limit of {limit / 1e9:,.1f}"
        raise InputError(f"{billions}; {remedy}")
    if query.maps and 4 * net.num_classes * positions > MAX_MAP_BYTES:
        raise InputError("the heat maps would have too many windows; choose a larger stride or smaller scales")


@lru_cache(1024)
def _work(
    model: Model, task: str, scales: Scales, flip: bool | None, stride: Stride | None, size: Size
) -> tuple[int, int]:
    """The multiplications for an image of (height, width), and the number of windows."""
    net = model.net
    if task == "features":
        window = net.geometry.window
        if not net.geometry.fits(size):
            raise InputError(f"{size[0]}x{size[1]} px is less than {model.name}'s window of {window[0]}x{window[1]}")
        own = [Grid(window, net.geometry.stride(net.default_stride if stride is None else stride), size, size)]
    else:
        own = grids(net, size, DenseConfig(scales, flip, stride))
    work = sum(sum(net.region_macs(grid.padded, grid.stride)[0].values()) for grid in own)
    return work, sum(grid.num_positions for grid in own)


def _dense(query: Query) -> dict[str, Any]:
    return {"scales": query.scales, "flip": query.flip, "stride": query.stride}


def _classify(model: Model, query: Query, images: Tensor) -> list[Answer]:
    net, names = model.net, model.net.class_names
    maps = score_maps(net, images, **_dense(query)) if query.maps else []
    if maps:
        scores = torch.stack([class_scores(maps, number) for number in range(len(images))])
    else:
        scores = classify(net, images, **_dense(query))
    answers = []
    for number, own in enumerate(scores):
        if not own.isfinite().all():
            raise InputError(f"{model.name} gives NaN scores; its weights are broken")
        top = own.topk(min(query.top_k, len(names)))
        labels = top.indices.tolist()
        classes = [{"class": names[i], "score": v} for i, v in zip(labels, top.values.tolist(), strict=True)]
        if not maps:
            answers.append(Answer({"classes": classes}))
            continue
        shown = [names.index(query.label)] if query.label is not None else labels
        kept = [ScoreMap(m.scores[number : number + 1, shown].clone(), m.grid) for m in maps]
        answers.append(Answer({"classes": classes}, kept, tuple(names[label] for label in shown)))
    return answers


def _detect(model: Model, query: Query, image: Tensor) -> Answer:
    """As `detect`, with the boxes before merging."""
    net, regressor = model.net, model.regressor
    assert regressor is not None
    names = net.class_names[: net.num_foreground_classes]
    rule = detection_rule(net, regressor, min_score=query.min_score)
    own_grids = grids(net, (image.shape[1], image.shape[2]), DenseConfig(**_dense(query)))
    raw = collect_candidates(
        net, regressor, image, own_grids, max_candidates=rule.max_candidates, score_threshold=rule.score_threshold
    )
    entries: dict[str, Any] = {"objects": object_entries(apply_rule(raw, own_grids, rule), names)}
    if query.raw:
        entries["raw"] = _raw_entries(raw, names)
    return Answer(entries)


def _localize(model: Model, query: Query, image: Tensor) -> Answer:
    net, names, regressor = model.net, model.net.class_names, model.regressor
    assert regressor is not None
    config = LocalizationConfig(top_k=query.top_k)
    raw = candidates(
        net, regressor, image, top_k=config.top_k, relative_threshold=config.relative_threshold, **_dense(query)
    )
    merged = merge(raw, (image.shape[1], image.shape[2]), match_threshold=config.match_threshold)
    entries: dict[str, Any] = {"objects": object_entries(best_per_class(merged, config.top_k), names)}
    if query.raw:
        entries["raw"] = _raw_entries(raw, names)
    return Answer(entries)


def _taught(model: Model, query: Query, image: Tensor) -> Answer:
    """The score of every class in its best window, and that window as a box where the score reaches the threshold."""
    net = model.net
    assert isinstance(net, Prototypes)
    if not net.class_names:
        return Answer({"classes": [], "objects": []})
    maps = score_maps(net, image, **_dense(query))
    classes: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for label, name in enumerate(net.class_names):
        best = max(maps, key=lambda score_map: float(score_map.scores[0, label].max()))
        row, column = divmod(int(best.scores[0, label].argmax()), best.grid.shape[1])
        score = round(float(best.scores[0, label, row, column]), 4)
        entry = {"class": name, "score": score}
        classes.append(entry)
        if score >= net.threshold:
            window = clip_boxes(torch.from_numpy(best.grid.boxes()[row, column])[None], best.grid.image)
            box = [round(edge, 2) for edge in window[0].tolist()]
            objects.append({**entry, "box": box, "confidence_sum": score, "count": 1})
    entries = {"classes": sorted(classes, key=_score), "objects": sorted(objects, key=_score)}
    if not query.maps:
        return Answer(entries)
    shown = next((name for name in net.class_names if name == query.label), entries["classes"][0]["class"])
    index = net.class_names.index(shown)
    return Answer(entries, [ScoreMap(m.scores[:, index : index + 1], m.grid) for m in maps], (shown,))


def _score(entry: dict[str, Any]) -> float:
    """Sorts entries with the highest score first."""
    return -entry["score"]


def _raw_entries(raw: Candidates, names: Sequence[str]) -> list[dict[str, Any]]:
    """The best of the boxes before merging."""
    best = raw[raw.scores.argsort(descending=True, stable=True)[:MAX_RAW]]
    columns = (best.labels.tolist(), best.scores.tolist(), best.scales.tolist(), best.boxes.tolist())
    return [
        {"class": names[label], "score": round(score, 4), "scale": scale, "box": [round(edge, 1) for edge in box]}
        for label, score, scale, box in zip(*columns, strict=True)
    ]


def _features(model: Model, query: Query, image: Tensor) -> Answer:
    name, layer = find_layer(model.net, query.layer, query.stride)
    pixels = to_pixels(image, None, "the image")
    return Answer(features=(name, layer_output(model.net, layer, pixels, memory_limit=MEMORY_LIMIT)))
