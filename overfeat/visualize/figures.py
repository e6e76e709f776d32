"""What all pictures share: figures, panels with an image, boxes with text, and writing PNG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from overfeat.errors import WriteError
from overfeat.files import atomic_write, check_writable
from overfeat.packages import package

DPI = 110
MAX_SIDE = 2200  # pixels of an image that are drawn, those of a screen; no figure is wider
SOFTWARE = "overfeat"  # the PNG metadata that marks our own pictures


def figure_class() -> type:
    """matplotlib's Figure. Raises InputError if it is not installed."""
    return package("matplotlib.figure", "pictures need", "plots").Figure


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


def new_figure(width: float, height: float) -> Any:
    return figure_class()(figsize=(width, height), layout="constrained")


def image_panels(image: Tensor, count: int, title: str) -> tuple[Any, Any]:
    """A figure, and its axes for `count` pictures of the image or more."""
    height, width = image.shape[1:]
    columns = min(4, count)
    rows, side = -(-count // columns), min(5.2, 10.4 / columns)
    figure = new_figure(side * columns, 0.3 + (side * height / width + 0.35) * rows)
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def save(figure: Any, path: str | Path) -> None:
    """Write a PNG. Names of files and classes need not be valid text, and are no formulas."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if name := text.get_text():
            text.set(text=name.encode("utf-8", "backslashreplace").decode(), parse_math=False)
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=DPI, metadata={"Software": SOFTWARE})


def show(
    axis: Any, image: Tensor, *, size: tuple[int, int] | None = None, gray: bool = False, dim: bool = False
) -> None:
    """Draw an image uint8 [3, H, W] on axes in pixels; of a large one the means of blocks of pixels.

    Args:
        size: The (height, width) that it stands for; None: its own.
        gray: Draw the mean of the colours.
        dim: Draw it at half its brightness.
    """
    factor = -(-max(image.shape) // MAX_SIDE)
    bands = [np.asarray(Image.fromarray(band.cpu().numpy()).reduce(factor)) for band in image]
    picture = np.stack(bands, axis=2) // (2 if dim else 1)
    if gray:
        picture = picture.mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8)
    opaque = np.full_like(picture[..., :1], 255)  # without it matplotlib computes in float64
    height, width = size or image.shape[1:]
    axis.imshow(np.concatenate([picture, opaque], axis=2), extent=(0, width, height, 0))
    axis.set(xlim=(0, width), ylim=(height, 0))


def draw_box(axis: Any, box: Sequence[float] | np.ndarray, color: str, **style: Any) -> None:
    x1, y1, x2, y2 = box
    axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=color, **style)


def draw_text(axis: Any, box: Sequence[float], text: str, style: dict, **options: Any) -> None:
    """Text at the top left of a box, in a frame of this style."""
    axis.text(box[0], box[1], text, color="white", bbox=style, **options)
