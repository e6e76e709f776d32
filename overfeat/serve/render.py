"""Answers as JSON, pictures and arrays."""

import base64
import io
from typing import Any

import numpy as np
from torch import Tensor

from overfeat.dense.heat_maps import heat_map_arrays
from overfeat.dense.maps import ScoreMap
from overfeat.dense.pictures import draw_heat, from_the_left, mean_map, png
from overfeat.serve.evaluate import Answer


def map_entry(score_map: ScoreMap) -> dict[str, Any]:
    """The first class's map: where it lies in the image, and its scores from 0 to 255, row by row, in base64."""
    scores, (left, right, bottom, top) = from_the_left(score_map)
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
    heat, seen = mean_map(answer.maps, (image.shape[1], image.shape[2]))
    return png(draw_heat(heat, seen, image.float().mean(dim=0).cpu().numpy()))
