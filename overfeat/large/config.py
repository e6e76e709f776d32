"""Which part of a large image is evaluated, and how it is read. Imports no torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from overfeat.errors import ArgumentError, check_flag, is_whole
from overfeat.options import Options, option

Region = tuple[int, int, int, int]  # (x, y, width, height) in pixels of the finest level


def check_region(region: object) -> Region | None:
    """The region as whole numbers; ArgumentError for anything else."""
    values = region.tolist() if hasattr(region, "tolist") else region
    if values is None:
        return None
    if isinstance(values, Sequence) and len(values) == 4 and all(map(is_whole, values)):
        x, y, width, height = map(int, values)
        if x >= 0 and y >= 0 and width > 0 and height > 0:
            return x, y, width, height
    raise ArgumentError("region", f"must be (x, y, width, height) in pixels, whole numbers, not {region!r}")


@dataclass(frozen=True)
class LargeConfig(Options):
    """What of a large image is evaluated. Ordinary images have one level, and are evaluated whole.

    Attributes:
        region: (x, y, width, height) in pixels of the finest level, evaluated as if it were cropped; None: all.
        level: Of the pyramid, 0 being the finest: the resolution that scale factors refer to.
        mask: Whether windows that see background alone, near-white or near-black without colour, are left out.
        strict: Whether a damaged tile of the file ends the run; else windows on it are left out.
    """

    region: Region | None = None
    level: int = option(
        0,
        "level of the pyramid that scale factors refer to; 0 is the finest. Boxes are in pixels of level 0",
        minimum=0,
    )
    mask: bool = option(
        False, "leave out windows that see background alone: near-white or near-black, and without colour"
    )
    strict: bool = option(False, "stop at a damaged tile of the file; else windows on it are left out, and it is named")

    def __post_init__(self) -> None:
        object.__setattr__(self, "region", check_region(self.region))
        if not is_whole(self.level):
            raise ArgumentError("level", f"must be a whole number from 0 up, not {self.level!r}")
        for name in ("mask", "strict"):
            check_flag(name, getattr(self, name))
        super().__post_init__()


def as_large_config(large: object) -> LargeConfig:
    """The options as they are, the defaults for None; TypeError for anything else."""
    if large is None:
        return LargeConfig()
    if not isinstance(large, LargeConfig):
        raise TypeError(f"large must be an overfeat.large.LargeConfig, not {type(large).__name__}")
    return large


def as_path(argument: str, path: object) -> Path:
    """The value of an argument that is a path; TypeError for anything else."""
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a path, not {type(path).__name__}")
    return Path(name)
