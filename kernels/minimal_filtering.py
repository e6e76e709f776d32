"""The classifier's first layer by minimal filtering (Lavin and Gray, arXiv 1509.09308): 3 to 4 times less arithmetic.

The tap*tap phases of a pooled map share one dense k x k kernel. A tile of t x t positions of a phase gives m x m of its
outputs, t = m + k - 1: its positions are transformed (filter_transforms.py), multiplied by the transformed weight in
t*t GEMMs of the library, and transformed to outputs. For k = 5 that is 3.2 times (m = 3) or 4 times (m = 4) fewer
multiplications, less what tiles overhang; the transformed weight has t*t/k/k times as many values.

Operands and results of the GEMMs are float16, sums float32: accurate enough for bfloat16 nets. Largest and RMS errors
of F(m, k), m x m outputs of k x k kernels, as in bench/tolerance.py, which allows 6e-2 and 8e-3 (simulated: 1024
channels, 65,000 outputs, against float64; maps and outputs in bfloat16):

    maps                            F(3, 5)            F(4, 5)            F(4, 3)            direct
    after ReLU and 3 x 3 pooling    8.0e-3   1.7e-3    1.2e-2   2.0e-3    4.8e-3   1.3e-3    3.9e-3   1.2e-3
    after ReLU                      2.1e-2   3.3e-3    5.2e-2   5.3e-3    1.2e-2   1.8e-3
    heavy-tailed (Student, 2.5)     2.9e-2   3.1e-3    5.1e-2   5.3e-3    1.4e-2   1.9e-3
    white noise                     2.9e-2   3.8e-3    4.0e-2   6.3e-3    1.3e-2   2.1e-3

So tiles of 8 x 8 positions, as of F(4, 5), are close to the limit for some maps: `launch.choose` takes them by override
only.
Maps and weight are scaled by powers of two so that nothing overflows, whatever their values. If a map or the weight has
NaN or infinity, the direct kernel writes all outputs; so it does if the weight has changed unnoticed by torch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from overfeat.kernels import direct, launch, offset_pool
from overfeat.kernels.cost_model import FILTER_SIZES
from overfeat.kernels.filter_transforms import check_weight_kernel, filter_input_kernel, filter_output_kernel
from overfeat.kernels.library_gemm import float32_sums
from overfeat.kernels.maps import DeviceTableCache, Shape
from overfeat.kernels.plan import Plan
from overfeat.kernels.problem import Problem
from overfeat.toom_cook import both_axes, transforms

# Interpolation points besides infinity, by t: those with the smallest RMS error for white noise in a search over
# multiples of 1/4.
POINTS = {
    5: "1/2 -1/2 5/4 -5/4",
    6: "0 3/4 -3/4 3/2 -3/2",
    7: "1/4 -1/4 3/4 -3/4 2 -2",
    8: "0 1/2 -1/2 1 -1 2 -2",
}
MAX_BYTES = 1 << 30  # of the transformed maps and the GEMMs' results: tiles are computed in chunks
# Values are at most 2 to these powers: what a float16 holds, and, of it, the transformed weight.
LARGEST, LARGEST_WEIGHT = 15, -2
BLOCK_C, BLOCK_O, WARPS = 128, 256, 4  # channels and outputs of a program of the transforms
CHECK_BLOCK, CHECK_WARPS = 1024, 8
WEIGHTS_AT_ONCE = 1 << 18  # transformed in float64


class FilterTiles(NamedTuple):
    """For every tile, where its positions and its outputs lie."""

    input: Tensor  # int64, its first position in the pooled maps
    input_pitch: Tensor  # int32, positions in a row of its map
    output: Tensor  # int64, its first output
    output_pitch: Tensor  # int32, outputs in a row of its map
    rows: Tensor  # int32, rows of outputs: m, or fewer at the border
    columns: Tensor  # int32


class Transformed(NamedTuple):
    """A weight for `forward`, and what shows whether it is still that of the layer."""

    weight: Tensor  # float16 [t*t, O, C]
    exponent: Tensor  # int32 [1]: it was scaled by 2 to this power
    offsets: Tensor  # int64 [S], of a sample of the layer's weight
    sample: Tensor  # [S], integers: its bits


@dataclass
class FilteredWeight:
    """A weight that was used before: its version, and its transforms by m."""

    version: tuple[int, int]  # and its address
    transformed: dict[int, Transformed] = field(default_factory=dict)
    users: set[tuple[int, torch.cuda.Stream]] = field(default_factory=set)  # m, and a stream that the allocator knows


_seen = WeakTensorKeyDictionary()  # FilteredWeight by weight
_pinned_by_graph = WeakTensorKeyDictionary()  # by weight, each Transformed that replays of a graph read


def is_ready(weight: Tensor, plan: Plan) -> bool:
    """Whether to use the plan's transform of this weight: it exists, or should be made.

    It is made at the second call with a weight that has not changed, so that no training step pays for it; at the
    first inside a `launch.override` block; and never while a CUDA graph is captured.
    """
    if weight.is_inference():  # such tensors have no version
        return False
    entry = _seen.get(weight)
    if entry is None or entry.version != _version(weight):
        _seen[weight] = FilteredWeight(_version(weight))
        return launch.active_override().variant == plan.variant and not _capturing(weight)
    return FILTER_SIZES[plan.variant] in entry.transformed or not _capturing(weight)


def clear_cache() -> None:
    """Free all transformed weights but those that a CUDA graph reads; they are also freed with their weight."""
    _seen.clear()


def forward(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, problem: Problem, plan: Plan, relu: bool
) -> Tensor:
    """[positions, O] in a result that has elements; only if `is_ready`: see skip_classifier.forward."""
    k, tap, channels, outputs = problem.kernel[0], problem.tap, problem.channels, problem.outputs
    device, m = problem.device, FILTER_SIZES[plan.variant]
    transformed = _transformed(weight, m)
    pooled = offset_pool.pooled_buffer(maps, problem.size)
    low, high = torch.aminmax(pooled)
    flag = torch.empty(1, dtype=torch.int32, device=device)
    check_weight_kernel[(1,)](
        _bits(weight), transformed.offsets, transformed.sample, flag, len(transformed.offsets), BLOCK=CHECK_BLOCK,
        num_warps=CHECK_WARPS,
    )  # fmt: skip
    output = weight.new_empty(problem.positions, outputs)
    tiles = filter_tiles(problem.pooled, k, m, tap, device)
    of_maps, of_outputs = _matrices(k, m, device)
    side, target = m + k - 1, _target(k, m, channels)
    bias_or_any = output if bias is None else bias.contiguous()
    for start, inputs, gemms in _chunks(len(tiles.rows), side, channels, outputs, device):
        count = inputs.shape[1]
        filter_input_kernel[(count, triton.cdiv(channels, BLOCK_C))](
            pooled, tiles.input, tiles.input_pitch, tiles.rows, tiles.columns, low, high, of_maps, inputs, start, count,
            channels, TARGET=target, SIDE=side, KERNEL=k, DILATION=tap, PARTS=len(of_maps), BLOCK_T=of_maps.shape[2],
            BLOCK_C=BLOCK_C, num_warps=WARPS,
        )  # fmt: skip
        with float32_sums():
            torch.bmm(inputs, transformed.weight.transpose(1, 2), out=gemms)
        filter_output_kernel[(count, triton.cdiv(outputs, BLOCK_O))](
            gemms, tiles.output, tiles.output_pitch, tiles.rows, tiles.columns, low, high, transformed.exponent,
            bias_or_any, of_outputs, flag, output, start, count, outputs, TARGET=target, SIDE=side, OUTPUT_SIDE=m,
            DILATION=tap, BIAS=bias is not None, RELU=relu, PARTS=len(of_outputs), BLOCK_M=of_outputs.shape[1],
            BLOCK_T=of_outputs.shape[2], BLOCK_O=BLOCK_O, num_warps=WARPS,
        )  # fmt: skip
    _direct_where(flag, pooled, weight, bias, problem, plan, relu, output)
    return output


def _direct_where(
    flag: Tensor, pooled: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, plan: Plan, relu: bool,
    output: Tensor,
) -> None:  # fmt: skip
    """Write the output by the direct kernel if the flag is set; the host does not wait for it."""
    as_one_map = pooled.view(1, 1, *pooled.shape).permute(0, 3, 1, 2)
    problem = replace(problem, shapes=problem.pooled, size=1)
    plan = replace(plan, variant="direct", split_k=1, pool="separate")
    direct.forward([as_one_map], weight, bias, problem, plan, relu, guard=flag, output=output)


def _chunks(
    tiles: int, side: int, channels: int, outputs: int, device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The first tile, transformed inputs and GEMM results of each chunk, about equal, in the same memory."""
    max_tiles = max(1, MAX_BYTES // (2 * side**2 * (channels + outputs)))
    size = triton.cdiv(tiles, triton.cdiv(tiles, max_tiles))
    buffers = [torch.empty(side**2 * size * n, dtype=torch.float16, device=device) for n in (channels, outputs)]
    for start in range(0, tiles, size):
        count = min(size, tiles - start)
        inputs, gemms = (
            buffer[: side**2 * count * n].view(side**2, count, n)
            for buffer, n in zip(buffers, (channels, outputs), strict=True)
        )
        yield start, inputs, gemms


@DeviceTableCache
def filter_tiles(shapes: tuple[Shape, ...], k: int, m: int, tap: int, device: torch.device) -> FilterTiles:
    """The tiles of pooled maps of these shapes, contiguous in one buffer, by map, image, and along each axis phase."""
    chunks, first_input, first_output = [], 0, 0
    for n, height, width in shapes:
        out_height, out_width = height - (k - 1) * tap, width - (k - 1) * tap
        starts_y, lengths_y = _starts(out_height, m, tap)
        starts_x, lengths_x = _starts(out_width, m, tap)
        image = torch.arange(n, device="cpu")[:, None, None]
        y, rows, x, columns = starts_y[:, None], lengths_y[:, None], starts_x, lengths_x
        table = (
            first_input + (image * height + y) * width + x, width,
            first_output + (image * out_height + y) * out_width + x, out_width, rows, columns,
        )  # fmt: skip
        chunks.append([torch.as_tensor(t).expand(table[0].shape).flatten() for t in table])
        first_input += n * height * width
        first_output += n * out_height * out_width
    joined = [torch.cat(chunk) for chunk in zip(*chunks, strict=True)]
    wide = ("input", "output")
    return FilterTiles._make(
        (t if name in wide else t.int()).to(device) for name, t in zip(FilterTiles._fields, joined, strict=True)
    )


def _starts(length: int, m: int, tap: int) -> tuple[Tensor, Tensor]:
    """Along an axis of so many outputs, the first output of every tile, and its outputs."""
    tiles = []
    for phase in range(min(tap, length)):
        count = triton.cdiv(length - phase, tap)
        tiles += [(phase + i * tap, min(m, count - i)) for i in range(0, count, m)]
    starts, lengths = torch.tensor(tiles, device="cpu").reshape(-1, 2).unbind(dim=1)
    return starts, lengths


@lru_cache
def balanced_transforms(k: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms of outputs, weight and maps for an axis, the GEMMs' operands scaled to the size of maps and weight.

    Returns:
        float64 [m, t], [t, k], [t, t]; the rows of the last two have norms of about 1, by powers of two.
    """
    of_outputs, of_weights, of_maps = transforms(m, k, tuple(Fraction(p) for p in POINTS[m + k - 1].split()))
    by_weight, by_map = (torch.exp2(-t.norm(dim=1).log2().round()) for t in (of_weights, of_maps))
    return of_outputs / (by_weight * by_map), of_weights * by_weight[:, None], of_maps * by_map[:, None]


@DeviceTableCache
def _matrices(k: int, m: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Transforms of the maps and of the outputs for the kernels: float16 [parts, rows, columns], padded."""
    of_outputs, _, of_maps = (both_axes(t) for t in balanced_transforms(k, m))
    size = triton.next_power_of_2(of_maps.shape[0])
    return _parts(of_maps, size, size).to(device), _parts(of_outputs, 16, size).to(device)


def _parts(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """A float64 matrix as the sum of two of float16, or one if that is exact."""
    high = matrix.half()
    low = (matrix - high.double()).half()
    parts = torch.zeros(2 if low.any() else 1, rows, columns, dtype=torch.float16, device="cpu")
    for part, values in zip(parts, (high, low), strict=False):
        part[: matrix.shape[0], : matrix.shape[1]] = values
    return parts


@lru_cache
def _target(k: int, m: int, channels: int) -> int:
    """The exponent that scaled maps stay below: neither they, transformed, nor the GEMMs' results overflow."""
    growth = 2 * math.log2(_largest_sum(balanced_transforms(k, m)[2]))
    return math.floor(min(LARGEST, LARGEST - LARGEST_WEIGHT - math.log2(channels)) - growth)


def _largest_sum(transform: Tensor) -> float:
    """How much a transform of an axis can enlarge a value."""
    return transform.abs().sum(dim=1).max().item()


def transform_weight(weight: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """[O, C, k, k] -> float16 [t*t, O, C], times 2 to the power of the second result, int32 [1]."""
    outputs, channels, k, _ = weight.shape
    weight, transform = weight.detach(), balanced_transforms(k, m)[1]
    low, high = torch.aminmax(weight)
    bound = torch.maximum(-low, high).double() * _largest_sum(transform) ** 2
    exponent = (LARGEST_WEIGHT - torch.frexp(bound).exponent).clamp(-1000, 1000).int().reshape(1)
    scale = (exponent.long() + 1023 << 52).view(torch.float64)  # exactly a power of two
    matrix = both_axes(transform).to(weight.device)
    result = torch.empty(len(matrix), outputs, channels, dtype=torch.float16, device=weight.device)
    step = max(1, WEIGHTS_AT_ONCE // (k * k * channels))
    for o in range(0, outputs, step):
        taps = weight[o : o + step].permute(2, 3, 0, 1).reshape(k * k, -1).double()
        result[:, o : o + step] = (matrix @ (taps * scale)).view(len(matrix), -1, channels)
    return result, exponent


def _transformed(weight: Tensor, m: int) -> Transformed:
    """The transform of a weight that `is_ready`; made if it does not exist."""
    entry = _seen[weight]
    if m not in entry.transformed:
        entry.transformed[m] = Transformed(*transform_weight(weight, m), *_sample(weight))
        if weight.is_cuda:  # other streams may use it from now on
            torch.cuda.current_stream().synchronize()
    transformed = entry.transformed[m]
    if _capturing(weight):
        _pinned_by_graph.setdefault(weight, []).append(transformed)
    elif weight.is_cuda and (user := (m, torch.cuda.current_stream())) not in entry.users:
        entry.users.add(user)
        for tensor in transformed:
            tensor.record_stream(user[1])
    return transformed


def _capturing(weight: Tensor) -> bool:
    return weight.is_cuda and torch.cuda.is_current_stream_capturing()


def _version(weight: Tensor) -> tuple[int, int]:
    return weight._version, weight.data_ptr()


def _bits(weight: Tensor) -> Tensor:
    return weight.detach().view(torch.int16 if weight.element_size() == 2 else torch.int32)


def _sample(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets and bits of sampled values: at least one for every output and every input channel."""
    outputs, channels, k_y, k_x = weight.shape
    o, c = torch.arange(outputs, device="cpu"), torch.arange(channels, device="cpu")
    outputs_of, channels_of = torch.cat([o, c * 7 % outputs]), torch.cat([o * 5 % channels, c])
    taps_of = torch.cat([o, c]) % (k_y * k_x)
    index = [t.to(weight.device) for t in (outputs_of, channels_of, taps_of // k_x, taps_of % k_x)]
    offsets = torch.stack([i * stride for i, stride in zip(index, weight.stride(), strict=True)]).sum(dim=0)
    return offsets, _bits(weight)[tuple(index)]
