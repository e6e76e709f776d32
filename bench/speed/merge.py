"""Merging of boxes on a CPU: against the paper's loop, NMS and weighted box fusion; growth: python -m bench.speed.merge

Needs the `bench` extra (ensemble-boxes). Everything is timed in one run, in turns.
"""

import argparse
import math
import multiprocessing
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from bench.common import forget_peak, kilobytes, write_results
from overfeat.measuring import seconds
from overfeat.ops import backend, merge_boxes

COMMAND = "python -m bench.speed.merge"
PLACES = 1575  # of six scales of the accurate net: the boxes of one image and class
GROUPS = 640  # 128 images, 5 classes
CROWD = 33337  # boxes in the case that a public tree-based merger reports 0.118 s for
GROWTH = (1000, 2000, 5000, 10000, 20000, 50000, 100000)
CANVAS = 500.0


def one_image(count: int = PLACES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes and scores of one class: two thirds around one object, the rest anywhere in an image of CANVAS pixels."""
    g = torch.Generator().manual_seed(seed)
    around = torch.rand(count, generator=g) < 2 / 3
    centre = torch.where(around[:, None], 250 + 8 * torch.randn(count, 2, generator=g),
                         CANVAS * torch.rand(count, 2, generator=g))  # fmt: skip
    side = torch.where(around[:, None], 160 * (0.08 * torch.randn(count, 2, generator=g)).exp(),
                       30 + 200 * torch.rand(count, 2, generator=g))  # fmt: skip
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=1).clamp(0, CANVAS)
    return boxes, torch.rand(count, generator=g)


def crowd(count: int, each: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes around count / each objects of 20 to 60 px, on a canvas that grows with their number."""
    g = torch.Generator().manual_seed(seed)
    objects = max(1, count // each)
    of = torch.randint(objects, (count,), generator=g)
    corner = (40 * math.sqrt(objects) * torch.rand(objects, 2, generator=g))[of] + 3 * torch.randn(
        count, 2, generator=g
    )
    side = (20 + 40 * torch.rand(objects, 1, generator=g))[of] * (0.1 * torch.randn(count, 2, generator=g)).exp()
    return torch.cat([corner, corner + side], dim=1), torch.rand(count, generator=g)


def against_others() -> dict:
    """One image, one class: the paper's loop, NMS and weighted box fusion on the same boxes."""
    from ensemble_boxes import nms, weighted_boxes_fusion

    warnings.filterwarnings("ignore", module="ensemble_boxes")
    boxes, scores = one_image()
    fractions, listed, labels = [(boxes / CANVAS).tolist()], [scores.tolist()], [[0] * len(boxes)]
    ways: dict[str, Callable] = {
        "merge_boxes": lambda: merge_boxes(boxes, scores),
        "weighted box fusion": lambda: weighted_boxes_fusion(fractions, listed, labels, iou_thr=0.55),
        "NMS of ensemble-boxes": lambda: nms(fractions, listed, labels, iou_thr=0.5),
    }
    found = {name: {**seconds(run, repeats=9), "results": _results(run())} for name, run in ways.items()}
    with backend("reference"):
        start = time.perf_counter()
        want = merge_boxes(boxes, scores)
        found["the paper's loop"] = {"median": time.perf_counter() - start, "results": len(want.boxes), "repeats": 1}
    got = merge_boxes(boxes, scores)
    found["equal to the loop"] = all(torch.equal(getattr(got, name), value) for name, value in vars(want).items())
    return found


def _results(found: object) -> int:
    return len(found[0]) if isinstance(found, tuple) else len(found.boxes)


def many_groups() -> dict:
    """As many images and classes as a batch of 128 images may have."""
    boxes, scores = (torch.cat(part) for part in zip(*(one_image(seed=s) for s in range(GROUPS)), strict=True))
    groups = torch.arange(GROUPS).repeat_interleave(PLACES)
    return seconds(lambda: merge_boxes(boxes, scores, groups), repeats=3)


def in_a_crowd(count: int) -> dict:
    """Time, and the memory that the process took for it, as told by a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_crowd, (count,))


def _crowd(count: int) -> dict:
    merge_boxes(*crowd(100))
    boxes, scores = crowd(count)
    forget_peak()
    before = kilobytes("VmRSS")
    results = len(merge_boxes(boxes, scores).boxes)
    megabytes = (kilobytes("VmHWM") - before) / 1024
    return {**seconds(lambda: merge_boxes(boxes, scores), repeats=5), "results": results, "megabytes": megabytes}


def exponent(times: dict[int, dict]) -> float:
    """The slope of a line through log time over log count."""
    x = torch.tensor([math.log(count) for count in times])
    y = torch.tensor([math.log(found["median"]) for found in times.values()])
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    growth = {count: in_a_crowd(count) for count in GROWTH}
    results = {
        "one image": against_others(),
        "groups": {"groups": GROUPS, "boxes": PLACES, **many_groups()},
        "crowd": {"boxes": CROWD, **in_a_crowd(CROWD)},
        "growth": {"times": growth, "exponent": exponent(growth)},
    }
    for name, found in results["one image"].items():
        print(name, found)
    print({key: value for key, value in results.items() if key != "one image"})
    write_results("speed-merge", COMMAND, results)


if __name__ == "__main__":
    main()
