"""Average precisions of a data set, by every protocol."""

import math
from collections.abc import Collection, Sequence

import torch

from overfeat.metrics.average_precision import PROTOCOLS, Boxes, coco, curves, mean_average_precision


def average_precisions(
    found: Sequence[Boxes], truths: Sequence[Boxes], names: list[str], ignore_list: Collection[tuple[int, str]] = ()
) -> dict:
    """The figures of `evaluate_detection`, from what was found; ignore_list: (place in found, class)."""
    listed = {(image, names.index(name)) for image, name in ignore_list if name in names}
    of_classes = {
        protocol: curves(found, truths, len(names), protocol, listed if protocol == "ilsvrc" else ())
        for protocol in PROTOCOLS
    }
    figures, of_coco = coco(found, truths, len(names))
    counts = torch.cat([truth.labels for truth in truths]).bincount(minlength=len(names)).tolist()
    with_objects = [label for label, count in enumerate(counts) if count]
    ap = {
        names[label]: {
            "objects": counts[label],
            **{protocol: known_or_none(of_classes[protocol][label].average) for protocol in PROTOCOLS},
            "coco": known_or_none(of_coco[label]),
        }
        for label in with_objects
    }
    return {
        "objects": sum(counts),
        "map": {
            **{protocol: known_or_none(mean_average_precision(found)) for protocol, found in of_classes.items()},
            "coco": known_or_none(figures["AP"]),
        },
        "ap": ap,
        "coco": {name: known_or_none(value) for name, value in figures.items()},
        "curves": {
            names[label]: {
                key: getattr(of_classes["voc"][label], key).tolist()
                for key in ("scores", "recall", "precision", "right")
            }
            for label in with_objects
            if of_classes["voc"][label].objects
        },
    }


def known_or_none(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def precision_table(results: dict) -> str:
    """What `evaluate_detection` gives as aligned lines of text, in percent."""
    rows = [*results["ap"].items(), ("mean of all", {"objects": results["objects"], **results["map"]})]
    columns, width = (*PROTOCOLS, "coco"), max(len(name) for name, _ in rows)
    lines = [f"{'':{width}}  objects" + "".join(f"{name:>9}" for name in columns)]
    for name, row in rows:
        figures = ("" if row[c] is None else f"{100 * row[c]:.2f}" for c in columns)
        lines.append(f"{name:{width}}  {row['objects']:7}" + "".join(f"{figure:>9}" for figure in figures))
    return "\n".join(lines)
