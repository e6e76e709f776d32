"""What score maps give beside the maps: an image's scores, arrays for a file, and where they lie in the image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from overfeat.dense.maps import ScoreMap


def class_scores(maps: Sequence["ScoreMap"], number: int = 0) -> Tensor:
    """The scores [classes] of an image, by its number in the batch, from its maps, as `classify` gives them."""
    return torch.stack([score_map.scores[number].amax(dim=(1, 2)) for score_map in maps]).mean(dim=0)


def heat_map_arrays(
    maps: Sequence["ScoreMap"], labels: Sequence[int], names: Sequence[str], number: int = 0
) -> dict[str, Any]:
    """The maps of some classes of an image, by its number in the batch.

    The arrays are `classes`, their names, and for each scale and mirror image k `scores_k`, float32 [classes, h, w],
    and `windows_k`, float32 [h, w, 4]: (x1, y1, x2, y2) in pixels of the image as given.
    """
    arrays: dict[str, Any] = {"classes": np.array([names[label] for label in labels])}
    for k, score_map in enumerate(maps):
        arrays[f"scores_{k}"] = score_map.scores[number, list(labels)].cpu().numpy()
        arrays[f"windows_{k}"] = score_map.grid.boxes().astype(np.float32)
    return arrays


def map_extent(boxes: np.ndarray) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) of a map whose positions lie at the centres of their windows [h, w, 4].

    Of a mirror image the right is first.
    """
    x = (boxes[0, :, 0] + boxes[0, :, 2]) / 2
    y = (boxes[:, 0, 1] + boxes[:, 0, 3]) / 2
    size = boxes[0, 0, 2] - boxes[0, 0, 0], boxes[0, 0, 3] - boxes[0, 0, 1]
    dx = (x[1] - x[0]) / 2 if len(x) > 1 else size[0] / 8
    dy = abs(y[1] - y[0]) / 2 if len(y) > 1 else size[1] / 8
    return x[0] - dx, x[-1] + dx, y[-1] + dy, y[0] - dy
