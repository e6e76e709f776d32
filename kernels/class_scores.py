"""Softmax of every row and each class's best over runs of rows: the vote of a scale, in one pass (3.3, i)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels.maps import Kept

CHUNK = 16  # rows that one program looks at
FEW_CLASSES = 256  # classes that a program of the second pass looks at


@triton.jit
def chunk_softmax_max_kernel(
    scores,  # [M, classes], any row stride: logits
    chunks,  # int64 [programs, 2]: first row of a chunk, and the row behind its last
    best,  # float32 [programs, classes]
    classes,
    stride,  # elements between rows
    BLOCK: tl.constexpr,  # classes, rounded up to a power of two
):
    i_chunk = tl.program_id(0).to(tl.int64)
    o_class = tl.arange(0, BLOCK)
    inside = o_class < classes
    most = tl.full([BLOCK], -float("inf"), tl.float32)
    for row in range(tl.load(chunks + 2 * i_chunk), tl.load(chunks + 2 * i_chunk + 1)):
        score = tl.load(scores + row * stride + o_class, mask=inside, other=-float("inf")).to(tl.float32)
        power = tl.exp(score - tl.max(score, axis=0))
        most = tl.maximum(most, power / tl.sum(power, axis=0), propagate_nan=tl.PropagateNan.ALL)
    tl.store(best + i_chunk * classes + o_class, most, mask=inside)


@triton.jit
def segment_max_kernel(
    best,  # float32 [chunks, classes]
    runs,  # int64 [programs, 2]: first chunk of a run, and the chunk behind its last
    result,  # float32 [programs, classes]
    classes,
    BLOCK: tl.constexpr,
):
    i_run = tl.program_id(0).to(tl.int64)
    o_class = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o_class < classes
    most = tl.full([BLOCK], -float("inf"), tl.float32)
    for chunk in range(tl.load(runs + 2 * i_run), tl.load(runs + 2 * i_run + 1)):
        value = tl.load(best + chunk * classes + o_class, mask=inside, other=0.0)
        most = tl.maximum(most, value, propagate_nan=tl.PropagateNan.ALL)
    tl.store(result + i_run * classes + o_class, most, mask=inside)


def forward(scores: Tensor, counts: list[int]) -> Tensor:
    """[M, classes] -> float32 [len(counts), classes]: see ops.class_scores. Every count is at least 1."""
    classes = scores.shape[1]
    if scores.stride(1) != 1:
        scores = scores.contiguous()
    chunks, runs = _tables(tuple(counts), scores.device)
    best = torch.empty(len(chunks), classes, dtype=torch.float32, device=scores.device)
    result = torch.empty(len(counts), classes, dtype=torch.float32, device=scores.device)
    block = triton.next_power_of_2(classes)
    if result.numel():
        chunk_softmax_max_kernel[(len(chunks),)](scores, chunks, best, classes, scores.stride(0), BLOCK=block,
                                     num_warps=max(1, min(16, block // 256)))  # fmt: skip
        segment_max_kernel[(len(counts), triton.cdiv(classes, FEW_CLASSES))](
            best, runs, result, classes, BLOCK=FEW_CLASSES
        )
    return result


@Kept
def _tables(counts: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """chunks and runs of the kernels above."""
    chunks, runs, row = [], [], 0
    for count in counts:
        first = len(chunks)
        chunks += [(start, min(start + CHUNK, row + count)) for start in range(row, row + count, CHUNK)]
        runs.append((first, len(chunks)))
        row += count
    table = [torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, 2).to(device) for rows in (chunks, runs)]
    return table[0], table[1]
