"""Pictures of boxes: localization and detection."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from overfeat.dense.candidates import Candidates
from overfeat.dense.detections import Detections
from overfeat.metrics.average_precision import Boxes
from overfeat.visualize.figures import (
    DPI,
    MAX_SIDE,
    draw_box,
    draw_text,
    image_panels,
    new_figure,
    save,
    show,
)

MAX_BOXES = 150  # drawn per scale


def localization(
    image: Tensor, candidates: Candidates, detections: Detections, names: Sequence[str], title: str, path: str | Path
) -> None:
    """Draw the candidate boxes of each scale and the merged ones with their confidence, as the paper's figure 6.

    Of each scale's candidates the MAX_BOXES best are drawn, in the colours of their classes.
    """
    scales = sorted(set(candidates.scales.tolist()))
    figure, axes = image_panels(image, len(scales) + 1, title)
    for axis, scale in zip(axes, scales, strict=False):
        indices = (candidates.scales == scale).nonzero()[:, 0]
        best = indices[candidates.scores[indices].argsort(descending=True)[:MAX_BOXES]]
        show(axis, image)
        for i in reversed(best.tolist()):
            color, alpha = f"C{int(candidates.labels[i]) % 10}", float(candidates.scores[i]) * 0.8
            draw_box(axis, candidates.boxes[i].tolist(), color, linewidth=0.5, alpha=alpha)
        highest = candidates.scores[indices].max()
        axis.set_title(f"scale {scale + 1}: {len(indices)} boxes, best {highest:.2f}", fontsize=8)
    axis = axes[len(scales)]
    show(axis, image)
    for i in reversed(range(len(detections))):
        label, strength = int(detections.labels[i]), float(detections.scores[i] / detections.scores[0])
        box, color = detections.boxes[i].tolist(), f"C{label % 10}"
        draw_box(axis, box, color, linewidth=0.8 + 1.6 * strength, alpha=0.3 + 0.7 * strength)
        style = {"facecolor": color, "alpha": 0.3 + 0.5 * strength, "pad": 1, "linewidth": 0}
        draw_text(axis, box, f"{names[label]} {detections.scores[i]:.1f}", style, fontsize=7, verticalalignment="top")
    axis.set_title("merged: summed confidence", fontsize=8)
    save(figure, path)


def detections(image: Tensor, detections: Detections, names: Sequence[str], title: str, path: str | Path) -> None:
    """Draw detections in the colours of their classes, stronger with higher scores."""
    height, width = image.shape[1:]
    longer = max(height, width)
    inches = min(max(12, longer / DPI), MAX_SIDE / DPI)  # the resolution of the image, within that of a screen
    figure = new_figure(inches * width / longer, inches * height / longer + 0.3)
    figure.suptitle(title)
    axis = figure.subplots()
    axis.set_axis_off()
    show(axis, image)
    fontsize = 9 if len(detections) <= 30 else 5
    for i in reversed(range(len(detections))):
        label, strength = int(detections.labels[i]), float(detections.scores[i] / detections.scores[0])
        box, color = detections.boxes[i].tolist(), f"C{label % 10}"
        draw_box(axis, box, color, linewidth=1 + strength, alpha=0.4 + 0.6 * strength)
        style = {"facecolor": "black", "edgecolor": color, "pad": 1}  # a grey class's colour may be the image's
        text = f"{names[label]} {detections.scores[i]:.2f}"
        draw_text(axis, box, text, style, fontsize=fontsize, verticalalignment="bottom")
    save(figure, path)


def comparison(
    image: Tensor, detections: Detections, objects: Boxes, names: Sequence[str], title: str, path: str | Path
) -> None:
    """Draw detections beside the annotated objects, in the colours of their classes, with the number of each class.

    names: of the labels of both.
    """
    detected = Boxes(detections.boxes, detections.labels)
    labels = torch.cat((detected.labels.cpu(), objects.labels.cpu())).unique().tolist()
    figure, axes = image_panels(image, 2, title)
    for axis, what, boxes in zip(axes, ("detected", "annotated"), (detected, objects), strict=True):
        show(axis, image)
        for box, label in zip(boxes.boxes.tolist(), boxes.labels.tolist(), strict=True):
            draw_box(axis, box, "black", linewidth=3)  # legible on any image
            draw_box(axis, box, f"C{label % 10}", linewidth=1.8)
        counts = [f"{names[label]} {int((boxes.labels == label).sum())}" for label in labels]
        axis.set_title(f"{what}: {', '.join(counts) or 'nothing'}", fontsize=10)
    legend = [axes[0].plot([], [], color=f"C{label % 10}", linewidth=3, label=names[label])[0] for label in labels]
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=min(len(legend), 8), fontsize=9)
    save(figure, path)
