"""Pictures of results. Needs matplotlib (the `demo` extra)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from overfeat.dense.candidates import Candidates
from overfeat.dense.detections import Detections
from overfeat.dense.evaluate import ScoreMap
from overfeat.errors import InputError, WriteError
from overfeat.files import atomic_write, check_writable
from overfeat.profiling.table import title_of

SOFTWARE = "overfeat"  # that made a picture, as it says itself
MOST = 150  # boxes that are drawn of a scale


def _shown(name: str) -> str:
    """A file's name, which need not be text, as text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def figure_class() -> type:
    """matplotlib's Figure. Raises InputError where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('pictures need matplotlib: pip install "overfeat[demo]"') from error
    return Figure


def _figure(width: float, height: float):
    return figure_class()(figsize=(width, height), layout="constrained")


def heat_maps(image: Tensor, maps: list[ScoreMap], label: int, title: str, path: str | Path) -> None:
    """Draw one class's score at every place, a panel a scale, with the best window of each.

    image: uint8 [3, H, W]. maps: of this image (`score_maps`); mirrored ones are left out. Each
    place is painted at the centre of the window it scores. Writes a PNG, atomically.
    """
    maps = [m for m in maps if not m.grid.flipped]
    height, width = image.shape[1:]
    columns = min(4, len(maps) + 1)
    rows = -(-(len(maps) + 1) // columns)
    figure = _figure(2.6 * columns, 0.3 + (2.6 * height / width + 0.35) * rows)
    figure.suptitle(_shown(title), parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    picture = image.permute(1, 2, 0).cpu().numpy()
    axes[0].imshow(picture)
    axes[0].set_title("image", fontsize=9)
    shade = None
    for axis, found in zip(axes[1:], maps, strict=False):
        scores = found.scores[0, label].cpu()
        boxes = found.grid.boxes()
        axis.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        shade = axis.imshow(
            scores,
            cmap="inferno",
            vmin=0,
            vmax=1,
            alpha=np.clip(0.25 + scores.numpy(), 0, 0.8),
            extent=_centres(boxes),
            interpolation="nearest",
            zorder=2,
        )
        best = int(torch.argmax(scores))
        x1, y1, x2, y2 = boxes.reshape(-1, 4)[best]
        axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color="cyan", linewidth=1.2, zorder=3)
        axis.set_xlim(0, width)
        axis.set_ylim(height, 0)
        rows_, columns_ = found.grid.shape
        axis.set_title(
            f"{found.grid.scaled[0]}x{found.grid.scaled[1]}: {rows_}x{columns_} places, best {scores.max():.2f}",
            fontsize=8,
        )
    if shade is not None:
        figure.colorbar(shade, ax=list(axes), shrink=0.6, label="score")
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": SOFTWARE})


def localization(
    image: Tensor, raw: Candidates, found: Detections, names: Sequence[str], title: str, path: str | Path
) -> None:
    """Draw the raw boxes of each scale and the merged ones with their confidence, as the paper's figure 6 does.

    image: uint8 [3, H, W]. raw: before merging; at each scale the MOST best are drawn, in the colours
    of their classes. Writes a PNG, atomically.
    """
    height, width = image.shape[1:]
    scales = sorted(set(raw.scales.tolist()))
    columns = min(4, len(scales) + 1)
    rows = -(-(len(scales) + 1) // columns)
    figure = _figure(2.6 * columns, 0.3 + (2.6 * height / width + 0.35) * rows)
    figure.suptitle(_shown(title), parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    picture = image.permute(1, 2, 0).cpu().numpy()
    for axis in axes:
        axis.set_axis_off()
    for axis, scale in zip(axes, scales, strict=False):
        here = (raw.scales == scale).nonzero()[:, 0]
        best = here[raw.scores[here].argsort(descending=True)[:MOST]]
        axis.imshow(picture)
        for i in reversed(best.tolist()):
            _box(axis, raw.boxes[i].tolist(), int(raw.labels[i]), 0.5, float(raw.scores[i]) * 0.8)
        axis.set_title(f"scale {scale + 1}: {len(here)} boxes, best {raw.scores[here].max():.2f}", fontsize=8)
    axis = axes[len(scales)]
    axis.imshow(picture)
    for i in reversed(range(len(found))):
        label, (x1, y1, *_) = int(found.labels[i]), found.boxes[i].tolist()
        strength = float(found.scores[i] / found.scores[0])
        _box(axis, found.boxes[i].tolist(), label, 0.8 + 1.6 * strength, 0.3 + 0.7 * strength)
        tag = {"facecolor": f"C{label % 10}", "alpha": 0.3 + 0.5 * strength, "pad": 1, "linewidth": 0}
        text = f"{names[label]} {found.scores[i]:.1f}"
        axis.text(x1, y1, text, fontsize=7, color="white", verticalalignment="top", bbox=tag, parse_math=False)
    axis.set_title("merged: summed confidence", fontsize=8)
    for axis in axes[: len(scales) + 1]:
        axis.set_xlim(0, width)
        axis.set_ylim(height, 0)
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": SOFTWARE})


def detections(image: Tensor, found: Detections, names: Sequence[str], title: str, path: str | Path) -> None:
    """Draw what was found, in the colours of the classes, stronger where it is surer. Writes a PNG, atomically."""
    height, width = image.shape[1:]
    long = max(height, width)
    inches = min(max(12, long / 110), 30)  # as many pixels as the image has, where that is not too many
    figure = _figure(inches * width / long, inches * height / long + 0.3)
    figure.suptitle(_shown(title), parse_math=False)
    axis = figure.subplots()
    axis.set_axis_off()
    axis.imshow(image.permute(1, 2, 0).cpu().numpy())
    for i in reversed(range(len(found))):
        label, (x1, y1, *_) = int(found.labels[i]), found.boxes[i].tolist()
        strength = float(found.scores[i] / found.scores[0])
        _box(axis, found.boxes[i].tolist(), label, 1 + strength, 0.4 + 0.6 * strength)
        text, colour = f"{names[label]} {found.scores[i]:.2f}", f"C{label % 10}"
        size = 9 if len(found) <= 30 else 5
        box = {"facecolor": colour, "edgecolor": "none", "pad": 1}
        axis.text(x1, y1, text, fontsize=size, color="white", bbox=box, verticalalignment="bottom", parse_math=False)
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": SOFTWARE})


def check_picture(path: Path) -> None:
    """Before the work for a picture: raises WriteError where it cannot be written, or anything but one of ours is."""
    check_writable(path)
    if path.suffix.lower() != ".png":
        raise WriteError(f"{path}: pictures are PNG files; name one that ends in .png")
    if path.exists():
        try:
            with Image.open(path) as earlier:
                ours = earlier.info.get("Software") == SOFTWARE
        except Exception:  # Pillow's decoders raise many kinds for what is no picture
            ours = False
        if not ours:
            raise WriteError(f"{path}: is there already, and is no picture of overfeat's; name another file")


def precision_recall(results: dict, path: str | Path) -> None:
    """Draw the curves that evaluation.evaluate_detection gives. Writes a PNG, atomically."""
    figure = _figure(6, 5)
    axis = figure.subplots()
    for name, curve in results["curves"].items():
        axis.plot(
            curve["recall"], curve["precision"], label=f"{name} {100 * results['ap'][name]['voc']:.1f} %", linewidth=1
        )
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    axis.set_title(f"mean average precision {100 * (results['map']['voc'] or 0):.1f} % at an IoU of 0.5 (VOC)")
    for text in axis.legend(fontsize=7, loc="lower left").get_texts() if results["curves"] else ():
        text.set_parse_math(False)
    axis.grid(alpha=0.3)
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": SOFTWARE})


def multibox(results: dict, path: str | Path) -> None:
    """Draw what multibox_evaluation.evaluate_multibox gives: objects found against the number of boxes, and precision
    against recall of boxes of anything (DeepMultiBox's figures 1 and 5). Writes a PNG, atomically."""
    figure = _figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    left.plot(range(1, len(results["rate"]) + 1), results["rate"], linewidth=1.2)
    left.set(xlabel="boxes of an image", ylabel="objects found", xscale="log", xlim=(1, None), ylim=(0, 1.01))
    curve = results["agnostic"]
    right.plot(curve["recall"], curve["precision"], linewidth=1.2)
    right.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    right.set_title(f"boxes of anything: average precision {100 * curve['ap']:.1f} %")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": SOFTWARE})


def stage_times(results: dict, path: str | Path) -> None:
    """Draw what profiling.profile gives: a bar of stages for each scale, and its rate. Writes a PNG, atomically."""
    entries = [*results["grids"], results["whole"]]
    figure = _figure(10, 1.6 + 0.4 * len(entries))
    axis = figure.subplots()
    left = np.zeros(len(entries))
    for name in dict.fromkeys(name for entry in entries for name in entry["regions"]):
        spent = np.array([1000 * e["regions"].get(name, {"seconds": 0})["seconds"] for e in entries])
        axis.barh([title_of(entry) for entry in entries], spent, left=left, label=name)
        left += spent
    for place, entry in enumerate(entries):
        axis.text(left[place], place, f" {entry['gflops']:.0f} GFLOP/s, {100 * entry['fraction']:.0f} %", va="center")
    axis.invert_yaxis()
    axis.set(xlabel="ms", xlim=(0, 1.3 * left.max()))
    rate = max(results["measured_peaks"]["gflops"].values())
    axis.set_title(f"{results['net']} net, {results['dtype']}; in percent of {rate:.0f} GFLOP/s, measured here")
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": SOFTWARE})


def _box(axis, box: Sequence[float], label: int, line: float, alpha: float) -> None:
    x1, y1, x2, y2 = box
    axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=f"C{label % 10}", linewidth=line, alpha=alpha)


def _centres(boxes: np.ndarray) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) that puts each place of a map at its window's centre."""
    x = (boxes[0, :, 0] + boxes[0, :, 2]) / 2
    y = (boxes[:, 0, 1] + boxes[:, 0, 3]) / 2
    size = boxes[0, 0, 2] - boxes[0, 0, 0], boxes[0, 0, 3] - boxes[0, 0, 1]
    dx = abs(x[1] - x[0]) / 2 if len(x) > 1 else size[0] / 8
    dy = abs(y[1] - y[0]) / 2 if len(y) > 1 else size[1] / 8
    return x[0] - dx, x[-1] + dx, y[-1] + dy, y[0] - dy
