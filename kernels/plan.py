"""A launch of one of the GEMMs of the classifier's first layer, as data."""

from dataclasses import dataclass
from typing import Literal

import torch

Gemm = Literal["forward", "weight"]  # the output, the gradient of the weight; that of the maps has no variants
Pool = Literal["separate", "fused"]
# direct: our implicit GEMM, operands through pointers; descriptor: the same, the weight through a tensor descriptor;
# im2col: windows gathered into a buffer, the GEMM by the library; filter3, filter4: minimal filtering, 3x3 or 4x4
# outputs at a time.
Variant = Literal["direct", "descriptor", "im2col", "filter3", "filter4"]
Precision = Literal["ieee", "tf32"]
ANY = 1 << 62  # the maximum of the last entry in a table by maximum


@dataclass(frozen=True)
class Tile:
    """The m x n tile that one program computes at a time, k summands a step; group_m rows of tiles share the cache.

    `programs` run on each multiprocessor.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    group_m: int = 8
    programs: int = 1

    def options(self) -> dict[str, int]:
        """The kernel's keyword arguments."""
        return {
            "BLOCK_M": self.m, "BLOCK_N": self.n, "BLOCK_K": self.k, "GROUP_M": self.group_m,
            "num_warps": self.warps, "num_stages": self.stages,
        }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A launch.

    Attributes:
        tile: the tile of a program.
        num_programs: programs of the grid; they are persistent.
        split_k: programs that share a tile of the last wave, each with a part of the sum.
        even_k: tile.k divides the channels, so that no step needs a mask.
        pool: a separate pass, or fused into the GEMM's loads.
        precision: of float32 GEMMs.
        variant: how the GEMM is computed; the rest is of direct and descriptor.
    """

    tile: Tile
    num_programs: int
    split_k: int
    even_k: bool
    pool: Pool
    precision: Precision
    variant: Variant = "direct"


def arithmetic(dtype: torch.dtype, precision: str) -> str:
    """The kind of arithmetic: "16 bit", or for float32 the precision of GEMMs."""
    return precision if dtype == torch.float32 else "16 bit"
