"""Synthetic boxes, and merging them: those of one image and class, of several images, and of many objects."""

import math

import torch
from torch import Tensor

from overfeat.ops import merge_boxes

NUM_BOXES = 1575  # positions of the accurate net at six scales: the boxes of one image and class
IMAGE_SIZE = 500.0


def boxes_of_one_class(count: int = NUM_BOXES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes [count, 4] and scores [count]: two thirds around one object, the rest anywhere in the image."""
    g = torch.Generator().manual_seed(seed)
    around = torch.rand(count, generator=g) < 2 / 3
    centre = torch.where(around[:, None], 250 + 8 * torch.randn(count, 2, generator=g),
                         IMAGE_SIZE * torch.rand(count, 2, generator=g))  # fmt: skip
    side = torch.where(around[:, None], 160 * (0.08 * torch.randn(count, 2, generator=g)).exp(),
                       30 + 200 * torch.rand(count, 2, generator=g))  # fmt: skip
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=1).clamp(0, IMAGE_SIZE)
    return boxes, torch.rand(count, generator=g)


def boxes_of_images(count: int, each: int = NUM_BOXES) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and groups (image indices) of `count` images."""
    of_images = [boxes_of_one_class(each, seed) for seed in range(count)]
    boxes, scores = (torch.cat(tensors) for tensors in zip(*of_images, strict=True))
    return boxes, scores, torch.arange(count).repeat_interleave(each)


def boxes_of_many_objects(count: int, each: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes around count / each objects of 20 to 60 px, in an image whose size grows with their number."""
    g = torch.Generator().manual_seed(seed)
    objects = max(1, count // each)
    of = torch.randint(objects, (count,), generator=g)
    corner = (40 * math.sqrt(objects) * torch.rand(objects, 2, generator=g))[of]
    corner = corner + 3 * torch.randn(count, 2, generator=g)
    side = (20 + 40 * torch.rand(objects, 1, generator=g))[of] * (0.1 * torch.randn(count, 2, generator=g)).exp()
    return torch.cat([corner, corner + side], dim=1), torch.rand(count, generator=g)


def merged(*boxes: Tensor) -> list[Tensor]:
    """Boxes and scores after `merge_boxes` of these boxes, scores and groups."""
    result = merge_boxes(*boxes)
    return [result.boxes, result.scores]
