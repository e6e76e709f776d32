"""Average precisions of a data set, by every protocol."""

import math
from collections.abc import Collection, Sequence

import torch

from overfeat.errors import printable
from overfeat.metrics.average_precision import PROTOCOLS, Boxes, Curve, curves, mean_average_precision
from overfeat.metrics.coco import coco


def average_precisions(
    detections: Sequence[Boxes],
    truths: Sequence[Boxes],
    names: list[str],
    ignore_list: Collection[tuple[int, str]] = (),
) -> dict:
    """Average precisions by PROTOCOLS and by "coco", the mean over IoUs of 0.5 to 0.95; in 0..1, None without objects.

    Args:
        detections, truths: Of each image; the detections with scores.
        names: Of the classes.
        ignore_list: (index of an image, class) pairs that ILSVRC's protocol, and it alone, does not count.

    Returns:
        {"objects": count, "map": {protocol: mean}, "ap": {class: {"objects": count, protocol: average}} of classes that
        have objects, "coco": COCO's figures by name, "curves": {class: {"scores", "recall", "precision", "right"}} by
        VOC's protocol}.
    """
    ignored = {(image, names.index(name)) for image, name in ignore_list if name in names}
    of_classes = {p: curves(detections, truths, len(names), p, ignored if p == "ilsvrc" else ()) for p in PROTOCOLS}
    figures, of_coco = coco(detections, truths, len(names))
    counts = torch.cat([truth.labels for truth in truths]).bincount(minlength=len(names)).tolist()
    with_objects = [label for label, count in enumerate(counts) if count]
    means = {protocol: mean_average_precision(every) for protocol, every in of_classes.items()}
    averages = {
        names[k]: {"objects": counts[k]}
        | none_for_nan({p: of_classes[p][k].average for p in PROTOCOLS} | {"coco": of_coco[k]})
        for k in with_objects
    }
    return {
        "objects": sum(counts),
        "map": none_for_nan(means | {"coco": figures["AP"]}),
        "ap": averages,
        "coco": none_for_nan(figures),
        "curves": {name: _lists(curve) for name, curve in zip(names, of_classes["voc"], strict=True) if curve.objects},
    }


def _lists(curve: Curve) -> dict[str, list]:
    return {key: getattr(curve, key).tolist() for key in ("scores", "recall", "precision", "right")}


def none_for_nan(values: dict[str, float]) -> dict[str, float | None]:
    """The same values for JSON, which has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def precision_table(results: dict) -> str:
    """The result of `average_precisions` as aligned lines of text, in percent."""
    rows = [
        *((printable(name), row) for name, row in results["ap"].items()),
        ("mean of all", {"objects": results["objects"], **results["map"]}),
    ]
    columns, width = (*PROTOCOLS, "coco"), max(len(name) for name, _ in rows)
    lines = [f"{'':{width}}  objects" + "".join(f"{name:>9}" for name in columns)]
    for name, row in rows:
        values = ("" if row[c] is None else f"{100 * row[c]:.2f}" for c in columns)
        lines.append(f"{name:{width}}  {row['objects']:7}" + "".join(f"{value:>9}" for value in values))
    return "\n".join(lines)
