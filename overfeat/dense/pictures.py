"""Pictures of results as notebooks show them, drawn by Pillow: heat maps and boxes over an image."""

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from overfeat.dense.heat_maps import map_extent
from overfeat.errors import printable
from overfeat.models.geometry import Size

if TYPE_CHECKING:
    from overfeat.dense.maps import ScoreMap

# Colours of scores from 0 to 1, at even steps; the live page has the same (`serve/static/draw.js`).
COLORS = ("000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4")
BOX_COLORS = (
    "#ff9f1c", "#4cc9f0", "#80ed99", "#ff4d6d", "#b8a1ff", "#ffe066", "#2ec4b6", "#f4a3d8", "#c0f000", "#c8c8d0"
)  # fmt: skip
WINDOW_COLOR = "#00ffff"
MIN_SIDE, MAX_SIDE = 480, 1000  # pixels of a picture's longer side
FONT, SMALL_FONT, MANY_BOXES = 14, 11, 30  # sizes of labels; from so many boxes on they are small

Label = tuple[Sequence[float], str, str]  # (x1, y1, x2, y2), text and colour


def picture_size(size: Size) -> Size:
    """The (height, width) at which an image of this size is shown."""
    longer = max(size)
    factor = min(max(1.0, MIN_SIDE / longer), MAX_SIDE / longer)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def picture_of(image: Tensor) -> Image.Image:
    """An image uint8 [3, H, W] at its `picture_size`."""
    height, width = picture_size((image.shape[1], image.shape[2]))
    whole = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return whole.resize((width, height), Image.Resampling.BICUBIC)


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def notebook_png(picture: Image.Image) -> bytes:
    """The picture as a PNG file of 256 colours, half the size: notebooks keep what they show."""
    return png(picture.quantize(256))


def draw_boxes(picture: Image.Image, size: Size, boxes: Iterable[Label]) -> None:
    """Draw labelled boxes, in pixels of an image of (height, width), on its picture; the last lie on top."""
    boxes, draw = list(boxes), ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT if len(boxes) < MANY_BOXES else SMALL_FONT)
    across, down = picture.width / size[1], picture.height / size[0]
    corners = []
    for (x1, y1, x2, y2), _, color in boxes:
        left, top = round(x1 * across), round(y1 * down)
        right, bottom = max(left, round(x2 * across) - 1), max(top, round(y2 * down) - 1)
        draw.rectangle([left - 1, top - 1, right + 1, bottom + 1], outline="black", width=4)  # legible on any image
        draw.rectangle([left, top, right, bottom], outline=color, width=2)
        corners.append((left, top))
    for corner, (_, text, color) in zip(corners, boxes, strict=True):
        _draw_label(draw, picture.size, corner, text, color, font)


def _draw_label(
    draw: ImageDraw.ImageDraw, limits: tuple[int, int], corner: tuple[int, int], text: str, color: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:  # fmt: skip
    """Text above the top left corner of a box, below it where there is no room, and within the picture."""
    text = printable(text.encode("utf-8", "backslashreplace").decode())  # names need not be valid text
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = round(right - left) + 6, round(bottom - top) + 6
    x = max(0, min(corner[0] - 1, limits[0] - width))
    y = corner[1] - height if corner[1] >= height else max(0, min(corner[1], limits[1] - height))
    draw.rectangle([x, y, x + width - 1, y + height - 1], fill="black", outline=color)
    draw.text((x + 3 - left, y + 3 - top), text, fill="white", font=font)


def mean_map(maps: Sequence["ScoreMap"], size: Size, label: int = 0, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A class's scores at the pixels of an image resized to (height, width), each at the centre of its window.

    Returns:
        The mean of the maps, and how many of them have a score there: float32 [height, width] each.
    """
    height, width = size
    total, seen = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for score_map in maps:
        scores, (left, right, bottom, top) = from_the_left(score_map, label, number)
        down, across = height / score_map.grid.image[0], width / score_map.grid.image[1]
        rows, of_rows = _cells(height, top * down, bottom * down, scores.shape[0])
        columns, of_columns = _cells(width, left * across, right * across, scores.shape[1])
        total[np.ix_(of_rows, of_columns)] += scores[np.ix_(rows, columns)]
        seen[np.ix_(of_rows, of_columns)] += 1
    return total / seen.clip(min=1), seen


def from_the_left(
    score_map: "ScoreMap", label: int = 0, number: int = 0
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """A class's scores [h, w] of an image, and `map_extent`, those of a mirror image turned back."""
    scores = score_map.scores[number, label].cpu().numpy()
    left, right, bottom, top = map_extent(score_map.grid.boxes())
    return (scores[:, ::-1], (right, left, bottom, top)) if left > right else (scores, (left, right, bottom, top))


def _cells(length: int, start: float, stop: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The cell of a map of each pixel of an axis that has one, and these pixels."""
    cells = np.floor((np.arange(length) + 0.5 - start) / (stop - start) * count).astype(int)
    inside = np.flatnonzero((cells >= 0) & (cells < count))
    return cells[inside], inside


def draw_heat(heat: np.ndarray, seen: np.ndarray, grey: np.ndarray | None = None) -> Image.Image:
    """Scores in 0..1 over an image in grey [h, w], or alone; pixels that no map has keep the grey, or are white."""
    if grey is None:
        strength, grey = (seen > 0).astype(np.float32), np.full_like(heat, 255)
    else:
        strength = np.where(seen > 0, np.clip(0.25 + heat, 0, 0.8), 0)
    pixels = (1 - strength[..., None]) * grey[..., None] + strength[..., None] * _colored(heat)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _colored(values: np.ndarray) -> np.ndarray:
    """The colours [..., 3] of values in 0..1."""
    anchors = np.array([[int(color[i : i + 2], 16) for i in (0, 2, 4)] for color in COLORS], np.float32)
    steps = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(values, steps, anchors[:, i]) for i in range(3)], axis=-1)
