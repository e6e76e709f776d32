"""Pictures of results: PNG files, written atomically. Needs matplotlib (the `demo` extra)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from overfeat.dense.candidates import Candidates
from overfeat.dense.detections import Detections
from overfeat.dense.evaluate import ScoreMap
from overfeat.errors import InputError, WriteError
from overfeat.files import atomic_write, check_writable

SOFTWARE = "overfeat"  # the PNG metadata by which our own pictures are recognised
MAX_BOXES = 150  # drawn per scale


def figure_class() -> type:
    """matplotlib's Figure. Raises InputError if it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('pictures need matplotlib: pip install "overfeat[demo]"') from error
    return Figure


def heat_maps(image: Tensor, maps: list[ScoreMap], label: int, title: str, path: str | Path) -> None:
    """Draw one class's score at every position of an image uint8 [3, H, W], a panel per scale, with the best windows.

    Each score is painted at the centre of its window. The maps of the mirror image (`score_maps`) are not drawn.
    """
    maps = [m for m in maps if not m.grid.flipped]
    figure, axes = _panels(image, len(maps) + 1, title)
    picture = image.permute(1, 2, 0).cpu().numpy()
    axes[0].imshow(picture)
    axes[0].set_title("image", fontsize=9)
    shading = None
    for axis, score_map in zip(axes[1:], maps, strict=False):
        axis.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        shading = _draw_map(axis, score_map, label)
        _set_limits(axis, image)
    if shading is not None:
        figure.colorbar(shading, ax=list(axes), shrink=0.6, label="score")
    _save(figure, path)


def _draw_map(axis: Any, score_map: ScoreMap, label: int) -> Any:
    """Draw the scores of one scale and the best window; returns what the colour bar is for."""
    grid, scores, boxes = score_map.grid, score_map.scores[0, label].cpu(), score_map.grid.boxes()
    style = {"cmap": "inferno", "vmin": 0, "vmax": 1, "interpolation": "nearest", "zorder": 2}
    shading = axis.imshow(scores, alpha=np.clip(0.25 + scores.numpy(), 0, 0.8), extent=_centres(boxes), **style)
    _draw_box(axis, boxes.reshape(-1, 4)[int(torch.argmax(scores))], "cyan", linewidth=1.2, zorder=3)
    positions = f"{grid.shape[0]}x{grid.shape[1]} positions"
    axis.set_title(f"{grid.scaled[0]}x{grid.scaled[1]}: {positions}, best {scores.max():.2f}", fontsize=8)
    return shading


def localization(
    image: Tensor, candidates: Candidates, detections: Detections, names: Sequence[str], title: str, path: str | Path
) -> None:
    """Draw the candidate boxes of each scale and the merged ones with their confidence, as the paper's figure 6.

    Of each scale's candidates the MAX_BOXES best are drawn, in the colours of their classes.
    """
    scales = sorted(set(candidates.scales.tolist()))
    figure, axes = _panels(image, len(scales) + 1, title)
    picture = image.permute(1, 2, 0).cpu().numpy()
    for axis, scale in zip(axes, scales, strict=False):
        indices = (candidates.scales == scale).nonzero()[:, 0]
        best = indices[candidates.scores[indices].argsort(descending=True)[:MAX_BOXES]]
        axis.imshow(picture)
        for i in reversed(best.tolist()):
            color, alpha = f"C{int(candidates.labels[i]) % 10}", float(candidates.scores[i]) * 0.8
            _draw_box(axis, candidates.boxes[i].tolist(), color, linewidth=0.5, alpha=alpha)
        highest = candidates.scores[indices].max()
        axis.set_title(f"scale {scale + 1}: {len(indices)} boxes, best {highest:.2f}", fontsize=8)
    axis = axes[len(scales)]
    axis.imshow(picture)
    for i in reversed(range(len(detections))):
        label, strength = int(detections.labels[i]), float(detections.scores[i] / detections.scores[0])
        box, color = detections.boxes[i].tolist(), f"C{label % 10}"
        _draw_box(axis, box, color, linewidth=0.8 + 1.6 * strength, alpha=0.3 + 0.7 * strength)
        style = {"facecolor": color, "alpha": 0.3 + 0.5 * strength, "pad": 1, "linewidth": 0}
        _draw_text(axis, box, f"{names[label]} {detections.scores[i]:.1f}", style, fontsize=7, verticalalignment="top")
    axis.set_title("merged: summed confidence", fontsize=8)
    for axis in axes[: len(scales) + 1]:
        _set_limits(axis, image)
    _save(figure, path)


def detections(image: Tensor, detections: Detections, names: Sequence[str], title: str, path: str | Path) -> None:
    """Draw detections in the colours of their classes, stronger with higher scores."""
    height, width = image.shape[1:]
    longer = max(height, width)
    inches = min(max(12, longer / 110), 30)  # the image's resolution, within limits
    figure = _figure(inches * width / longer, inches * height / longer + 0.3)
    figure.suptitle(_displayable(title), parse_math=False)
    axis = figure.subplots()
    axis.set_axis_off()
    axis.imshow(image.permute(1, 2, 0).cpu().numpy())
    fontsize = 9 if len(detections) <= 30 else 5
    for i in reversed(range(len(detections))):
        label, strength = int(detections.labels[i]), float(detections.scores[i] / detections.scores[0])
        box, color = detections.boxes[i].tolist(), f"C{label % 10}"
        _draw_box(axis, box, color, linewidth=1 + strength, alpha=0.4 + 0.6 * strength)
        style, text = {"facecolor": color, "edgecolor": "none", "pad": 1}, f"{names[label]} {detections.scores[i]:.2f}"
        _draw_text(axis, box, text, style, fontsize=fontsize, verticalalignment="bottom")
    _set_limits(axis, image)
    _save(figure, path)


def check_picture(path: Path) -> None:
    """Raises WriteError if a picture cannot be written, or would overwrite a file that is not one of ours.

    Called before the work starts.
    """
    check_writable(path)
    if path.suffix.lower() != ".png":
        raise WriteError(f"{path}: pictures are PNG files; name one that ends in .png")
    if path.exists():
        try:
            with Image.open(path) as earlier:
                ours = earlier.info.get("Software") == SOFTWARE
        except Exception:  # Pillow's decoders raise many kinds for what is not an image
            ours = False
        if not ours:
            raise WriteError(f"{path}: exists and was not drawn by overfeat; name another file")


def precision_recall(results: dict, path: str | Path) -> None:
    """Draw the curves of `evaluate_detection`."""
    figure = _figure(6, 5)
    axis = figure.subplots()
    for name, curve in results["curves"].items():
        precision = f"{name} {100 * results['ap'][name]['voc']:.1f} %"
        axis.plot(curve["recall"], curve["precision"], label=precision, linewidth=1)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    axis.set_title(f"mean average precision {100 * (results['map']['voc'] or 0):.1f} % at an IoU of 0.5 (VOC)")
    for text in axis.legend(fontsize=7, loc="lower left").get_texts() if results["curves"] else ():
        text.set_parse_math(False)
    axis.grid(alpha=0.3)
    _save(figure, path)


def multibox(results: dict, path: str | Path) -> None:
    """Draw the detection rate and class-agnostic precision of `evaluate_multibox` (DeepMultiBox's figures 1 and 5)."""
    figure = _figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    left.plot(range(1, len(results["rate"]) + 1), results["rate"], linewidth=1.2)
    left.set(xlabel="boxes per image", ylabel="detection rate", xscale="log", xlim=(1, None), ylim=(0, 1.01))
    curve = results["agnostic"]
    right.plot(curve["recall"], curve["precision"], linewidth=1.2)
    right.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    right.set_title(f"class-agnostic average precision {100 * curve['ap']:.1f} %")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    _save(figure, path)


def stage_times(results: dict, titles: Sequence[str], path: str | Path) -> None:
    """Draw the result of `profile`: a bar of regions and its rate for each of results["grids"] and results["whole"]."""
    entries = [*results["grids"], results["whole"]]
    figure = _figure(10, 1.6 + 0.4 * len(entries))
    axis = figure.subplots()
    left = np.zeros(len(entries))
    for name in dict.fromkeys(name for entry in entries for name in entry["regions"]):
        elapsed = np.array([1000 * e["regions"].get(name, {"seconds": 0})["seconds"] for e in entries])
        axis.barh(list(titles), elapsed, left=left, label=name)
        left += elapsed
    for i, entry in enumerate(entries):
        axis.text(left[i], i, f" {entry['gflops']:.0f} GFLOP/s, {100 * entry['fraction']:.0f} %", va="center")
    axis.invert_yaxis()
    axis.set(xlabel="ms", xlim=(0, 1.3 * left.max()))
    peak = max(results["measured_peaks"]["gflops"].values())
    axis.set_title(f"{results['net']} net, {results['dtype']}; in percent of the measured peak, {peak:.0f} GFLOP/s")
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    return figure_class()(figsize=(width, height), layout="constrained")


def _panels(image: Tensor, count: int, title: str) -> tuple[Any, Any]:
    """A figure, and its axes for `count` pictures of the image or more."""
    height, width = image.shape[1:]
    columns = min(4, count)
    rows = -(-count // columns)
    figure = _figure(2.6 * columns, 0.3 + (2.6 * height / width + 0.35) * rows)
    figure.suptitle(_displayable(title), parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def _save(figure: Any, path: str | Path) -> None:
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": SOFTWARE})


def _displayable(name: str) -> str:
    """A file's name, which need not be valid text, as text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _set_limits(axis: Any, image: Tensor) -> None:
    axis.set_xlim(0, image.shape[2])
    axis.set_ylim(image.shape[1], 0)


def _draw_box(axis: Any, box: Sequence[float], color: str, **style: float) -> None:
    x1, y1, x2, y2 = box
    axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=color, **style)


def _draw_text(axis: Any, box: Sequence[float], text: str, style: dict, **options: Any) -> None:
    """Text at the top left of a box, in a frame of this style."""
    axis.text(box[0], box[1], text, color="white", bbox=style, parse_math=False, **options)


def _centres(boxes: np.ndarray) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) of a map whose positions lie at the centres of their windows."""
    x = (boxes[0, :, 0] + boxes[0, :, 2]) / 2
    y = (boxes[:, 0, 1] + boxes[:, 0, 3]) / 2
    size = boxes[0, 0, 2] - boxes[0, 0, 0], boxes[0, 0, 3] - boxes[0, 0, 1]
    dx = abs(x[1] - x[0]) / 2 if len(x) > 1 else size[0] / 8
    dy = abs(y[1] - y[0]) / 2 if len(y) > 1 else size[1] / 8
    return x[0] - dx, x[-1] + dx, y[-1] + dy, y[0] - dy
