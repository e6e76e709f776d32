"""One picture that explains dense evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from overfeat.dense.maps import ScoreMap
from overfeat.visualize.figures import draw_box, figure_class, save, show
from overfeat.visualize.scores import draw_bars, draw_best_window, draw_map, peak

TITLE = "A classifier of small windows, evaluated at every position and scale of a photograph"
# In inches.
WIDTH, MARGIN, GAP = 15.0, 0.3, 0.25
COLUMN = (WIDTH - 2 * MARGIN - 3 * GAP) / 4
TITLE_HEIGHT, HEADING, FOOT = 0.7, 0.6, 0.35  # a heading is above each panel


def explanation(
    image: Tensor, maps: Sequence[ScoreMap], scores: Tensor, other: int, names: Sequence[str], cost: str,
    path: str | Path,
) -> None:  # fmt: skip
    """Draw dense evaluation step by step: a window, all windows, heat maps of two classes, the scales, the result.

    Args:
        image: uint8 [3, H, W].
        maps: Of scales that keep the image's proportions, the smallest first.
        scores: Of the whole image, [classes].
        other: A class of another object than the best one's.
        names: Of the classes.
        cost: A line about the operations, at the bottom.
    """
    label, aspect = int(scores.argmax()), image.shape[1] / image.shape[2]
    strip = 3 * COLUMN + 2 * GAP - (len(maps) - 1) * GAP  # width of the images of step 5 together
    widths = [strip * m.grid.scaled[1] / sum(m.grid.scaled[1] for m in maps) for m in maps]
    top = TITLE_HEIGHT + HEADING + COLUMN * aspect + FOOT + HEADING
    bottom = top + widths[-1] * aspect
    figure = figure_class()(figsize=(WIDTH, bottom + 2.5 * FOOT))
    _draw_line(figure, TITLE_HEIGHT / 2, TITLE, fontsize=17, fontweight="bold")
    _draw_line(figure, bottom + 1.7 * FOOT, cost, fontsize=12.5)
    _draw_steps(figure, image, maps, label, other, names)
    _draw_scales(figure, top, bottom, widths, image, maps, label)
    bars = _axes(figure, MARGIN + 3 * (COLUMN + GAP), top, COLUMN, bottom - top)
    draw_bars(bars, scores, names, fontsize=11)
    _set_step(bars, "6  The best windows name it", "best score per class, mean of the scales")
    save(figure, path)


def _draw_steps(
    figure: Any, image: Tensor, maps: Sequence[ScoreMap], label: int, other: int, names: Sequence[str]
) -> None:
    """The upper half: one scale of the class, and one of the other class."""
    best, best_other = (max(maps, key=lambda m: peak(m, c)) for c in (label, other))
    height = COLUMN * image.shape[1] / image.shape[2]
    axes = [_axes(figure, MARGIN + i * (COLUMN + GAP), TITLE_HEIGHT + HEADING, COLUMN, height) for i in range(4)]
    draw_best_window(axes[0], image, [best], label, names[label])
    size = f"{best.grid.window[0]}x{best.grid.window[1]}"
    _set_step(axes[0], "1  It names one window", f"{size} pixels in, {len(names):,} scores out")
    _draw_positions(axes[1], image, best, label)
    _set_step(axes[1], f"2  It names all {best.grid.num_positions} windows", "white: some of them; dots: their centres")
    draw_map(axes[2], image, best, label)
    _set_step(axes[2], f"3  A heat map: {names[label]}", "the score of every window; cyan: the best")
    draw_map(axes[3], image, best_other, other)
    _set_step(axes[3], f"4  Every class has one: {names[other]}", "from the same evaluation, at another scale")


def _draw_scales(
    figure: Any, top: float, bottom: float, widths: Sequence[float], image: Tensor, maps: Sequence[ScoreMap], label: int
) -> None:
    """The heat map of each scale, the images as large as the net sees them."""
    left = MARGIN
    for score_map, width in zip(maps, widths, strict=True):
        grid, height = score_map.grid, width * image.shape[1] / image.shape[2]
        axis = _axes(figure, left, bottom - height, width, height)
        shading = draw_map(axis, image, score_map, label)
        text = f"{grid.scaled[0]}x{grid.scaled[1]} pixels: {grid.num_positions} windows"
        axis.text(0.5, -0.02, text, transform=axis.transAxes, ha="center", va="top", fontsize=11)
        left += width + GAP
    bar = _axes(figure, MARGIN, top + 0.12, COLUMN / 2, 0.16)
    figure.colorbar(shading, cax=bar, orientation="horizontal", ticks=[0, 1])
    bar.set_axis_on()
    bar.set_xlabel("score", labelpad=-8)
    frame = _axes(figure, MARGIN, top, COLUMN, 0.1)
    size = f"{maps[0].grid.window[0]}x{maps[0].grid.window[1]}"
    _set_step(
        frame, "5  At every scale", f"enlarged, the photograph shows smaller things to the same window of {size} pixels"
    )


def _axes(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    """Axes in inches from the figure's top left corner."""
    total = figure.get_figheight()
    axis = figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))
    axis.set_axis_off()
    return axis


def _draw_line(figure: Any, top: float, text: str, **style: Any) -> None:
    """A line in the middle of the figure."""
    figure.text(0.5, 1 - top / figure.get_figheight(), text, ha="center", va="center", **style)


def _draw_positions(axis: Any, image: Tensor, score_map: ScoreMap, label: int) -> None:
    """The centres of all windows, coloured by the class's score, and the outlines of some windows."""
    boxes, scores = score_map.grid.boxes(), score_map.scores[0, label].cpu().numpy()
    show(axis, image, dim=True)
    inset = [2, 2, -2, -2]  # so that a window at the image's border is seen
    for column in range(min(4, scores.shape[1])):
        draw_box(axis, boxes[0, column] + inset, "white", linewidth=1.5, alpha=1 - 0.22 * column)
    draw_box(axis, boxes[-1, -1] + inset, "white", linewidth=1.5)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    axis.scatter(centres[..., 0], centres[..., 1], c=scores, s=14, cmap="inferno", vmin=0, vmax=1, zorder=3)


def _set_step(axis: Any, title: str, text: str) -> None:
    """A title and a line of explanation, above the axes."""
    axis.set_title(f"{title}\n", fontsize=13, loc="left", fontweight="bold")
    axis.text(
        0, 1.0, f"{text}\n", transform=axis.transAxes, fontsize=10.5, color="dimgray", va="bottom", linespacing=0.4
    )
