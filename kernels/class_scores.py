"""Softmax of every row of logits and each class's maximum over segments of rows, in one pass (section 3.3, i)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from overfeat.kernels.maps import DeviceTableCache

CHUNK_ROWS = 16  # rows of one program
CLASS_BLOCK = 256  # classes of a program of the second pass


@triton.jit
def chunk_softmax_max_kernel(
    logits,  # [M, num_classes], rows stride_m apart, columns contiguous; float16, bfloat16 or float32
    chunks,  # int64 [programs, 2]: first row of a chunk, and one past its last
    chunk_max,  # float32 [programs, num_classes], written
    num_classes,
    stride_m,  # of logits
    BLOCK: tl.constexpr,  # num_classes, rounded up to a power of two
):
    """Each class's largest softmax over a chunk of rows; computed in float32."""
    i_chunk = tl.program_id(0).to(tl.int64)
    o_class = tl.arange(0, BLOCK)
    m_class = o_class < num_classes
    maximum = tl.full([BLOCK], -float("inf"), tl.float32)
    for row in range(tl.load(chunks + 2 * i_chunk), tl.load(chunks + 2 * i_chunk + 1)):
        logit = tl.load(logits + row * stride_m + o_class, mask=m_class, other=-float("inf")).to(tl.float32)
        power = tl.exp(logit - tl.max(logit, axis=0))
        maximum = tl.maximum(maximum, power / tl.sum(power, axis=0), propagate_nan=tl.PropagateNan.ALL)
    tl.store(chunk_max + i_chunk * num_classes + o_class, maximum, mask=m_class)


@triton.jit
def segment_max_kernel(
    chunk_max,  # float32 [chunks, num_classes], from chunk_softmax_max_kernel
    segments,  # int64 [programs, 2]: first chunk of a segment, and one past its last
    result,  # float32 [programs, num_classes], written
    num_classes,
    BLOCK: tl.constexpr,
):
    """Each class's maximum over the chunks of a segment, in float32."""
    i_segment = tl.program_id(0).to(tl.int64)
    o_class = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_class = o_class < num_classes
    maximum = tl.full([BLOCK], -float("inf"), tl.float32)
    for chunk in range(tl.load(segments + 2 * i_segment), tl.load(segments + 2 * i_segment + 1)):
        value = tl.load(chunk_max + chunk * num_classes + o_class, mask=m_class, other=0.0)
        maximum = tl.maximum(maximum, value, propagate_nan=tl.PropagateNan.ALL)
    tl.store(result + i_segment * num_classes + o_class, maximum, mask=m_class)


def forward(logits: Tensor, counts: list[int]) -> Tensor:
    """[M, num_classes] -> float32 [len(counts), num_classes]: see ops.class_scores. Every count is at least 1."""
    num_classes = logits.shape[1]
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    chunks, segments = _tables(tuple(counts), logits.device)
    chunk_max = torch.empty(len(chunks), num_classes, dtype=torch.float32, device=logits.device)
    result = torch.empty(len(counts), num_classes, dtype=torch.float32, device=logits.device)
    block = triton.next_power_of_2(num_classes)
    if result.numel():
        chunk_softmax_max_kernel[(len(chunks),)](
            logits, chunks, chunk_max, num_classes, logits.stride(0), BLOCK=block,
            num_warps=max(1, min(16, block // 256)),
        )  # fmt: skip
        segment_max_kernel[(len(counts), triton.cdiv(num_classes, CLASS_BLOCK))](
            chunk_max, segments, result, num_classes, BLOCK=CLASS_BLOCK
        )
    return result


@DeviceTableCache
def _tables(counts: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """chunks and segments of the kernels above."""
    chunks: list[tuple[int, int]] = []
    segments: list[tuple[int, int]] = []
    row = 0
    for count in counts:
        first = len(chunks)
        chunks += [(start, min(start + CHUNK_ROWS, row + count)) for start in range(row, row + count, CHUNK_ROWS)]
        segments.append((first, len(chunks)))
        row += count
    tables = [torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, 2).to(device) for rows in (chunks, segments)]
    return tables[0], tables[1]
