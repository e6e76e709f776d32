"""Heat maps of an image: the scores of every window, as .npz and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.dense.evaluate import ScoreMap

SUFFIXES = (".npz", ".png")


def class_scores(maps: Sequence["ScoreMap"]) -> "Tensor":
    """The scores [classes] of an image from its maps, as `classify` gives them."""
    import torch

    return torch.stack([score_map.scores[0].amax(dim=(1, 2)) for score_map in maps]).mean(dim=0)


def write_heat_maps(
    path: Path, image: "Tensor", maps: Sequence["ScoreMap"], scores: "Tensor", names: Sequence[str], count: int,
    draw: bool,
) -> None:  # fmt: skip
    """Write PATH.npz, the maps of the best classes, and draw PATH.png, the best one's.

    The arrays are `classes`, the names, and for each scale and mirror image k `scores_k`, float32 [classes, h, w], and
    `windows_k`, float32 [h, w, 4]: (x1, y1, x2, y2) in pixels of the image as given.

    Args:
        image: uint8 [3, H, W].
        scores: Of the whole image, [classes].
        count: How many classes to write.
        draw: Whether to draw the picture.
    """
    import numpy as np

    from overfeat.files import atomic_write
    from overfeat.visualize import classification

    labels = scores.topk(min(count, len(names))).indices.tolist()
    arrays: dict[str, Any] = {"classes": np.array([names[label] for label in labels])}
    for k, score_map in enumerate(maps):
        arrays[f"scores_{k}"] = score_map.scores[0, labels].cpu().numpy()
        arrays[f"windows_{k}"] = score_map.grid.boxes().astype(np.float32)
    with atomic_write(path.with_name(f"{path.name}.npz")) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)
    if draw:
        classification(image, maps, scores, names, path.name, path.with_name(f"{path.name}.png"), count=min(count, 5))
