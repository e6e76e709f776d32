"""Heat maps of an image: the scores of every window, as .npz and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.dense.maps import ScoreMap

SUFFIXES = (".npz", ".png")


def write_heat_maps(
    path: Path, image: "Tensor", maps: Sequence["ScoreMap"], scores: "Tensor", names: Sequence[str], count: int,
    draw: bool,
) -> None:  # fmt: skip
    """Write PATH.npz, the maps of the best classes (`heat_map_arrays`), and draw PATH.png, the best one's.

    Args:
        image: uint8 [3, H, W].
        scores: Of the whole image, [classes].
        count: How many classes to write.
        draw: Whether to draw the picture.
    """
    import numpy as np

    from overfeat.dense.heat_maps import heat_map_arrays
    from overfeat.files import atomic_write
    from overfeat.visualize import classification

    labels = scores.topk(min(count, len(names))).indices.tolist()
    with atomic_write(path.with_name(f"{path.name}.npz")) as part, open(part, "wb") as file:
        np.savez_compressed(file, **heat_map_arrays(maps, labels, names))
    if draw:
        classification(image, maps, scores, names, path.name, path.with_name(f"{path.name}.png"), count=min(count, 5))
