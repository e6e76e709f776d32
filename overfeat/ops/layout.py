"""How results lie in memory: maps as flat features, flat features as maps, memory formats."""

from collections.abc import Sequence

import torch
from torch import Tensor


def result_shapes(maps: Sequence[Tensor], kernel: int, size: int) -> list[tuple[int, int, int]]:
    """(N, rows, columns) of the result of each map."""
    reach = kernel * size - 1
    return [(m.shape[0], m.shape[2] - reach, m.shape[3] - reach) for m in maps]


def as_rows(maps: Tensor, whole: bool = False) -> Tensor:
    """[N, C, H, W] as one row a place, [N*H*W, C]; or, `whole`, one a map, [N, H*W*C]."""
    last = maps.permute(0, 2, 3, 1)
    return last.reshape(maps.shape[0], -1) if whole else last.reshape(-1, maps.shape[1])


def concat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def as_maps(rows: Tensor, maps: Sequence[Tensor], kernel: int, size: int) -> list[Tensor]:
    """The rows as a map for each of `maps`, in its memory format; channels-last ones share memory."""
    results, start = [], 0
    for m, (n, height, width) in zip(maps, result_shapes(maps, kernel, size), strict=True):
        count = n * height * width
        part = rows[start : start + count].view(n, height, width, rows.shape[1]).permute(0, 3, 1, 2)
        results.append(part.contiguous(memory_format=format_of(m)))
        start += count
    return results


def format_of(maps: Tensor) -> torch.memory_format:
    """Channels-last maps give channels-last results; all else comes out contiguous."""
    last = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
