"""Merged boxes of an image, and their picture."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from overfeat.data.arrays import ImageLike
from overfeat.dense.candidates import Candidates
from overfeat.dense.pictures import BOX_COLORS, draw_boxes, notebook_png, picture_of
from overfeat.dense.scales import Size
from overfeat.dense.source import Sourced, to_rgb
from overfeat.errors import InputError, printable
from overfeat.ops import merge_boxes
from overfeat.regions import region

MAX_ROWS = 50  # of the table that a notebook shows


@dataclass(frozen=True)
class Detections(Sourced):
    """The objects of one image, highest score first.

    A notebook shows them on the image, with names and scores, where the image is known: where it was given as a path,
    or is still in memory; else in a table.
    """

    boxes: Tensor  # float32 [n, 4], (x1, y1, x2, y2) in pixels, within the image, with an area
    labels: Tensor  # int64 [n]
    scores: Tensor  # [n]
    counts: Tensor  # int64 [n], the number of boxes merged into each
    confidence_sum: Tensor  # [n], the sum of their confidences, localization's score
    max_score: Tensor  # [n], the largest of their confidences

    @classmethod
    def from_boxes(cls, boxes: Tensor, labels: Tensor, scores: Tensor) -> "Detections":
        """Boxes that were not merged: each counts as one, and its confidence is its score."""
        return cls(boxes, labels, scores, torch.ones_like(labels), scores, scores)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Detections":
        return Detections(*(values[index] for values in vars(self).values())).with_source(self.source)

    def clip(self, image: Size) -> "Detections":
        """With boxes clipped to an image of (height, width), without those that have no area there."""
        boxes = clip_boxes(self.boxes, image)
        clipped = replace(self, boxes=boxes).with_source(self.source)
        return clipped[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]

    @property
    def names(self) -> list[str]:
        """The class name of each."""
        return [self.class_name(label) for label in self.labels.tolist()]

    def picture(self, image: ImageLike | None = None) -> Image.Image:
        """The boxes on the image, with names and scores.

        Args:
            image: A path, a PIL image, an array or a tensor, where it is not known any more.

        Returns:
            A PIL image: `picture().save("objects.png")`.

        Raises:
            InputError: Without an image, and for one of another size.
        """
        source = self.source
        if image is not None:
            pixels = to_rgb(image, source.size if source else None, source.value_range if source else None)
        elif (known := source.pixels() if source else None) is not None:
            pixels = known
        else:
            raise InputError("the image of these detections is not known any more; picture(image) draws them on it")
        picture, colors = picture_of(pixels), [BOX_COLORS[label % len(BOX_COLORS)] for label in self.labels.tolist()]
        texts = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores.tolist(), strict=True)]
        worst_first = list(zip(self.boxes.tolist(), texts, colors, strict=True))[::-1]
        draw_boxes(picture, (pixels.shape[1], pixels.shape[2]), worst_first)
        return picture

    def _repr_png_(self) -> bytes | None:
        pixels = self.source.pixels() if self.source else None
        return None if pixels is None else notebook_png(self.picture(pixels))

    def _repr_html_(self) -> str | None:
        if self.source is not None and self.source.pixels() is not None:
            return None
        head = "".join(f"<th>{name}</th>" for name in ("", "class", "score", "x1", "y1", "x2", "y2"))
        values = zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)
        rows = [
            [f"{number}", html.escape(printable(name)), f"{score:.2f}", *(f"{edge:.1f}" for edge in box)]
            for number, (name, score, box) in zip(range(MAX_ROWS), values, strict=False)
        ]
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        more = f"<p>and {len(self) - MAX_ROWS} more</p>" if len(self) > MAX_ROWS else ""
        return f"<p>{len(self)} detections</p><table><tr>{head}</tr>{body}</table>{more}"


def merge(
    candidates: Candidates, image: Size, *, match_threshold: float | Sequence[float], match_metric: str = "normalised",
    box_average: str = "pairwise",
) -> Detections:  # fmt: skip
    """Merge the boxes of each class (section 4.3, d-g), clip them to the image's (height, width), sort by score.

    Boxes outside the image are left out.

    match_threshold: One number, or one for each class. The other arguments are those of `ops.merge_boxes`.
    """
    if not candidates.boxes.isfinite().all():
        raise InputError("the net gives NaN or infinite boxes; its weights are broken")
    several = isinstance(match_threshold, Sequence)
    thresholds = torch.tensor(match_threshold if several else [match_threshold], dtype=torch.float64)
    of_box = thresholds.to(candidates.labels.device)[candidates.labels if several else candidates.labels * 0]
    merged = []
    with region("merge"):
        for threshold in thresholds.unique().tolist():
            mine = candidates[of_box == threshold]
            merged.append(
                merge_boxes(
                    mine.boxes, mine.scores, mine.labels,
                    match_threshold=threshold, match_metric=match_metric, box_average=box_average,
                )
            )  # fmt: skip
    boxes, scores, labels, counts, max_score = (
        torch.cat([getattr(part, name) for part in merged])
        for name in ("boxes", "scores", "groups", "counts", "max_score")
    )
    by_class = labels.argsort(stable=True)
    order = by_class[scores[by_class].argsort(descending=True, stable=True)]
    return Detections(boxes, labels, scores, counts, scores, max_score)[order].clip(image)


def clip_boxes(boxes: Tensor, image: Size) -> Tensor:
    """Boxes [n, 4] clipped to an image of (height, width)."""
    height, width = image
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def best_per_class(detections: Detections, top_k: int = 5) -> Detections:
    """The best detection of each class, and of those the `top_k` best: ILSVRC's top-5 predictions."""
    return detections[first_of_each(detections.labels)][:top_k]


def first_of_each(labels: Tensor) -> Tensor:
    """Where each label occurs first, in order: int64."""
    _, number = labels.unique(return_inverse=True)
    positions = torch.arange(len(labels), device=labels.device)
    first = torch.full_like(positions, len(labels)).scatter_reduce(0, number, positions, "amin")
    return first[first < len(labels)].sort().values
