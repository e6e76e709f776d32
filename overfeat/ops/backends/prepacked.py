"""Convolutions on a CPU with weights that are pre-packed once, for evaluation.

The first call with a weight runs eager PyTorch, which packs it for oneDNN at every call (or multiplies without); from
the second call on, for as long as the weight stays as it is, a packed form is used: oneDNN's own for a convolution or a
linear layer, the transformed weight of Winograd's minimal filtering (winograd.py), or, for few outputs, panels that are
read from memory once, in order (streamed.py), each made at its first use.
Layers of few float32 weights, which are bound by memory in PyTorch, run compiled code (compiled_conv.py), those of a
net without padding in one call; bfloat16 layers of such a net are computed in float32 and rounded once, after the last,
where the processor has no fast bfloat16 arithmetic. Weights that are not finite stay with eager PyTorch.

The packed forms need up to 3.5 times the memory of the weights (of small weights, 8 times); `clear_cache` frees them.
A weight that is changed as usual, in place or by an optimizer, is packed again. Changes that torch does not see,
through `.data` or NumPy, are noticed if they touch a whole output or input channel; after a change of single values
call `clear_cache`.
"""

import math
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.ops.backends import eager, numba_modules, winograd, workspace
from overfeat.ops.layout import channels_last, flatten_positions, output_shapes
from overfeat.ops.registry import Backend

MIN_WEIGHTS = 1 << 18  # of a layer that oneDNN's packing is for; eager PyTorch packs smaller ones in no time
USUAL_POSITIONS = 128  # that weights of linear layers are packed for; they serve any number


@dataclass
class PackedWeight:
    """A weight that was used before: its version, a sample of its values, and its packed forms."""

    weight: weakref.ref[Tensor]
    version: int
    sample: Tensor
    finite: bool | None = None
    packed: Tensor | None = None
    linear: Tensor | None = None
    transformed: Any = field(default=None, repr=False)  # the `multiply` of winograd.convolve
    panels: Any = field(default=None, repr=False)  # compiled_conv.Panels
    streamed: Any = field(default=None, repr=False)  # streamed.Panels
    compared: Any = field(default=None, repr=False)  # compiled_conv.Sample
    float32: Tensor | None = field(default=None, repr=False)  # a copy


_seen: dict[int, PackedWeight] = {}


def supports(op: str, device: torch.device, dtype: torch.dtype, num_classes: int | None = None) -> str | None:
    """Why packed weights do not run an op on such inputs, or None if they do."""
    if device.type != "cpu":
        return "pre-packed weights are for CPUs"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight"):
        return "this torch was built without oneDNN"
    if dtype == torch.float32:
        return None
    if dtype == torch.bfloat16:
        return None if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "the processor has no bfloat16 arithmetic"
    return f"{str(dtype).removeprefix('torch.')} weights are not packed; float32 and bfloat16 are"


def skip_classifier_flat(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool, tap: int
) -> Tensor:
    """See ops.skip_classifier_flat."""
    packed = _lookup(weight)
    if packed is None or not all(m.numel() for m in maps):
        return eager.skip_classifier_flat(maps, weight, bias, size, relu, tap)
    if (compiled := _compiled(maps[0], weight, bias)) is not None:
        window, panels = compiled.Window(1, tap, relu), _panels(compiled, packed, weight)
        counts = [n * height * width for n, height, width in output_shapes(maps, weight, size, tap)]
        flat = workspace.empty(sum(counts), len(weight))
        for m, out in zip(maps, flat.split(counts), strict=True):
            compiled.convolve(_offset_pool(channels_last(m), size), panels, bias, window, out)
        return flat
    pooled = [eager.offset_max_pool(m.contiguous(memory_format=torch.channels_last), size, 1) for m in maps]
    shapes = output_shapes(maps, weight, size, tap)
    count = sum(n * height * width for n, height, width in shapes) if min(map(min, shapes)) > 0 else 0
    if (streamed := _streamed(packed, maps, weight, bias, count)) is not None:
        return streamed[0].convolve(pooled, streamed[1], weight.shape[2:], tap, bias, relu)
    filtered = _winograd(pooled, packed, weight, bias, tap, relu)
    if filtered is not None:
        return filtered
    return torch.cat([flatten_positions(_direct(p, packed, weight, bias, 1, 0, tap, relu)) for p in pooled])


def convolution(
    maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int, relu: bool, dilation: int
) -> Tensor:
    """See ops.convolution."""
    if (compiled := _compiled(maps, weight, bias)) is not None:
        result = _convolution_compiled(compiled, maps, weight, bias, pad, compiled.Window(stride, dilation, relu))
        return eager.convolution(maps, weight, bias, stride, pad, relu, dilation) if result is None else result
    packed = None if weight.numel() < MIN_WEIGHTS else _lookup(weight)
    if packed is None or not maps.numel():
        return eager.convolution(maps, weight, bias, stride, pad, relu, dilation)
    maps = maps.contiguous(memory_format=torch.channels_last)
    if stride == 1:
        padded = F.pad(maps, (pad,) * 4) if pad else maps
        flat = _winograd([padded], packed, weight, bias, dilation, relu)
        if flat is not None:
            tiling = winograd.tiling(padded.shape, weight.shape[2], dilation)
            return flat.view(tiling.images, tiling.height, tiling.width, -1).permute(0, 3, 1, 2)
    return _direct(maps, packed, weight, bias, stride, pad, dilation, relu)


def convolution_pool(maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int, pool: int) -> Tensor:
    """See ops.convolution_pool."""
    if (compiled := _compiled(maps, weight, bias)) is None:
        return F.max_pool2d(convolution(maps, weight, bias, stride, pad, True, 1), pool)
    result = _convolution_compiled(compiled, maps, weight, bias, pad, compiled.Window(stride, 1, True, pool))
    return eager.convolution_pool(maps, weight, bias, stride, pad, pool) if result is None else result


def linear(flat: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """See ops.linear."""
    compiled = _compiled(flat, weight, bias, dim=2)
    packed = None if weight.numel() < MIN_WEIGHTS and compiled is None else _lookup(weight)
    if packed is None or not flat.numel():
        return eager.linear(flat, weight, bias, relu)
    if compiled is not None:
        count, channels = flat.shape
        maps = flat.contiguous().as_strided((1, channels, count, 1), (count * channels, 1, channels, channels))
        return compiled.convolve(maps, _panels(compiled, packed, weight), bias, compiled.Window(relu=relu)).flatten(
            0, 2
        )
    if flat.dim() == 2 and (streamed := _streamed(packed, [flat], weight, bias, len(flat))) is not None:
        return streamed[0].linear(flat, streamed[1], bias, relu)
    if packed.linear is None:
        matrix = weight.detach().flatten(1).contiguous()
        packed.linear = torch.ops.mkldnn._reorder_linear_weight(matrix, USUAL_POSITIONS)
    bias = None if bias is None else bias.contiguous()
    result = torch.ops.mkldnn._linear_pointwise(flat.contiguous(), packed.linear, bias, "none", [], "")
    return result.relu_() if relu else result


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """See ops.normalise."""
    result = None
    if images.dtype == dtype == torch.float32 and images.dim() == 4 and (compiled := _load_compiled()) is not None:
        result = compiled.normalise(images, mean, std)
    return eager.normalise(images, mean, std, dtype) if result is None else result


def chain(maps: Sequence[Tensor], layers: Sequence[Any]) -> tuple[Tensor, list[tuple[int, int, int]]] | None:
    """See ops.chain: compiled code, for small weights that were used before."""
    if maps[0].dtype == torch.bfloat16:
        return _chain_in_float32(maps, layers)
    chained = _chained(maps, layers)
    if chained is None:
        return None
    compiled, packed = chained
    shapes = compiled.chain_shapes(maps, packed)
    if shapes is None:
        return None
    flat = workspace.empty(sum(math.prod(shape) for shape in shapes), len(layers[-1].weight))
    for m, out in zip(maps, flat.split([math.prod(shape) for shape in shapes]), strict=True):
        compiled.chain(m, packed, out)
    return flat, shapes


def _chain_in_float32(
    maps: Sequence[Tensor], layers: Sequence[Any]
) -> tuple[Tensor, list[tuple[int, int, int]]] | None:
    """`chain` of bfloat16 maps and layers, rounded once, where the processor is not faster in bfloat16."""
    compiled = _load_compiled()
    if compiled is None or _computes_bfloat16_fast() or any(m.dtype != torch.bfloat16 for m in maps):
        return None
    for layer in layers:
        tensors = layer.weight, layer.bias
        if layer.weight.numel() >= MIN_WEIGHTS or any(t is not None and t.dtype != torch.bfloat16 for t in tensors):
            return None
    converted = [_in_float32(layer) for layer in layers]
    if None in converted:
        return None
    result = chain([m.float() for m in maps], converted)
    return None if result is None else (result[0].bfloat16(), result[1])


def _in_float32(layer: Any) -> Any:
    """A layer with a float32 copy of its weight, which is kept; None at the first call with the weight."""
    packed = _lookup(layer.weight)
    if packed is None:
        return None
    if packed.float32 is None:
        packed.float32 = layer.weight.detach().float()
        _lookup(packed.float32)  # it counts as used before, as the weight was
    return layer._replace(weight=packed.float32, bias=None if layer.bias is None else layer.bias.float())


def _chained(maps: Sequence[Tensor], layers: Sequence[Any]) -> tuple[ModuleType, list[Any]] | None:
    """The module of compiled convolutions and the packed layers, if it has all of them for such maps."""
    x, compiled, packed = maps[0], _load_compiled(), []
    if compiled is None:
        return None
    if any(m.dtype != x.dtype or m.device != x.device or m.dim() != 4 or not m.numel() for m in maps):
        return None
    channels, samples = {m.shape[1] for m in maps}, []
    for layer in layers:
        weight, bias = layer.weight, layer.bias
        if weight.numel() >= MIN_WEIGHTS or channels != {weight.shape[1]} or not _fits(x, weight, bias):
            return None
        known = _sampled(compiled, weight)
        if known is None:
            return None
        if layer.offset_pool > 1 and weight.shape[1] % compiled.LANES:
            return None
        window = compiled.Window(layer.stride, layer.dilation, layer.relu, layer.pool, layer.offset_pool)
        packed.append(compiled.Layer(_panels(compiled, known, weight), bias, window))
        samples.append(known.compared)
        channels = {weight.shape[0]}
    if not compiled.unchanged([layer.weight for layer in layers], samples):
        return None
    return compiled, packed


def _sampled(compiled: ModuleType, weight: Tensor) -> PackedWeight | None:
    """The packed forms of a finite weight of an earlier call, of which `compared` has yet to be compared."""
    known = _seen.get(id(weight))
    if known is None or known.weight() is not weight or known.version != weight._version:
        return None
    if known.compared is None or known.compared.strides != weight.stride():
        if _known(weight) is None or not known.finite:
            return None
        known.compared = compiled.sample(weight, _spot_check_index(tuple(weight.shape)))
    return known


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether dtypes, devices and the bias's length are right for compiled code, which reads memory without a check."""
    if not x.dtype == weight.dtype == torch.float32 or x.device != weight.device:
        return False
    return bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype and bias.device == x.device)


def _compiled(x: Tensor, weight: Tensor, bias: Tensor | None, dim: int = 4) -> ModuleType | None:
    """The module of compiled convolutions, where it is for such inputs: it reads memory without a check of shapes."""
    if weight.numel() >= MIN_WEIGHTS or x.dim() != dim or x.shape[1] != weight.shape[1] or not _fits(x, weight, bias):
        return None  # eager PyTorch says what is wrong
    return _load_compiled()


@lru_cache
def _load_streamed() -> ModuleType | None:
    """The module of compiled GEMMs."""
    if _load_compiled() is None:
        return None
    from overfeat.ops.backends import streamed

    return streamed


@lru_cache
def _load_compiled() -> ModuleType | None:
    if sys.maxsize < 2**32:
        return None  # addresses are int64
    simd = numba_modules.load("simd")
    return None if simd is None or simd.registers() is None else numba_modules.load("compiled_conv")


@lru_cache
def _computes_bfloat16_fast() -> bool:
    """simd.computes_bfloat16_fast, where there is compiled code."""
    from overfeat.ops.backends import simd

    return simd.computes_bfloat16_fast()


def _convolution_compiled(
    compiled: ModuleType, maps: Tensor, weight: Tensor, bias: Tensor | None, pad: int, window: Any
) -> Tensor | None:
    """A convolution by compiled code; None at the first call, and for arguments that eager PyTorch refuses."""
    if pad < 0 or min(window.stride, window.dilation, window.pool) < 1:
        return None
    packed = _lookup(weight) if maps.numel() else None
    if packed is None:
        return None
    maps = F.pad(maps, (pad,) * 4) if pad else maps
    panels = _panels(compiled, packed, weight)
    if not compiled.has_outputs(maps, panels, window):
        return None
    return compiled.convolve(maps, panels, bias, window).permute(0, 3, 1, 2)


def _offset_pool(maps: Tensor, size: int) -> Tensor:
    """`offset_max_pool` of channels-last float32 maps, in memory that is used again."""
    values = maps.permute(0, 2, 3, 1)
    for dim in (1, 2) if size > 1 else ():
        count = values.shape[dim] - size + 1
        first, second, *others = (values.narrow(dim, i, count) for i in range(size))
        values = torch.maximum(first, second, out=workspace.empty(*first.shape))
        for other in others:
            torch.maximum(values, other, out=values)
    return values.permute(0, 3, 1, 2)


def _panels(compiled: ModuleType, packed: PackedWeight, weight: Tensor) -> Any:
    if packed.panels is None:
        packed.panels = compiled.pack(weight)
    return packed.panels


def clear_cache() -> None:
    """Free all packed weights; they are also freed with their weight."""
    _seen.clear()
    workspace.clear()


def _lookup(weight: Tensor) -> PackedWeight | None:
    """The packed forms of this weight if it is finite and as at an earlier call; a new one is noted for the next."""
    if weight.is_inference() or not weight.numel():  # inference tensors have no version
        return None
    known = _known(weight)
    if known is not None:
        return known if known.finite else None  # infinity times the zeros of padding would be NaN
    key = id(weight)
    sample = weight.detach().take(_spot_check_index(tuple(weight.shape)))
    _seen[key] = PackedWeight(weakref.ref(weight, lambda _: _seen.pop(key, None)), weight._version, sample)
    return None


def _known(weight: Tensor) -> PackedWeight | None:
    """The packed forms of this weight if it is as at an earlier call."""
    known = _seen.get(id(weight))
    if known is None or known.weight() is not weight or known.version != weight._version:
        return None
    sample = weight.detach().take(_spot_check_index(tuple(weight.shape)))
    if not torch.equal(known.sample, sample):
        return None
    if known.finite is None:
        known.finite = bool(weight.detach().sum().isfinite())
    return known


@lru_cache(maxsize=64)
def _spot_check_index(shape: tuple[int, ...]) -> Tensor:
    """Numbers of sampled values: at least one for every output and every input channel."""
    outputs, channels, taps = shape[0], shape[1], shape[2] * shape[3]
    o, c = torch.arange(outputs), torch.arange(channels)
    output, channel = torch.cat([o, c * 7 % outputs]), torch.cat([o * 5 % channels, c])
    return (output * channels + channel) * taps + torch.cat([o % taps, c % taps])


def _direct(
    maps: Tensor, packed: PackedWeight, weight: Tensor, bias: Tensor | None, stride: int, pad: int, dilation: int,
    relu: bool,
) -> Tensor:  # fmt: skip
    """A convolution by oneDNN with the bias in its epilogue; not the ReLU, since oneDNN's turns NaN into 0."""
    arguments = [pad, pad], [stride, stride], [dilation, dilation], 1
    if packed.packed is None:
        plain = weight.detach().contiguous().to_mkldnn()
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        packed.packed = reorder(plain, *arguments, list(maps.shape))
    bias = None if bias is None else bias.contiguous()  # oneDNN assumes a contiguous bias
    result = torch.ops.mkldnn._convolution_pointwise(maps, packed.packed, bias, *arguments, "none", [], "")
    return result.relu_() if relu else result


def _streamed(
    packed: PackedWeight, maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, count: int
) -> tuple[ModuleType, Any] | None:
    """The module of compiled GEMMs and the weight for it, where so few outputs cost less than reading other forms."""
    if not all(_fits(m, weight, bias) and m.shape[1] == weight.shape[1] for m in maps):
        return None
    if (streamed := _load_streamed()) is None or not 0 < count <= streamed.MAX_POSITIONS:
        return None
    if packed.streamed is None:
        packed.streamed = streamed.pack(weight, streamed.taps)
    return streamed, packed.streamed


def _winograd(
    maps: list[Tensor], packed: PackedWeight, weight: Tensor, bias: Tensor | None, dilation: int, relu: bool
) -> Tensor | None:
    """A convolution by minimal filtering as flat features [positions, O]; None where it does not pay or not apply."""
    if maps[0].shape[1] != weight.shape[1] or not winograd.pays_off(maps, weight, dilation):
        return None
    if packed.transformed is None:
        if (streamed := _load_streamed()) is None:
            packed.transformed = partial(winograd.multiply_in_chunks, winograd.transform_weight(weight))
        else:
            panels = streamed.pack(weight, winograd.transform_weight)
            packed.transformed = partial(streamed.multiply_in_chunks, panels)
    flat = winograd.convolve(maps, packed.transformed, len(weight), weight.shape[2], dilation)
    if not flat.sum().isfinite():
        return None  # a tile spreads NaN and infinity to all of its outputs
    flat = flat if bias is None else flat.add_(bias)
    return flat.relu_() if relu else flat


BACKEND = Backend(
    "packed",
    {
        "skip_classifier_flat": skip_classifier_flat,
        "convolution": convolution,
        "convolution_pool": convolution_pool,
        "linear": linear,
        "chain": chain,
        "normalise": normalise,
    },
    supports,
    "weights are pre-packed at their second call",
)
