"""Answers as JSON, pictures and arrays."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from overfeat.dense.evaluate import ScoreMap
from overfeat.dense.heat_maps import heat_map_arrays, map_extent
from overfeat.serve.evaluate import Answer

# Colours of scores from 0 to 1, at even steps; `app.js` has the same.
COLORS = ("000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4")


def map_entry(score_map: ScoreMap) -> dict[str, Any]:
    """The first class's map: where it lies in the image, and its scores from 0 to 255, row by row, in base64."""
    scores, (left, right, bottom, top) = _from_the_left(score_map)
    values = (scores.clip(0, 1) * 255).round().astype(np.uint8)
    return {
        "scaled": list(score_map.grid.scaled), "flipped": score_map.grid.flipped, "shape": list(scores.shape),
        "box": [round(float(edge), 2) for edge in (left, top, right, bottom)],
        "max": round(float(scores.max()), 6), "values": base64.b64encode(values.tobytes()).decode(),
    }  # fmt: skip


def answer_entries(answer: Answer, size: tuple[int, int]) -> dict[str, Any]:
    """An answer as JSON."""
    entries: dict[str, Any] = {"image": {"height": size[0], "width": size[1]}, **answer.entries}
    if answer.maps:
        entries["maps"] = {"label": answer.labels[0], "scales": [map_entry(score_map) for score_map in answer.maps]}
    if answer.features is not None:
        name, values = answer.features
        entries |= {"layer": name, "shape": list(values.shape), "values": values.flatten().tolist()}
    return entries | {"ms": {name: round(1000 * value, 3) for name, value in answer.seconds.items()}}


def answer_npz(answer: Answer) -> bytes:
    """Heat maps, see `heat_map_arrays`, or features, as `overfeat features` writes them."""
    file = io.BytesIO()
    if answer.features is not None:
        np.savez(file, features=answer.features[1].numpy(), layer=np.array(answer.features[0]))
    else:
        labels = list(range(len(answer.labels)))
        np.savez_compressed(file, **heat_map_arrays(answer.maps, labels, answer.labels))
    return file.getvalue()


def heat_map_png(answer: Answer, image: Tensor) -> bytes:
    """The first class's scores, the mean over the scales, over the image in grey [3, H, W]."""
    height, width = image.shape[1:]
    total, seen = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for score_map in answer.maps:
        scores, (left, right, bottom, top) = _from_the_left(score_map)
        rows, of_rows = _cells(height, top, bottom, scores.shape[0])
        columns, of_columns = _cells(width, left, right, scores.shape[1])
        total[np.ix_(of_rows, of_columns)] += scores[np.ix_(rows, columns)]
        seen[np.ix_(of_rows, of_columns)] += 1
    heat = total / seen.clip(min=1)
    grey = image.float().mean(dim=0).cpu().numpy()[..., None]
    strength = np.where(seen > 0, np.clip(0.25 + heat, 0, 0.8), 0)[..., None]
    pixels = (1 - strength) * grey + strength * _colored(heat)
    file = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _from_the_left(score_map: ScoreMap) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The first class's scores [h, w], and `map_extent`, those of a mirror image turned back."""
    scores, (left, right, bottom, top) = score_map.scores[0, 0].cpu().numpy(), map_extent(score_map.grid.boxes())
    return (scores[:, ::-1], (right, left, bottom, top)) if left > right else (scores, (left, right, bottom, top))


def _cells(length: int, start: float, stop: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The cell of a map of each pixel of an axis that has one, and these pixels."""
    cells = np.floor((np.arange(length) + 0.5 - start) / (stop - start) * count).astype(int)
    inside = np.flatnonzero((cells >= 0) & (cells < count))
    return cells[inside], inside


def _colored(values: np.ndarray) -> np.ndarray:
    """The colours [..., 3] of values in 0..1."""
    anchors = np.array([[int(color[i : i + 2], 16) for i in (0, 2, 4)] for color in COLORS], np.float32)
    steps = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(values, steps, anchors[:, i]) for i in range(3)], axis=-1)
