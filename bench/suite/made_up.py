"""Boxes that are merged: those of one image and class, and crowds."""

import math

import torch
from torch import Tensor

PLACES = 1575  # of six scales of the accurate net: the boxes of one image and class
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


def images(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and groups of so many images."""
    boxes, scores = (torch.cat(part) for part in zip(*(one_image(seed=s) for s in range(count)), strict=True))
    return boxes, scores, torch.arange(count).repeat_interleave(PLACES)


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
