"""Shapes and memory formats: maps as flat features, flat features as maps."""

from collections.abc import Sequence

import torch
from torch import Tensor


def window_size(weight: Tensor, size: int, tap: int | None = None) -> tuple[int, int]:
    """Rows and columns of the maps that one output of the skip classifier with this weight depends on."""
    tap = size if tap is None else tap
    return size + (weight.shape[2] - 1) * tap, size + (weight.shape[3] - 1) * tap


def output_shapes(
    maps: Sequence[Tensor], weight: Tensor, size: int, tap: int | None = None
) -> list[tuple[int, int, int]]:
    """(N, height, width) of the skip classifier's output for each of the maps."""
    rows, columns = window_size(weight, size, tap)
    return [(m.shape[0], m.shape[2] - rows + 1, m.shape[3] - columns + 1) for m in maps]


def flatten_positions(maps: Tensor) -> Tensor:
    """Maps [N, C, H, W] as flat features [N*H*W, C]."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def flatten_maps(maps: Tensor) -> Tensor:
    """Maps [N, C, H, W] as one vector each, channels last: [N, H*W*C]."""
    return maps.permute(0, 2, 3, 1).flatten(1)


def concat(chunks: Sequence[Tensor]) -> Tensor:
    """torch.cat that does not copy a single tensor."""
    return chunks[0] if len(chunks) == 1 else torch.cat(list(chunks))


def unflatten_positions(flat: Tensor, maps: Sequence[Tensor], shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """Flat outputs [positions, O] as one map of (N, height, width) for each of `maps`, in its memory format.

    A view if it is channels-last.
    """
    results = []
    for m, chunk, (n, height, width) in zip(maps, flat.split([n * h * w for n, h, w in shapes]), shapes, strict=True):
        result = chunk.view(n, height, width, flat.shape[1]).permute(0, 3, 1, 2)
        results.append(result.contiguous(memory_format=memory_format_of(m)))
    return results


def in_transform() -> bool:
    """Whether a transform of torch.func is running; its tensors have no memory formats."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def memory_format_of(maps: Tensor) -> torch.memory_format:
    """The memory format of results for these maps: channels-last if they are, else contiguous."""
    if in_transform():
        return torch.contiguous_format
    channels_last = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def evaluation_format() -> torch.memory_format:
    """The memory format in which images are evaluated: channels-last where tensors have formats."""
    return torch.preserve_format if in_transform() else torch.channels_last


def channels_last(maps: Tensor) -> Tensor:
    """Maps in the channels-last format; also of one image, whose strides else leave PyTorch a choice.

    Traced maps stay as they are: the format is the runtime's choice.
    """
    if in_transform() or torch.compiler.is_compiling():
        return maps
    maps = maps.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = maps.shape
    return maps.as_strided(maps.shape, (height * width * channels, 1, width * channels, channels))


def empty_in_format(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of a shape, with the dtype, device and memory format of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format_of(like))
