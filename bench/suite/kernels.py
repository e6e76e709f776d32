"""Cases of the Triton kernels on a GPU, most of them timed on the GPU alone; tiny ones under the interpreter."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.suite.baselines import eager, vote
from bench.suite.machine import CLASSES, IMAGE, Machine, baseline, compiled, create_inputs, within
from bench.suite.names import COMPILED, DEFAULT_MEMORY, EACH, EAGER, FAST, FUSED, GRAPH, OURS, SEPARATE, VARIANTS
from bench.suite.runner import Case, Implementation
from bench.suite.synthetic import NUM_BOXES, boxes_of_images, boxes_of_many_objects, merged
from bench.suite.timing import dtype_name, torch_dtype
from overfeat import fast, ops
from overfeat.classification.predict import classify
from overfeat.dense.config import MEMORY_LIMIT
from overfeat.dense.scales import six_scales
from overfeat.models.architecture import ARCHITECTURES, Architecture, Conv
from overfeat.models.flops import stage_macs
from overfeat.models.overfeat import OverFeat
from overfeat.models.receptive_field import output_size

Shape = tuple[int, int, int]  # images, height, width of feature maps
Flat = Tensor | list[Tensor]


@dataclass(frozen=True)
class Sizes:
    """Problem sizes.

    Attributes:
        overlapping: channels, outputs and kernel of a layer after 3 x 3 pools of stride 2, as AlexNet's.
        groups, boxes, objects: groups of boxes to merge, boxes in each, boxes of many objects in one group.
        dtypes: the first is that of most cases.
    """

    architecture: Architecture
    image: tuple[int, int]
    batches: tuple[int, int]
    overlapping: tuple[int, int, int]
    groups: int
    boxes: int
    objects: int
    dtypes: tuple[torch.dtype | str, ...]

    @property
    def scales(self) -> list[tuple[int, int]]:
        """The sizes of the image at the six scales."""
        return six_scales(self.architecture.geometry, *self.image)

    def maps(self, images: int) -> list[Shape]:
        """The last feature maps at each scale; of a tiny net, at two."""
        steps = self.architecture.feature_steps
        sizes = self.scales if self is not TINY else self.scales[-2:]
        return [(images, *(output_size(steps, side) for side in size)) for size in sizes]


FULL = Sizes(ARCHITECTURES["accurate"], IMAGE, (1, 8), (256, 4096, 6), 640, NUM_BOXES, 33337,
             (torch.bfloat16, "tf32", torch.float16, torch.float32))  # fmt: skip
_TINY = Architecture("tiny", (Conv(8, 5, stride=2), Conv(16, 3, pool=3)), kernel=3, hidden=(16, 16), short_side=22,
                     scales=((25, 25),) * 5 + ((25, 27),))  # fmt: skip
# Triton's interpreter treats bfloat16 as integers.
TINY = Sizes(_TINY, (30, 36), (1, 2), (16, 24, 2), 2, 8, 12, (torch.float16, "tf32", torch.float32))


class Layer:
    """The classifier's first layer on maps of these shapes: random operands, created when first asked for."""

    def __init__(self, machine: Machine, shapes: Sequence[Shape], channels: int, outputs: int, kernel: int,
                 size: int, dtype: torch.dtype | str, *, tap: int | None = None):  # fmt: skip
        from overfeat.kernels.problem import Problem

        self.machine, self.dtype = machine, dtype
        self.problem = Problem(tuple(shapes), channels, outputs, (kernel, kernel), tap or size, size,
                               torch_dtype(dtype), machine.device)  # fmt: skip

    @cached_property
    def operands(self) -> tuple[list[Tensor], Tensor, Tensor]:
        """Maps and weight, channels-last, and bias."""
        generator, p = torch.Generator(self.problem.device).manual_seed(0), self.problem

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            values = scale * torch.randn(shape, generator=generator, device=p.device)
            layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
            return values.to(p.dtype).contiguous(memory_format=layout)

        maps = [normal(n, p.channels, h, w) for n, h, w in p.shapes]
        weight = normal(p.outputs, p.channels, *p.kernel, scale=(p.channels * p.taps) ** -0.5)
        return maps, weight, normal(p.outputs, scale=0.2)

    @cached_property
    def cotangents(self) -> tuple[Tensor, list[Tensor]]:
        """Random gradients of the results, as flat features and as maps."""
        p, (reach_y, reach_x) = self.problem, self.problem.reach
        flat = torch.randn(p.positions, p.outputs, device=p.device).to(p.dtype)
        shapes = [(n, h - reach_y, w - reach_x) for n, h, w in p.pooled]
        chunks = flat.split([n * h * w for n, h, w in shapes])
        return flat, [chunk.view(*shape, -1).permute(0, 3, 1, 2) for chunk, shape in zip(chunks, shapes, strict=True)]

    def bound(self, function: Callable[..., Flat]) -> Callable[[], Flat]:
        """function(maps, weight, bias) on the operands."""
        return torch.no_grad()(lambda: function(*self.operands))

    def pool(self) -> list[Tensor]:
        """Plain PyTorch's pooling at every offset."""
        return [F.max_pool2d(m, self.problem.size, 1) for m in self.operands[0]]

    def plain(self, maps: Sequence[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
        """Plain PyTorch: pool at stride 1, convolve with dilation."""
        pooled = [F.max_pool2d(m, self.problem.size, 1) for m in maps]
        return [F.conv2d(m, weight, bias, dilation=self.problem.tap).relu_() for m in pooled]

    def ours(self, maps: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
        return ops.skip_classifier_flat(maps, weight, bias, self.problem.size, tap=self.problem.tap)

    def each(self, maps: Sequence[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
        """The library with a call per map, which reads the weight once per map."""
        return [ops.skip_classifier(m, weight, bias, self.problem.size, tap=self.problem.tap) for m in maps]

    def gradients(self, function: Callable[..., Flat]) -> list[Tensor]:
        """Forward and backward: the gradients of weight, bias and maps."""
        maps, weight, bias = self.operands
        # Outputs lie above 0, so that rounding does not switch a ReLU.
        leaves = [t.detach().requires_grad_() for t in (weight, bias + 8, *maps)]
        with torch.enable_grad():
            results = function(leaves[2:], *leaves[:2])
            flat, of_maps = self.cotangents
            return list(torch.autograd.grad(results, leaves, flat if isinstance(results, Tensor) else of_maps))

    def chosen(self) -> Implementation:
        """The forward pass as the library launches it; the remark names the variant that it chose."""
        from overfeat.kernels import launch

        def variant(_: object) -> str:
            return launch.choose("forward", self.problem).variant

        return Implementation(self.bound(self.ours), remark=variant)

    def forced(self, gemm: str, call: Callable[[], Flat]) -> dict[str, Implementation]:
        """The call in every variant that this device can run; the others are recorded as skipped."""
        from overfeat.kernels import launch
        from overfeat.kernels.cost_model import unsupported_reason

        device, implementations = self.machine.device, {}
        capability = [torch.cuda.get_device_capability(device)] if device.type == "cuda" else []
        for name in VARIANTS:
            variant = name.removeprefix(f"{FAST}-")
            if reason := unsupported_reason(variant, gemm, self.problem, *capability):
                self.machine.run.skip(f"{name}, {gemm}, {dtype_name(self.dtype)}", reason)
            else:
                run = within(partial(launch.override, variant=variant), call)
                implementations[name] = Implementation(run, forced=True)
        return implementations

    def case(self, suite: str, op: str, shape: str, implementations: dict[str, Implementation], work: int = 1) -> Case:
        """work: of the forward pass."""
        p = self.problem
        weights, maps = p.outputs * p.channels * p.taps, p.channels * sum(n * h * w for n, h, w in p.shapes)
        return Case(suite, op, shape, EAGER, implementations, lambda: self.operands, self.dtype,
                    2.0 * work * weights * p.positions,
                    work * (maps + weights + p.positions * p.outputs) * p.dtype.itemsize, on_device=True)  # fmt: skip


def layer(machine: Machine, images: int, dtype: torch.dtype | str | None = None, flip: bool = False) -> Layer:
    """The net's first full layer on all scales at once; `flip`: with a second map per scale."""
    sizes = sizes_of(machine)
    a = sizes.architecture
    shapes = [shape for shape in sizes.maps(images) for _ in range(1 + flip)]
    return Layer(machine, shapes, a.convs[-1].channels, a.hidden[0], a.kernel, a.pool, dtype or sizes.dtypes[0])


def sizes_of(machine: Machine) -> Sizes:
    """Chips below capability 8.0 have neither bfloat16 nor TF32."""
    if machine.tiny:
        return TINY
    old = torch.version.hip is None and torch.cuda.get_device_capability(machine.device) < (8, 0)
    return replace(FULL, dtypes=(torch.float16, torch.float32)) if old else FULL


def flatten(results: Flat) -> Tensor:
    """Maps as flat features [positions, channels]."""
    return results if isinstance(results, Tensor) else torch.cat([r.permute(0, 2, 3, 1).flatten(0, 2) for r in results])


def pooling(machine: Machine) -> Iterator[Case]:
    """Offset pooling alone, six scales in one pass."""
    from overfeat.kernels.offset_pool import pooled_buffer

    for images in sizes_of(machine).batches:
        one = layer(machine, images)
        p = one.problem
        moved = (p.pooled_positions + sum(n * h * w for n, h, w in p.shapes)) * p.channels * p.dtype.itemsize
        implementations = {
            EAGER: baseline(one.pool, result=flatten),
            FAST: Implementation(lambda one=one: pooled_buffer(one.operands[0], one.problem.size)),
        }
        yield Case("pooling", "offset pooling", f"six scales, batch {images}", EAGER, implementations,
                   lambda one=one: one.operands, one.dtype, bytes_moved=moved, on_device=True)  # fmt: skip


def first_layer(machine: Machine) -> Iterator[Case]:
    """The first full layer on six scales in one call, in every variant; with horizontal flips too."""
    for images in sizes_of(machine).batches:
        for flip in (False,) if machine.tiny else (False, True):
            one = layer(machine, images, flip=flip)
            ours = one.bound(one.ours)
            implementations = {EAGER: baseline(one.bound(one.plain), result=flatten), FAST: one.chosen()}
            implementations |= one.forced("forward", ours)
            if not flip:
                implementations[EACH] = Implementation(one.bound(one.each), result=flatten)
                implementations |= _compiled(machine, lambda f, one=one: one.bound(f), one.plain, result=flatten)
            shape = f"six scales, batch {images}{', with horizontal flips' if flip else ''}"
            yield one.case("first-layer", "first full layer", shape, implementations)


def _compiled(machine: Machine, call: Callable, function: Callable, **more: object) -> dict[str, Implementation]:
    """The function under torch.compile, except in a dry run, where it would take longer than all the rest."""
    return {} if machine.tiny else {COMPILED: baseline(call(compiled(function)), **more)}


def classification(machine: Machine) -> Iterator[Case]:
    """Images on the device to class scores: six scales with horizontal flips. The host's time counts."""
    sizes = sizes_of(machine)
    dtype = sizes.dtypes[0]
    counts = [stage_macs(sizes.architecture, *size, CLASSES, "fine") for size in sizes.scales]
    flop = 2 * 2 * sum(count[part] for count in counts for part in ("features", "first", "rest"))
    for images in sizes.batches:

        def call(function: Callable[[OverFeat, Tensor], object], images: int = images) -> object:
            return function(machine.net(sizes.architecture, dtype), machine.pixels(images, *sizes.image))

        options = {"flip": True, "memory_limit": 8 * images * MEMORY_LIMIT}
        ours = partial(call, partial(classify, **options))
        implementations = {
            EAGER: baseline(partial(call, partial(vote, eager, sizes.scales, True))),
            OURS: Implementation(within(partial(ops.backend, "torch"), ours)),
            FAST: Implementation(ours),
            DEFAULT_MEMORY: Implementation(partial(call, partial(classify, flip=True))),
        }
        if images == sizes.batches[0]:
            implementations |= _compiled(
                machine, lambda f, call=call: partial(call, partial(vote, f, sizes.scales, True)), eager
            )
        implementations[GRAPH] = Implementation(_captured(call, options))
        yield Case("classification", "classify", f"six scales with horizontal flips, batch {images}", EAGER,
                   implementations, partial(call, create_inputs), dtype, images * flop, images=images)  # fmt: skip


def _captured(call: Callable, options: dict) -> Callable[[], Tensor]:
    """A classification that is captured as a CUDA graph at its first call."""
    captured: list[Callable[[Tensor], Tensor]] = []

    def run(net: OverFeat, pixels: Tensor) -> Tensor:
        if not captured:
            captured.append(fast.capture(net, [tuple(pixels.shape)], **options))
        return captured[0](pixels)

    return partial(call, run)


def merge_groups(machine: Machine) -> Iterator[Case]:
    """Greedy merging of many groups, and of many objects, beside the CPU's compiled loop, transfers included."""
    sizes = sizes_of(machine)
    given = {
        f"{sizes.groups} groups of {sizes.boxes} boxes": partial(boxes_of_images, sizes.groups, sizes.boxes),
        f"{sizes.boxes} boxes": partial(boxes_of_images, 1, sizes.boxes),
        f"{sizes.objects} boxes of many objects": partial(boxes_of_many_objects, sizes.objects),
    }
    for shape, make in given.items():
        inputs = [t.to(machine.device) for t in make()]

        run = partial(merged, *inputs)
        implementations = {
            OURS: Implementation(within(partial(ops.backend, "torch"), run), cold=True),
            FAST: Implementation(run),
        }
        yield Case("merge-groups", "merge_boxes", shape, OURS, implementations, create_inputs)


def gradients(machine: Machine) -> Iterator[Case]:
    """Forward and backward of the first full layer on six scales."""
    for images in sizes_of(machine).batches:
        yield _gradients(layer(machine, images), f"six scales, batch {images}")


def _gradients(one: Layer, shape: str) -> Case:
    ours = partial(one.gradients, one.ours)
    implementations = {EAGER: baseline(partial(one.gradients, one.plain)), FAST: Implementation(ours)}
    implementations |= one.forced("weight", ours)
    return one.case("gradients", "first full layer, forward and backward", shape, implementations, work=3)


def single_scales(machine: Machine) -> Iterator[Case]:
    """The first full layer at each scale on its own, with separate and fused pooling."""
    from overfeat.kernels import launch

    sizes = sizes_of(machine)
    for images in sizes.batches:
        for number, shape in enumerate(sizes.maps(images), 1):
            one = layer(machine, images)
            one.problem = replace(one.problem, shapes=(shape,))
            ours = one.bound(one.ours)
            implementations = {EAGER: baseline(one.bound(one.plain), result=flatten), FAST: one.chosen()}
            for name, pool in ((SEPARATE, "separate"), (FUSED, "fused")):
                run = within(partial(launch.override, pool=pool, variant="direct"), ours)
                implementations[name] = Implementation(run, forced=True)
            title = f"scale {number}: {one.problem.positions} windows"
            yield one.case("single-scales", "first full layer", title, implementations)


def other_types(machine: Machine) -> Iterator[Case]:
    """Overlapping pools, then six scales in the other kinds of arithmetic, forward and backward."""
    sizes = sizes_of(machine)
    last = sizes.batches[1]
    overlapping = Layer(machine, sizes.maps(last), *sizes.overlapping, 3, sizes.dtypes[0], tap=2)
    layers = [(f"3 x 3 pools of stride 2, six scales, batch {last}", overlapping)]
    for dtype in sizes.dtypes[1:]:
        layers += [(f"six scales, batch {images}", layer(machine, images, dtype)) for images in sizes.batches]
    for shape, one in layers:
        ours = one.bound(one.ours)
        implementations = {EAGER: baseline(one.bound(one.plain), result=flatten), FAST: one.chosen()}
        yield one.case("other-types", "first full layer", shape, implementations | one.forced("forward", ours))
        if one.dtype != torch.float32:
            yield replace(_gradients(one, shape), suite="other-types")


GPU_SUITES: dict[str, Callable[[Machine], Iterator[Case]]] = {
    "pooling": pooling,
    "first-layer": first_layer,
    "classification": classification,
    "merge-groups": merge_groups,
    "gradients": gradients,
    "single-scales": single_scales,
    "other-types": other_types,
}


def gpu_cases(name: str, machine: Machine) -> Iterator[Case]:
    """The cases of a suite of GPU_SUITES, if the kernels run on this device; tiny ones if they are interpreted."""
    backend = ops.select_backend("skip_classifier_flat", machine.device, torch.float16)
    if backend.name == "triton" and (machine.device.type == "cuda" or machine.tiny):
        machine.run.results["tuned"] = _is_tuned(machine.device)
        yield from GPU_SUITES[name](machine)
    else:
        machine.run.skip(name, "its kernels need a GPU of capability 8.0 or later, and Triton")


def _is_tuned(device: torch.device) -> bool:
    """Whether launches are chosen by what was measured on this device."""
    from overfeat.kernels import tuned

    return tuned.path_of(device).is_file()
