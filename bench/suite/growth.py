"""How time and memory of overfeat.fast grow with image area, scales, batch size, classes, boxes and groups of boxes."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.suite.machine import Machine
from bench.suite.synthetic import NUM_BOXES, boxes_of_images, boxes_of_many_objects
from overfeat.classification.predict import classify
from overfeat.dense.config import SixScales
from overfeat.models.overfeat import OverFeat, build
from overfeat.ops import merge_boxes

SIDES = (320, 640, 1280, 2560)  # of square images
SCALES = (1, 2, 3, 4, 5, 6)
BATCHES = (1, 2, 4, 8, 16)
CLASSES = (10, 100, 1000, 10000)
BOXES = (1000, 3000, 10000, 33337, 100000)  # 33,337: a public tree-based merger reports 0.118 s for as many
GROUPS = (10, 40, 160, 640)  # 640: 128 images, 5 classes
Points = list[tuple[float, Callable[[], object]]]


def sweeps(machine: Machine) -> Iterator[tuple[str, str, Points]]:
    """(what is run, the unit of its size, (size, function to time) per size): the small net, and merging."""

    def net(classes: int) -> OverFeat:
        torch.manual_seed(0)
        return build("small", classes).eval().to(machine.device)

    def image(side: int, count: int = 1) -> Tensor:
        return machine.pixels(count, side, side)

    def merging(make: Callable[[int], tuple[Tensor, ...]], count: int) -> Callable[[], object]:
        return partial(merge_boxes, *(t.to(machine.device) for t in make(count)))

    run, ten = partial(classify, flip=False), net(10)
    of_area = [(side**2 / 1e6, partial(run, ten, image(side), scales=[1.0])) for side in SIDES]
    yield "classify at the image's own size", "area, megapixels", of_area
    large = image(640)
    of_scales = [(n, partial(run, ten, large, scales=SixScales(*SCALES[:n]))) for n in SCALES]
    yield "classify, scales 1 to n", "number of scales", of_scales
    yield "classify, six scales", "number of images", [(n, partial(run, ten, image(400, n))) for n in BATCHES]
    of_classes = [(n, partial(run, net(n), large)) for n in CLASSES]
    yield "classify, six scales", "number of classes", of_classes
    yield "merge_boxes, many objects", "number of boxes", [(n, merging(boxes_of_many_objects, n)) for n in BOXES]
    yield (
        f"merge_boxes, {NUM_BOXES} boxes a group",
        "number of groups",
        [(n, merging(boxes_of_images, n)) for n in GROUPS],
    )
