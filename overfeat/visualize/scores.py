"""Pictures of scores: heat maps, the window that scores best, the top classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from overfeat.dense.heat_maps import map_extent
from overfeat.dense.maps import ScoreMap
from overfeat.visualize.figures import draw_box, draw_text, image_panels, save, show

WINDOW_COLOR, BAR_COLOR = "cyan", "#f1711d"
TOP = 5  # classes whose bars are drawn


def classification(
    image: Tensor, maps: Sequence[ScoreMap], scores: Tensor, names: Sequence[str], title: str, path: str | Path,
    *, count: int = 5,
) -> None:  # fmt: skip
    """Draw an image uint8 [3, H, W] with its best window, the top classes, and a heat map of the best class per scale.

    Args:
        maps: From `score_maps`; those of the mirror image are not drawn.
        scores: Of the whole image, [classes].
        count: Number of the top classes.
    """
    maps = [m for m in maps if not m.grid.flipped]
    label = int(scores.argmax())
    figure, axes = image_panels(image, len(maps) + 2, title)
    draw_best_window(axes[0], image, maps, label, names[label])
    axes[0].set_title("the image and its best window", fontsize=9)
    draw_bars(axes[1], scores, names, count)
    axes[1].set_box_aspect(image.shape[1] / image.shape[2])
    axes[1].set_title("scores of the image", fontsize=9)
    _draw_maps(figure, axes, 2, image, maps, label)
    save(figure, path)


def heat_maps(image: Tensor, maps: Sequence[ScoreMap], label: int, title: str, path: str | Path) -> None:
    """Draw one class's score at every position of an image uint8 [3, H, W], a panel per scale, with the best windows.

    Each score is painted at the centre of its window. The maps of the mirror image (`score_maps`) are not drawn.
    """
    maps = [m for m in maps if not m.grid.flipped]
    figure, axes = image_panels(image, len(maps) + 1, title)
    draw_best_window(axes[0], image, maps, label)
    axes[0].set_title("the image and its best window", fontsize=9)
    _draw_maps(figure, axes, 1, image, maps, label)
    save(figure, path)


def peak(score_map: ScoreMap, label: int) -> float:
    """The class's highest score in a map."""
    return float(score_map.scores[0, label].max())


def _best_box(score_map: ScoreMap, label: int) -> np.ndarray:
    """The window in which the class scores best."""
    return score_map.grid.boxes().reshape(-1, 4)[int(score_map.scores[0, label].argmax())]


def draw_best_window(axis: Any, image: Tensor, maps: Sequence[ScoreMap], label: int, name: str = "") -> None:
    """The image, darker outside of the class's best window."""
    best = max(maps, key=lambda m: peak(m, label))
    show(axis, image)
    _draw_window(axis, image, _best_box(best, label), f"{name} {peak(best, label):.2f}".strip())


def _draw_window(axis: Any, image: Tensor, box: np.ndarray, text: str) -> None:
    """A window with text, and the rest of the image darker."""
    height, width = image.shape[1:]
    x1, y1, x2, y2 = box
    # The image's outline, then the window's the other way round, as a hole.
    outline = [(0, 0), (width, 0), (width, height), (0, height), (0, 0)]
    corners = [*outline, (x1, y1), (x1, y2), (x2, y2), (x2, y1), (x1, y1)]
    axis.fill(*zip(*corners, strict=True), color="black", alpha=0.45, linewidth=0)
    draw_box(axis, box, WINDOW_COLOR, linewidth=2)
    style = {"facecolor": "black", "alpha": 0.7, "pad": 2, "linewidth": 0}
    inside = (max(x1, 0) + 0.015 * width, max(y1, 0) + 0.02 * height)  # a window may reach beyond the image
    draw_text(axis, inside, text, style, fontsize=9, verticalalignment="top")


def _draw_maps(
    figure: Any, axes: Sequence[Any], first: int, image: Tensor, maps: Sequence[ScoreMap], label: int
) -> None:
    """The heat map of each scale in the axes from `first` on, and a colour bar for all axes."""
    shading = None
    for axis, score_map in zip(axes[first:], maps, strict=False):
        shading = draw_map(axis, image, score_map, label)
        scores, scaled = score_map.scores[0, label], score_map.grid.scaled
        positions = f"{scores.shape[0]}x{scores.shape[1]} positions"
        axis.set_title(f"{scaled[0]}x{scaled[1]}: {positions}, {scores.min():.2f} to {scores.max():.2f}", fontsize=8)
    if shading is not None:
        figure.colorbar(shading, ax=list(axes), shrink=0.6, label="score")


def draw_map(axis: Any, image: Tensor, score_map: ScoreMap, label: int) -> Any:
    """Draw the scores of one scale over the grey image, and the best window; returns what the colour bar is for."""
    scores, extent = score_map.scores[0, label].cpu().numpy(), map_extent(score_map.grid.boxes())
    show(axis, image, gray=True)
    style = {"cmap": "inferno", "vmin": 0, "vmax": 1, "interpolation": "nearest", "zorder": 2}
    shading = axis.imshow(scores, alpha=np.clip(0.25 + scores, 0, 0.8), extent=extent, **style)
    draw_box(axis, _best_box(score_map, label), WINDOW_COLOR, linewidth=1.2, zorder=3)
    return shading


def draw_bars(axis: Any, scores: Tensor, names: Sequence[str], fontsize: float = 9) -> None:
    """The five best classes as bars, with their names above them."""
    top = scores.cpu().topk(min(TOP, len(scores)))
    for row, (score, label) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
        axis.barh(row, score, height=0.28, color=BAR_COLOR if row == 0 else "silver")
        text = {"fontsize": fontsize, "verticalalignment": "bottom"}
        axis.text(0, row - 0.2, names[label], fontweight="bold" if row == 0 else "normal", **text)
        axis.text(1, row - 0.2, f"{score:.2f}", horizontalalignment="right", **text)
    axis.set(xlim=(0, 1), ylim=(TOP - 0.7, -0.7))
