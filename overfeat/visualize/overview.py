"""One picture of what dense evaluation gives: a photograph, its heat maps, its boxes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from overfeat.dense.detections import Detections
from overfeat.dense.evaluate import ScoreMap
from overfeat.dense.heat_maps import map_extent
from overfeat.visualize.figures import draw_box, draw_text, figure_class, save, show

# In inches.
WIDTH, GAP, HEADING = 13.2, 0.1, 0.62
COLUMN = (WIDTH - 4 * GAP) / 3
OPACITY = 0.85  # of a score of 1


def overview(
    image: Tensor, maps: Sequence[ScoreMap], detections: Detections, names: Sequence[str], path: str | Path
) -> None:
    """Draw a window of each class in an image, each class's heat map at the scale of its objects, and the boxes.

    Args:
        image: uint8 [3, H, W].
        maps: From `score_maps`; those of the mirror image are not drawn.
        detections: From `detect`.
        names: Of the classes to draw, the first ones.
        path: Of the picture, a PNG file.
    """
    height = COLUMN * image.shape[1] / image.shape[2]
    figure = figure_class()(figsize=(WIDTH, HEADING + height + GAP))
    axes = [figure.add_axes(_area(column, height)) for column in range(3)]
    scales = [_clearest(maps, label) for label in range(len(names))]
    show(axes[0], image)
    show(axes[1], image, gray=True)
    show(axes[2], image)
    for label in np.argsort([-m.grid.scaled[0] for m in scales])[::-1]:  # the largest objects below the others
        _draw_map(axes[1], scales[label], int(label))
        of_class = detections.boxes[detections.labels == int(label)]  # the highest score first
        if len(of_class):
            _draw_window(axes[0], scales[label], of_class[0].tolist(), int(label), names[label])
    for box, label in zip(detections.boxes.tolist(), detections.labels.tolist(), strict=True):
        _draw_box(axes[2], box, label)
    counts = [f"{name}: {int((detections.labels == label).sum())}" for label, name in enumerate(names)]
    side = f"{maps[0].grid.window[0]}x{maps[0].grid.window[1]}"
    _set_heading(axes[0], "A classifier of small windows", f"{side} pixels each, of the photograph at several scales")
    _set_heading(axes[1], "Heat maps", "its scores at every position, at one scale for each class")
    _set_heading(axes[2], "Objects", ", ".join(counts))
    save(figure, path)


def _area(column: int, height: float) -> tuple[float, float, float, float]:
    """The axes of a panel, as matplotlib has them."""
    total = HEADING + height + GAP
    return (GAP + column * (COLUMN + GAP)) / WIDTH, GAP / total, COLUMN / WIDTH, height / total


def _clearest(maps: Sequence[ScoreMap], label: int) -> ScoreMap:
    """The map of the scale at which a class's scores differ most, that of its objects' size."""
    return max((m for m in maps if not m.grid.flipped), key=lambda m: float(m.scores[0, label].float().std()))


def _draw_window(axis: Any, score_map: ScoreMap, detection: Sequence[float], label: int, name: str) -> None:
    """The window around a detection's centre, with the class's name and score."""
    windows = score_map.grid.boxes().reshape(-1, 4)
    shift = windows[:, :2] + windows[:, 2:] - np.add(detection[:2], detection[2:])
    index = int(np.square(shift).sum(axis=1).argmin())
    x1, y1, x2, y2 = windows[index].tolist()
    _draw_box(axis, (x1, y1, x2, y2), label)
    style = {"facecolor": f"C{label % 10}", "pad": 2, "linewidth": 0}
    text = f"{name} {score_map.scores[0, label].flatten()[index]:.2f}"
    draw_text(axis, (max(x1, 0), max(y1, 20)), text, style, fontsize=10, verticalalignment="bottom")


def _draw_map(axis: Any, score_map: ScoreMap, label: int) -> None:
    """The class's scores as the opacity of its colour."""
    from matplotlib.colors import to_rgb

    scores = score_map.scores[0, label].float().cpu().numpy()
    colors = np.concatenate(
        [np.broadcast_to(to_rgb(f"C{label % 10}"), (*scores.shape, 3)), OPACITY * scores[..., None]], 2
    )
    limits = axis.get_xlim(), axis.get_ylim()
    axis.imshow(colors, extent=map_extent(score_map.grid.boxes()), interpolation="bilinear")
    axis.set(xlim=limits[0], ylim=limits[1])


def _draw_box(axis: Any, box: Sequence[float], label: int) -> None:
    draw_box(axis, box, "black", linewidth=3.6)  # legible on any image
    draw_box(axis, box, f"C{label % 10}", linewidth=2.2)


def _set_heading(axis: Any, title: str, text: str) -> None:
    axis.set_axis_off()
    axis.set_title(f"{title}\n", fontsize=13.5, loc="left", fontweight="bold")
    axis.text(0, 1.0, f"{text}\n", transform=axis.transAxes, fontsize=11, color="dimgray", va="bottom", linespacing=0.4)
