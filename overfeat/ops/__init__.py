"""The library's ops: checked, differentiable, compilable, and open to faster backends.

Each op is a `torch.library.custom_op` with a fake and an autograd rule. What runs inside is a
backend: "torch" serves every device; others add themselves with `register_backend`, say what they
take, and go first where they do. "reference" is the paper's own steps (reference.py), for
comparison only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.errors import InputError
from overfeat.ops import layout, reference
from overfeat.ops.backends import eager
from overfeat.ops.boxes import MATCHES, check_boxes, check_values

AVERAGES = ("pairwise", "counts")
# torch.compile's own CUDA graphs leave the ops out: their kept tables would lie in the graphs' memory.
CUDAGRAPH_UNSAFE = (torch.Tag.cudagraph_unsafe,)
_backends: dict[str, dict[str, Callable]] = {}
_takes: dict[str, Callable[[str, Tensor, int], bool]] = {}
_forced: str | None = None


def register_backend(name: str, functions: dict[str, Callable], takes: Callable) -> None:
    """Add a backend: functions by op name, and `takes(op, maps, size) -> bool`.

    The backend added last that has the op and takes the arguments runs; "torch" takes everything.
    `maps` is the first map of a list, the scores for best_scores.
    """
    _backends[name] = functions
    _takes[name] = takes


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every op on one backend inside the block; for the whole process, for comparisons.

    name: "reference" (the paper's steps, slow), "torch", or the name of a backend added since.
    Raises ValueError for an unknown name. An op that the backend has and does not take raises as it
    runs; one that it does not have runs on another.
    """
    global _forced
    known = ["reference", *_backends]
    if name not in known:
        raise ValueError(f"no backend {name!r}; there are {', '.join(known)}")
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def forced() -> str | None:
    """The backend of the innermost `backend` block, or None."""
    return _forced


def chosen(op: str, maps: Tensor, size: int) -> str:
    """The name of the backend that runs an op on such maps. Raises ValueError where a named one does not."""
    # The reference's gradients are autograd's own; an op that a backend does not have at all runs as ever.
    if _forced not in (None, "reference") and op in _backends[_forced]:
        if not _takes[_forced](op, maps, size):
            raise ValueError(
                f"backend {_forced!r} does not run {op} on {maps.dtype} maps on {maps.device.type}; "
                "leave the choice to the library"
            )
        return _forced
    return next(name for name in reversed(_backends) if op in _backends[name] and _takes[name](op, maps, size))


def _function(op: str, maps: Tensor, size: int) -> Callable:
    return _backends[chosen(op, maps, size)][op]


# Public functions
def offset_max_pool(maps: Tensor, size: int) -> Tensor:
    """Max over every size x size window, at stride 1 (section 3.3, step b at all offsets at once).

    maps [N, C, H, W] -> [N, C, H-size+1, W-size+1], in the maps' memory format. NaN propagates; of
    equal values the first takes the gradient. Raises ValueError where the shapes do not fit.
    """
    _check_maps(maps, size, size)
    if _forced == "reference":
        return reference.offset_max_pool(maps, size)
    return torch.ops.overfeat.offset_max_pool(maps, size)


def skip_classifier(maps: Tensor, weight: Tensor, bias: Tensor | None, size: int, relu: bool = True) -> Tensor:
    """Pool at every offset, apply the classifier's first layer, interleave (section 3.3, a-e).

    maps [N, C, H, W], unpooled; weight [O, C, k, k]; bias [O] or None; size: of the pooling. Gives
    [N, O, H-(size-1)-(k-1)*size, W-...]: one output for every cell that the pooling can start at.
    Raises ValueError where shapes, dtypes or devices do not fit.
    """
    return skip_classifier_scales([maps], weight, bias, size, relu)[0]


def skip_classifier_scales(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool = True
) -> list[Tensor]:
    """`skip_classifier` on maps of different N, H, W (scales, flips, images): weights read once."""
    return layout.as_maps(skip_classifier_flat(maps, weight, bias, size, relu), maps, weight.shape[2], size)


def skip_classifier_flat(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool = True
) -> Tensor:
    """`skip_classifier_scales` as one matrix [places, O]: every place of every map is a row.

    The rows go by map, then image, then line, then column, as the layers after this one want them.
    """
    maps = list(maps)
    if maps and weight.device.type != "meta" and torch.is_autocast_enabled(weight.device.type):
        dtype = torch.get_autocast_dtype(weight.device.type)
        # As torch's own autocast does, float64 is left alone.
        *maps, weight, bias = (
            t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (*maps, weight, bias)
        )
    _check_classifier(maps, weight, bias, size)
    if not maps:
        return weight.new_empty(0, weight.shape[0])
    if _forced == "reference":
        return torch.cat([layout.as_rows(reference.skip_classifier(m, weight, bias, size, relu)) for m in maps])
    if _forced in (None, "torch") and size == 1 and all(m.shape[2:] == weight.shape[2:] for m in maps):
        # One place a map, as on training crops: a linear layer like any other.
        rows = F.linear(
            layout.concat([layout.as_rows(m, whole=True) for m in maps]), layout.as_rows(weight, whole=True), bias
        )
        return rows.relu_() if relu else rows
    return torch.ops.overfeat.skip_classifier_flat(list(maps), weight, bias, size, relu)


def best_scores(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Softmax of every row, then each class's largest value over runs of rows (section 3.3, i).

    scores [M, classes], before the softmax; counts: rows of each run, which together are all rows.
    Gives float32 [len(counts), classes]. For evaluation: it has no gradient. Raises ValueError
    where the counts do not fit.
    """
    if scores.dim() != 2:
        raise ValueError(f"scores must be [M, classes]; these have shape {tuple(scores.shape)}")
    if min(counts, default=1) < 1 or sum(counts) != len(scores):
        raise ValueError(f"runs of {list(counts)} rows do not make {len(scores)} rows, or one of them is empty")
    if _forced == "reference":
        return reference.best_scores(scores, counts)
    return torch.ops.overfeat.best_scores(scores, list(counts))


@dataclass(frozen=True)
class Merged:
    """What `merge_boxes` made of T boxes: M merged ones, by group, then by the place of their first box.

    boxes [M, 4]; scores [M], the sums over the boxes merged; groups int64 [M]; counts int64 [M],
    the boxes merged, which together are T; best [M], the largest single score; members int64 [T],
    the merged box that each box went into.
    """

    boxes: Tensor
    scores: Tensor
    groups: Tensor
    counts: Tensor
    best: Tensor
    members: Tensor


def merge_boxes(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    threshold: float = 0.5,
    match: str = "normalised",
    average: str = "pairwise",
    overlap: float = 0.5,
) -> Merged:
    """Merge the two boxes of a group that match best, again and again, while they match (section 4.3, d-g).

    boxes [T, 4] as (x1, y1, x2, y2), float32 or float64; scores [T], not negative; groups int64 [T],
    in any order, or None for one group: only boxes of a group merge, as those of one image and
    class. The pair with the smallest boxes.match_score goes first, of equal ones the one whose
    first box comes first, then whose second does; it stops when no pair scores `threshold` or less.
    A merged box takes the place of its first. average "pairwise": the mean of the two boxes, as in
    the paper; "counts": weighted by the boxes already in them. match, overlap: see
    boxes.match_score. It has no gradient. Time grows nearly as the number of boxes where they are
    spread out, as its square where thousands coincide (33,000 equal boxes: ten seconds on a CPU).
    Raises ValueError for shapes and types, InputError for values that make no sense.
    """
    if groups is None and isinstance(boxes, Tensor):
        groups = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    _check_boxes(boxes, scores, groups, threshold, match, average, overlap)
    return Merged(*torch.ops.overfeat.merge_boxes(boxes, scores, groups, threshold, match, average, overlap))


def convolution(maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int, relu: bool = True) -> Tensor:
    """A convolution and its ReLU: [N, C, H, W] -> [N, O, h, w], for the layers before the last maps.

    Stock torch wherever a gradient may be wanted, under autocast and in compiled code; elsewhere a
    backend that has it.
    """
    return _evaluation("convolution", maps, weight, bias)(maps, weight, bias, stride, pad, relu)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = True) -> Tensor:
    """A full layer after the first, and its ReLU: [places, C], weight [O, C, 1, 1] -> [places, O].

    By stock torch or a backend, as `convolution`.
    """
    return _evaluation("linear", rows, weight, bias)(rows, weight, bias, relu)


def _evaluation(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Callable:
    """The function of an op that only evaluation leaves to a backend."""
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type == "meta"
    plain = plain or torch.is_autocast_enabled(x.device.type)
    if not plain and x.dtype == weight.dtype and (bias is None or bias.dtype == weight.dtype):
        for name in reversed(_backends) if _forced is None else [_forced]:
            if op in _backends.get(name, {}) and _takes[name](op, x, 1):
                return _backends[name][op]
    return eager.FUNCTIONS[op]


def _check_maps(maps: Tensor, size: int, need: int) -> None:
    if maps.dim() != 4:
        raise ValueError(f"maps must be [N, C, H, W]; these have shape {tuple(maps.shape)}")
    if not isinstance(size, (int, torch.SymInt)) or size < 1:
        raise ValueError(f"the pooling's size must be at least 1, not {size!r}")
    if min(maps.shape[2:]) < need:
        raise ValueError(
            f"maps of {maps.shape[2]}x{maps.shape[3]} are smaller than the {need}x{need} that an output needs"
        )


def _check_classifier(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int) -> None:
    if weight.dim() != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight must be [O, C, k, k]; it has shape {tuple(weight.shape)}")
    if 0 in weight.shape:
        raise ValueError(f"the weight is empty: {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], as the weight; it is {list(bias.shape)}")
    for m in maps:
        _check_maps(m, size, weight.shape[2] * size)
        if m.shape[1] != weight.shape[1]:
            raise ValueError(f"maps have {m.shape[1]} channels, the weight takes {weight.shape[1]}")
        for name, other in (("weight", weight), ("bias", bias)):
            if other is not None and (other.dtype != m.dtype or other.device != m.device):
                raise ValueError(
                    f"maps are {m.dtype} on {m.device}, the {name} {other.dtype} on {other.device}; move one"
                )


def _check_boxes(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, match: str, average: str, overlap: float
) -> None:
    check_boxes(boxes, scores, groups)
    if match not in MATCHES or average not in AVERAGES:
        raise InputError(
            f"match is one of {', '.join(MATCHES)}, average one of {', '.join(AVERAGES)}; not {match!r}, {average!r}"
        )
    if not all(isinstance(value, (int, float)) for value in (threshold, overlap)):
        raise ValueError(f"the threshold and the overlap are numbers, not {threshold!r} and {overlap!r}")
    if not threshold >= 0 or not 0 <= overlap <= 1:
        raise InputError(f"the threshold must be 0 or more, the overlap 0 to 1; not {threshold} and {overlap}")


# The ops: schema, shapes, gradients
@torch.library.custom_op("overfeat::offset_max_pool", mutates_args=(), tags=CUDAGRAPH_UNSAFE)
def _offset_max_pool(maps: Tensor, size: int) -> Tensor:
    return _function("offset_max_pool", maps, size)(maps, size)


@_offset_max_pool.register_fake
def _(maps, size):
    n, c, h, w = maps.shape
    return empty_net(maps, n, c, h - size + 1, w - size + 1)


@torch.library.custom_op("overfeat::offset_max_pool_backward", mutates_args=(), tags=CUDAGRAPH_UNSAFE)
def _offset_max_pool_backward(grad: Tensor, maps: Tensor, size: int) -> Tensor:
    return _function("offset_max_pool_backward", maps, size)(grad, maps, size)


@_offset_max_pool_backward.register_fake
def _(grad, maps, size):
    return empty_net(maps, *maps.shape)


def _offset_max_pool_setup(ctx, inputs, output):
    maps, ctx.size = inputs
    ctx.save_for_backward(maps)


def _offset_max_pool_grad(ctx, grad):
    return torch.ops.overfeat.offset_max_pool_backward(grad, ctx.saved_tensors[0], ctx.size), None


_offset_max_pool.register_autograd(_offset_max_pool_grad, setup_context=_offset_max_pool_setup)


@torch.library.custom_op("overfeat::skip_classifier_flat", mutates_args=(), tags=CUDAGRAPH_UNSAFE)
def _skip_classifier_rows(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool) -> Tensor:
    return _function("skip_classifier_flat", maps[0], size)(maps, weight, bias, size, relu)


@_skip_classifier_rows.register_fake
def _(maps, weight, bias, size, relu):
    places = sum(n * height * width for n, height, width in layout.result_shapes(maps, weight.shape[2], size))
    return weight.new_empty(places, weight.shape[0])


@torch.library.custom_op("overfeat::skip_classifier_flat_backward", mutates_args=(), tags=CUDAGRAPH_UNSAFE)
def _skip_classifier_rows_backward(
    grad: Tensor, maps: Sequence[Tensor], weight: Tensor, output: Tensor | None, size: int,
    need_maps: bool, need_weight: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the maps (if needed), then of the weight and the bias (if needed).

    `output` is None where no ReLU was applied.
    """
    run = _function("skip_classifier_flat_backward", maps[0], size)
    return run(grad, maps, weight, output, size, need_maps, need_weight)


@_skip_classifier_rows_backward.register_fake
def _(grad, maps, weight, output, size, need_maps, need_weight):
    found = [empty_net(m, *m.shape) for m in maps] if need_maps else []
    if need_weight:
        found += [empty_net(weight, *weight.shape), weight.new_empty(weight.shape[0])]
    return found


def _skip_classifier_setup(ctx, inputs, output):
    maps, weight, bias, ctx.size, ctx.relu = inputs
    ctx.count, ctx.has_bias = len(maps), bias is not None
    ctx.save_for_backward(weight, *maps, *([output] if ctx.relu else []))


def _skip_classifier_grad(ctx, grad):
    weight, *rest = ctx.saved_tensors
    maps, output = rest[: ctx.count], rest[ctx.count] if ctx.relu else None
    need_maps = any(ctx.needs_input_grad[0])
    need_weight = ctx.needs_input_grad[1] or (ctx.has_bias and ctx.needs_input_grad[2])
    found = torch.ops.overfeat.skip_classifier_flat_backward(
        grad, maps, weight, output, ctx.size, need_maps, need_weight
    )
    of_maps = found[: ctx.count] if need_maps else [None] * ctx.count
    of_weight, of_bias = found[-2:] if need_weight else (None, None)
    return of_maps, of_weight, of_bias if ctx.has_bias else None, None, None


_skip_classifier_rows.register_autograd(_skip_classifier_grad, setup_context=_skip_classifier_setup)
# Maps instead of rows, one map instead of several: these decompose into the op above, gradients included.
torch.library.define(
    "overfeat::skip_classifier", "(Tensor maps, Tensor weight, Tensor? bias, int size, bool relu) -> Tensor"
)
torch.library.define(
    "overfeat::skip_classifier_scales",
    "(Tensor[] maps, Tensor weight, Tensor? bias, int size, bool relu) -> Tensor[]",
)


@torch.library.impl("overfeat::skip_classifier", "CompositeImplicitAutograd")
def _skip_classifier(maps, weight, bias, size, relu):
    return torch.ops.overfeat.skip_classifier_scales([maps], weight, bias, size, relu)[0]


@torch.library.impl("overfeat::skip_classifier_scales", "CompositeImplicitAutograd")
def _skip_classifier_scales(maps, weight, bias, size, relu):
    rows = torch.ops.overfeat.skip_classifier_flat(maps, weight, bias, size, relu)
    return layout.as_maps(rows, maps, weight.shape[2], size)


@torch.library.custom_op("overfeat::best_scores", mutates_args=(), tags=CUDAGRAPH_UNSAFE)
def _best_scores(scores: Tensor, counts: Sequence[int]) -> Tensor:
    return _function("best_scores", scores, 1)(scores, counts)


@_best_scores.register_fake
def _(scores, counts):
    return scores.new_empty(len(counts), scores.shape[1], dtype=torch.float32)


@torch.library.custom_op("overfeat::merge_boxes", mutates_args=(), tags=CUDAGRAPH_UNSAFE)
def _merge_boxes(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, match: str, average: str, overlap: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_values(boxes, scores)
    in_order, order = groups.sort(stable=True)
    _, lengths = in_order.unique_consecutive(return_counts=True)
    lengths = lengths.tolist()
    if _forced == "reference":
        run = reference.merge_boxes
    else:
        run = _function("merge_boxes", boxes, max(lengths, default=0))
    rule = (threshold, match, average, overlap)
    merged, sums, best, counts, into = run(boxes[order], scores[order], lengths, *rule)
    # A box went into one before it, which may itself have gone into another: follow all at once.
    last = torch.where(into < 0, torch.arange(len(into), device=into.device), into)
    while not torch.equal(last, last[last]):
        last = last[last]
    alive = counts > 0
    rank = alive.cumsum(0) - 1
    members = torch.empty_like(order)
    members[order] = rank[last]
    return merged[alive], sums[alive], in_order[alive], counts[alive], best[alive], members


@_merge_boxes.register_fake
def _(boxes, scores, groups, threshold, match, average, overlap):
    count = torch.library.get_ctx().new_dynamic_size()
    of = [boxes.new_empty(count, 4), boxes.new_empty(count), groups.new_empty(count), groups.new_empty(count)]
    return *of, boxes.new_empty(count), groups.new_empty(groups.shape[0])


def empty_net(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout.format_of(like))


register_backend("torch", eager.FUNCTIONS, takes=lambda op, maps, size: True)
