"""Heat maps of an image: the scores of every window, as .npz and as a picture."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfeat.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.dense.evaluate import ScoreMap

SUFFIXES = (".npz", ".png")


def can_draw() -> bool:
    """Whether matplotlib is there to draw pictures; a note on stderr if not."""
    from overfeat.visualize import figure_class

    try:
        figure_class()
    except InputError as error:
        print(f"no pictures of heat maps: {error}", file=sys.stderr)
        return False
    return True


def class_scores(maps: Sequence["ScoreMap"]) -> "Tensor":
    """The scores [classes] of an image from its maps, as `classify` gives them."""
    import torch

    return torch.stack([score_map.scores[0].amax(dim=(1, 2)) for score_map in maps]).mean(dim=0)


def write_heat_maps(
    folder: Path, image: Path, pixels: "Tensor", maps: Sequence["ScoreMap"], labels: Sequence[int],
    names: Sequence[str], draw: bool,
) -> None:  # fmt: skip
    """Write IMAGE.npz, the maps of these classes, and draw IMAGE.png, those of the first of them.

    The arrays are `classes`, the names, and for each scale and mirror image k `scores_k`, float32 [classes, h, w], and
    `windows_k`, float32 [h, w, 4]: (x1, y1, x2, y2) in pixels of the image as given.

    Args:
        folder, image: Where the files go, and what they are named after.
        pixels: The image, uint8 [3, H, W].
        names: Of all classes.
        draw: Whether to draw the picture.
    """
    from overfeat.visualize import heat_maps

    _write_arrays(folder / f"{image.name}.npz", maps, labels, names)
    if draw:
        heat_maps(pixels, list(maps), labels[0], f"{image.name}: {names[labels[0]]}", folder / f"{image.name}.png")


def _write_arrays(path: Path, maps: Sequence["ScoreMap"], labels: Sequence[int], names: Sequence[str]) -> None:
    """Write `classes`, and scores_k [classes, h, w] and windows_k [h, w, 4] of the k-th map, for every k."""
    import numpy as np

    from overfeat.files import atomic_write

    arrays: dict[str, Any] = {"classes": np.array([names[label] for label in labels])}
    for k, score_map in enumerate(maps):
        arrays[f"scores_{k}"] = score_map.scores[0, list(labels)].cpu().numpy()
        arrays[f"windows_{k}"] = score_map.grid.boxes().astype(np.float32)
    with atomic_write(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)
