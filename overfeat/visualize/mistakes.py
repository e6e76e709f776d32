"""Pictures of the worst misses and false positives of a detector."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from overfeat.data.images import MAX_PIXELS
from overfeat.detection.evaluate import PredictedImages
from overfeat.errors import InputError, WriteError
from overfeat.files import check_result, ensure_dir, write_json
from overfeat.metrics.average_precision import Boxes
from overfeat.metrics.mistakes import FALSE_POSITIVE, MISS, PLURALS
from overfeat.ops.boxes import scoring
from overfeat.visualize.figures import check_picture, draw_box, figure_class, new_figure, save, show

INDEX = "mistakes.json"
OWN_FILES = re.compile(r"(miss|false-positive)-\d{3,}\.png|misses\.png|false-positives\.png")
MAX_SIDE, MAX_BOXES = 800, 60  # of a crop: pixels that are drawn, boxes of a kind
COLUMNS, ROWS = 6, 4  # of a sheet
MARGIN, MIN_MARGIN = 0.6, 24  # around a box: a fraction of its longer side, pixels
TRUTH_COLOR, DETECTION_COLOR = "#2bff66", "#ff9a1f"
LEGEND = "dashed green: annotated; orange: detected; thick: the mistake"


@dataclass(frozen=True)
class _Labelled:
    """A box in pixels of a crop, its text, and whether it is the mistake."""

    box: list[float]
    text: str
    thick: bool


@dataclass(frozen=True)
class _Crop:
    """A mistake, the pixels [3, h, w] around it, the (height, width) of these in the image, and the boxes there."""

    kind: str
    rank: int
    entry: dict
    image: Tensor
    size: tuple[int, int]
    truth: list[_Labelled]
    detected: list[_Labelled]

    @property
    def title(self) -> str:
        """What the mistake is, in two lines."""
        entry = self.entry
        score = f", score {entry['score']:.2f}" if entry["score"] else ""
        other = f" ({entry['other']})" if entry["reason"] in ("second class", "wrong class") else ""
        return f"#{self.rank}: {entry['class']}{score}, {entry['reason']}{other}\n{Path(entry['image']).name}"

    @property
    def file(self) -> str:
        """The name of its picture."""
        return f"{self.kind.replace(' ', '-')}-{self.rank:03}.png"


def check_mistakes(folder: Path, images: Sequence[Path] = ()) -> None:
    """Prepare a folder for `mistakes`. Raises WriteError if it holds the images or pictures that it did not write."""
    figure_class()
    if folder.resolve() in {path.resolve().parent for path in images}:
        raise WriteError(f"{folder}: holds the images themselves; choose another folder for pictures of mistakes")
    check_result(ensure_dir(folder) / INDEX, ("counts", MISS, FALSE_POSITIVE))
    for file in _own_files(folder):
        check_picture(file)


def _own_files(folder: Path) -> list[Path]:
    """The files with names that pictures of mistakes have."""
    return [file for file in sorted(folder.iterdir()) if OWN_FILES.fullmatch(file.name)]


def mistakes(
    images: PredictedImages, results: dict, folder: str | Path, *, max_pixels: int = MAX_PIXELS
) -> dict[str, int]:
    """Draw the misses and false positives that the result of `detection_figures` lists, into a folder.

    Each has its picture, cropped around it, such as miss-001.png, the worst; misses.png and false-positives.png show
    the first 24 on a sheet; mistakes.json lists all with their pictures. Pictures of an earlier run are deleted. Images
    that cannot be read any more are left out. Returns {plural of a kind: number of pictures}. Raises WriteError as
    `check_mistakes` does.
    """
    folder = Path(folder)
    check_mistakes(folder, [sample.path for sample in images.samples])
    for file in _own_files(folder):
        file.unlink()
    crops = _crops(images, results, max_pixels)
    for crop in crops:
        _draw_one(crop, folder / crop.file)
    of_kinds = {kind: [crop for crop in crops if crop.kind == kind] for kind in PLURALS}
    for kind, of_kind in of_kinds.items():
        if of_kind:
            _draw_sheet(of_kind, results, folder / f"{PLURALS[kind].replace(' ', '-')}.png")
    index = {kind: [{"picture": crop.file, **crop.entry} for crop in of_kind] for kind, of_kind in of_kinds.items()}
    settings = {"min_score": results["min_score"]}
    write_json(folder / INDEX, {**settings, **results["mistakes"], **index})
    return {PLURALS[kind]: len(of_kind) for kind, of_kind in of_kinds.items()}


def _crops(images: PredictedImages, results: dict, max_pixels: int) -> list[_Crop]:
    """The mistakes with their crops, misses first, the worst first; every image is read once."""
    position_of = {str(sample.path): position for position, sample in enumerate(images.samples)}
    pending: dict[int, list[tuple[str, int, dict]]] = {}
    for kind in PLURALS:
        for rank, entry in enumerate(results["mistakes"][kind], 1):
            pending.setdefault(position_of[entry["image"]], []).append((kind, rank, entry))
    crops: list[_Crop] = []
    for position, listed in pending.items():
        try:
            image = images.samples[position].read(max_pixels)
        except InputError:
            continue
        boxes = images.truths[position], images.detections[position]
        crops += [_crop(kind, rank, entry, image, *boxes, results) for kind, rank, entry in listed]
    return sorted(crops, key=lambda crop: (crop.kind != MISS, crop.rank))


def _crop(kind: str, rank: int, entry: dict, image: Tensor, truth: Boxes, detected: Boxes, results: dict) -> _Crop:
    """The crop around a mistake."""
    x1, y1, x2, y2 = region = _region(entry["box"], image)
    own = {other: entry["box"] if other == kind else None for other in PLURALS}
    objects = _labelled(truth, results["classes"], region, own[MISS])
    assert detected.scores is not None
    kept = scoring(detected.scores, detected.labels, results["min_score"])
    shown = Boxes(detected.boxes[kept], detected.labels[kept], detected.scores[kept])
    others = _labelled(shown, results["classes"], region, own[FALSE_POSITIVE])
    step = max(1, max(y2 - y1, x2 - x1) // MAX_SIDE)
    cropped = image[:, y1:y2:step, x1:x2:step].clone()  # a copy, which lets the image go
    return _Crop(kind, rank, entry, cropped, (y2 - y1, x2 - x1), objects, others)


def _labelled(
    boxes: Boxes, names: Sequence[str], region: tuple[int, int, int, int], own: Sequence[float] | None
) -> list[_Labelled]:
    """The first MAX_BOXES boxes that reach into a region, in its pixels, and last that of the mistake."""
    left, top, right, bottom = region
    entries = []
    for i, ((x1, y1, x2, y2), label) in enumerate(zip(boxes.boxes.tolist(), boxes.labels.tolist(), strict=True)):
        if x1 < right and x2 > left and y1 < bottom and y2 > top:
            score = "" if boxes.scores is None else f" {float(boxes.scores[i]):.2f}"
            box, thick = [x1 - left, y1 - top, x2 - left, y2 - top], own is not None and [x1, y1, x2, y2] == list(own)
            entries.append(_Labelled(box, f"{names[label]}{score}", thick))
    return [e for e in entries if not e.thick][:MAX_BOXES] + [e for e in entries if e.thick]


def _region(box: Sequence[float], image: Tensor) -> tuple[int, int, int, int]:
    """The pixels around a box: x1, y1, x2, y2."""
    x1, y1, x2, y2 = box
    margin, (height, width) = max(MIN_MARGIN, MARGIN * max(x2 - x1, y2 - y1)), image.shape[1:]
    left, top = (min(max(0, int(edge - margin)), side - 1) for edge, side in ((x1, width), (y1, height)))
    return left, top, max(left + 1, min(width, int(x2 + margin) + 1)), max(top + 1, min(height, int(y2 + margin) + 1))


def _draw_one(crop: _Crop, path: Path) -> None:
    """A picture of one mistake."""
    height, width = crop.size
    longer = max(height, width)
    figure = new_figure(max(4.0, 6 * width / longer), 6 * height / longer + 0.9)
    axis = figure.subplots()
    _draw(axis, crop, fontsize=9)
    axis.set_title(f"{crop.kind} {crop.title}", fontsize=9)
    figure.supxlabel(LEGEND, fontsize=7)
    save(figure, path)


def _draw_sheet(crops: Sequence[_Crop], results: dict, path: Path) -> None:
    """The first mistakes of a kind in one picture."""
    shown, total = crops[: COLUMNS * ROWS], sum(results["mistakes"]["counts"][crops[0].kind].values())
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(max(5.0, 2.4 * columns), 2.9 * rows + 0.8)
    figure.suptitle(f"{PLURALS[crops[0].kind]}: the worst {len(shown)} of {total}")
    figure.supxlabel(LEGEND, fontsize=8)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, crop in zip(axes, shown, strict=False):
        _draw(axis, crop, fontsize=6)
        axis.set_title(crop.title, fontsize=6)
    save(figure, path)


def _draw(axis: Any, crop: _Crop, fontsize: float) -> None:
    """The crop with all annotated and detected boxes in it."""
    height = crop.size[0]
    axis.set_axis_off()
    show(axis, crop.image, size=crop.size)
    for entry in crop.truth:
        _draw_outline(axis, entry, TRUTH_COLOR, "--")
        _draw_label(axis, entry, min(entry.box[3], height), entry.box[3] > 0.92 * height, TRUTH_COLOR, fontsize)
    for entry in crop.detected:
        _draw_outline(axis, entry, DETECTION_COLOR, "-")
        _draw_label(axis, entry, max(entry.box[1], 0), entry.box[1] > 0.08 * height, DETECTION_COLOR, fontsize)


def _draw_outline(axis: Any, entry: _Labelled, color: str, linestyle: str) -> None:
    width, alpha = (2.4, 1.0) if entry.thick else (1.0, 0.75)
    draw_box(axis, entry.box, "black", linewidth=width + 1.4, alpha=alpha)  # legible on any image
    draw_box(axis, entry.box, color, linewidth=width, linestyle=linestyle, alpha=alpha)


def _draw_label(axis: Any, entry: _Labelled, y: float, above: bool, color: str, fontsize: float) -> None:
    """The text of a box above or below a height at its left."""
    frame = {"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0}
    options = {"fontsize": fontsize, "verticalalignment": "bottom" if above else "top", "clip_on": True}
    axis.text(max(entry.box[0], 0), y, entry.text, color=color, bbox=frame, **options)
