"""Images of any size, down to a pixel, at random scales, strides and memory limits: equal to one tile, or refused."""

import functools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import refused
from torch import nn

import overfeat
from overfeat.data.resize import resize
from overfeat.dense.config import DenseConfig, SixScales
from overfeat.dense.grid import grids
from overfeat.errors import InputError
from overfeat.models.architecture import ARCHITECTURES

CASES = 40
SIDES = (1, 2, 3, 7, 20, 31, 46, 47, 48, 60, 83, 120)
LIMITS = (1, 1 << 12, 1 << 16, 1 << 18, 1 << 20, 1 << 22)  # bytes
MAX_PIXELS = 60_000  # of all scales; larger cases take too long


@functools.cache
def net(name: str) -> Any:
    """The small net with few channels, or a module with a window of unequal sides, with random weights."""
    torch.manual_seed(0)
    if name == "small":
        small = ARCHITECTURES["small"]
        convs = tuple(replace(conv, channels=4) for conv in small.convs)
        return overfeat.build(replace(small, name="thin small", convs=convs, hidden=(8,)), 3)
    layers = (nn.Conv2d(3, 4, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 6, 3))
    return overfeat.densify(nn.Sequential(*layers).eval(), window=(20, 28), std=50.0)


def check(rng: random.Random, folder: Path) -> str:
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    height, width = rng.choice(SIDES), rng.choice((*SIDES, 3000) if rng.random() < 0.05 else SIDES)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    image = image.float() + 1 if rng.random() < 0.3 else image
    check_resize(image, (rng.choice(SIDES), rng.choice(SIDES)))
    options = {"scales": scales(rng), "flip": rng.random() < 0.3, "stride": rng.choice(("fine", "coarse"))}
    chosen = net(rng.choice(("small", "module")))
    try:
        maps = evaluated(chosen, image, options)
    except InputError as error:
        return refused(error)
    if maps is None:
        return "too large to try"
    classes = torch.stack([scores.flatten(2).amax(2) for scores in maps]).mean(0)
    torch.testing.assert_close(overfeat.classify(chosen, image, **options), classes, rtol=1e-4, atol=1e-6)
    try:
        tiled = overfeat.score_maps(chosen, image, **options, memory_limit=rng.choice(LIMITS))
    except InputError as error:
        return refused(error) + " in little memory"
    for one, other in zip(tiled, maps, strict=True):
        torch.testing.assert_close(one.scores, other, rtol=1e-4, atol=1e-6)
    return "equal in tiles"


def scales(rng: random.Random) -> Any:
    """Random scales: the default, some of the six, factors, and sizes."""
    kind = rng.choice(("default", "six", "factors", "sizes"))
    if kind == "six":
        return rng.choice(("six", SixScales(1), SixScales(2, 1)))
    if kind == "default":
        return None
    count = rng.randint(1, 2)
    if kind == "factors":
        return [rng.choice((1.0, 0.5, 2.0, 1 / 3, 1e-9, rng.uniform(0.05, 3))) for _ in range(count)]
    return [(rng.choice(SIDES), rng.choice(SIDES)) for _ in range(count)]


def evaluated(chosen: Any, image: torch.Tensor, options: dict[str, Any]) -> list[torch.Tensor] | None:
    """The score maps, whose windows lie in the image; None for too many pixels."""
    size = (image.shape[1], image.shape[2])
    if sum(grid.scaled[0] * grid.scaled[1] for grid in grids(chosen, size, DenseConfig(**options))) > MAX_PIXELS:
        return None
    maps = overfeat.score_maps(chosen, image, **options)
    for each in maps:
        assert each.scores.shape == (1, 3, *each.grid.shape) and each.scores.numel(), each.grid
        assert each.scores.isfinite().all() and 0 <= each.scores.min() and each.scores.max() <= 1
    return [each.scores for each in maps]


def check_resize(image: torch.Tensor, size: tuple[int, int]) -> None:
    """A resized image has the size and dtype, and no value beyond those of the image."""
    resized = resize(image[None], size)
    assert resized.shape == (1, 3, *size) and resized.dtype == image.dtype
    assert image.min() - 0.01 <= resized.min() and resized.max() <= image.max() + 0.01
