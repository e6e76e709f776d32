"""Score maps: the scores of every window, and their picture."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsIndex, overload

import numpy as np
from PIL import Image
from torch import Tensor

from overfeat.data.arrays import ImageLike
from overfeat.dense.grid import Grid
from overfeat.dense.heat_maps import class_scores
from overfeat.dense.pictures import (
    WINDOW_COLOR,
    draw_boxes,
    draw_heat,
    mean_map,
    notebook_png,
    picture_of,
    picture_size,
)
from overfeat.dense.source import Sourced, to_rgb
from overfeat.errors import ArgumentError, InputError, in_one_line, is_whole


@dataclass(frozen=True)
class ScoreMap(Sourced):
    """The class scores of one scale of images, or of their mirror images; a notebook shows it as `ScoreMaps`."""

    scores: Tensor  # probabilities of the classes in every window, float32 [N, classes, h, w]
    grid: Grid  # which window of the image each position sees

    def picture(
        self, label: int | str | None = None, *, image: ImageLike | None = None, number: int = 0
    ) -> Image.Image:
        """The heat map of a class, see `ScoreMaps.picture`."""
        return ScoreMaps([self]).picture(label, image=image, number=number)

    def _repr_png_(self) -> bytes | None:
        return ScoreMaps([self])._repr_png_()


class ScoreMaps(list[ScoreMap]):
    """The score maps of images, a list: one for each scale and mirror image.

    A notebook shows it as the heat map of the best class (`picture`), over the image where it is known: where it was
    given as a path, or is still in memory.
    """

    def __init__(self, maps: Iterable[ScoreMap] = ()):
        super().__init__(maps)

    @overload
    def __getitem__(self, index: SupportsIndex) -> ScoreMap: ...
    @overload
    def __getitem__(self, index: slice) -> "ScoreMaps": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "ScoreMap | ScoreMaps":
        """One map, or those of a slice, which show themselves, too."""
        return ScoreMaps(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)

    def picture(
        self, label: int | str | None = None, *, image: ImageLike | None = None, number: int = 0
    ) -> Image.Image:
        """A class's scores, the mean over the scales, over the image in grey; its best window is outlined.

        Each score is painted at the centre of its window.

        Args:
            label: The name or number of the class; None: the best of the image, other than the background.
            image: What was evaluated, where it is not known any more; without an image the scores are drawn alone.
            number: Of the image, where several were evaluated.

        Returns:
            A PIL image: `picture("cat").save("cat.png")`.

        Raises:
            InputError: For another label, number or size of the image, and without maps.
        """
        if not self:
            raise InputError("there are no score maps to draw")
        count, size = len(self[0].scores), self[0].grid.image
        if not is_whole(number) or not 0 <= number < count:
            raise ArgumentError("number", f"must be 0 to {count - 1}, that of an image, not {in_one_line(number)}")
        own, source = self._label(label, number), self[0].source
        if image is not None:
            pixels: Tensor | None = to_rgb(image, size, source.value_range if source else None, number)
        else:
            pixels = source.pixels(number) if source else None
        grey = None if pixels is None else np.asarray(picture_of(pixels)).mean(axis=2, dtype=np.float32)
        picture = draw_heat(*mean_map(self, picture_size(size), own, number), grey)
        score, box = self._best(own, number)
        text = f"{self[0].class_name(own)} {score:.2f}" + (f", image {number + 1} of {count}" if count > 1 else "")
        draw_boxes(picture, size, [(box, text, WINDOW_COLOR)])
        return picture

    def _label(self, label: object, number: int) -> int:
        """The number of a class."""
        classes, source = self[0].scores.shape[1], self[0].source
        names = list(source.names)[:classes] if source else []
        if label is None:
            return int(class_scores(self, number)[: len(names) or None].argmax())
        if isinstance(label, str) and label in names:
            return names.index(label)
        if not is_whole(label) or not 0 <= label < classes:
            which = (
                f"the name or number of one of {classes} classes" if names else f"0 to {classes - 1}, that of a class"
            )
            requirement = f"must be {which}, not {in_one_line(label)}"
            raise ArgumentError("label", requirement)
        return int(label)

    def _best(self, label: int, number: int) -> tuple[float, list[float]]:
        """The highest score of a class and its window."""
        best = max(self, key=lambda m: float(m.scores[number, label].max()))
        scores = best.scores[number, label]
        return float(scores.max()), best.grid.boxes().reshape(-1, 4)[int(scores.argmax())].tolist()

    def _repr_png_(self) -> bytes | None:
        return notebook_png(self.picture()) if self else None

    def __repr__(self) -> str:
        if not self:
            return "ScoreMaps([])"
        images, classes = self[0].scores.shape[:2]
        sizes = ", ".join("x".join(map(str, m.grid.shape)) + " (mirrored)" * m.grid.flipped for m in self)
        return f"ScoreMaps({images} image{'s' * (images != 1)}, {classes} classes, positions {sizes})"
