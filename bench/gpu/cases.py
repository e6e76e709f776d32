"""What is checked and timed: kinds of arithmetic, the first full layer, and the ways to compute it."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.run import FAST, STOCK
from bench.suite.baselines import offset_loop
from bench.tolerance import assert_matches
from overfeat import (
    fast,  # noqa: F401 (fast is imported for the backends that it adds)
    ops,
)
from overfeat.models.architecture import ARCHITECTURES, Architecture, Conv
from overfeat.models.overfeat import OverFeat
from overfeat.ops import reference
from overfeat.ops.layout import output_shapes

GUARD = 256  # elements of NaN on both sides of an input: a read past its ends shows
SAMPLES = 16  # outputs and channels whose gradients are compared; all places and taps enter into each

Results = Tensor | list[Tensor]
Layered = Callable[[Sequence[Tensor], Tensor, Tensor], Results]


@dataclass(frozen=True)
class Kind:
    """Arithmetic: a dtype, and for float32 the precision of its products."""

    name: str
    dtype: torch.dtype
    precision: str = "highest"

    @property
    def tolerance(self) -> torch.dtype | str:
        return "tf32" if self.precision == "high" else self.dtype

    @contextmanager
    def active(self) -> Iterator[None]:
        """Products and convolutions of float32 have this precision inside the block."""
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision(self.precision)
        torch.backends.cudnn.allow_tf32 = self.precision == "high"
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]


BFLOAT16, FLOAT16 = Kind("bfloat16", torch.bfloat16), Kind("float16", torch.float16)
TF32, FLOAT32 = Kind("tf32", torch.float32, "high"), Kind("float32", torch.float32)


@dataclass(frozen=True)
class Sizes:
    """How large everything is. maps: (height, width) of the last maps at each scale."""

    architecture: Architecture
    image: tuple[int, int]
    classes: int
    maps: tuple[tuple[int, int], ...]
    small: tuple[tuple[int, int, int], ...]  # images, height, width of the maps of short checks
    channels: tuple[int, int]  # of short checks: a multiple of 16, and not
    products: tuple[tuple[int, int, int], ...]  # whose rate is the ceiling
    copied: int  # bytes
    batches: tuple[int, int]
    crops: int  # in a batch of training
    kinds: tuple[Kind, ...]  # the first is the one that most is timed in

    def layer(self, kind: Kind, maps: Sequence[tuple[int, int, int]], device: torch.device) -> "Layer":
        """The net's first full layer at these maps."""
        a = self.architecture
        return Layer(kind, maps, a.convs[-1].channels, a.hidden[0], a.kernel, a.pool, device)


FULL = Sizes(
    architecture=ARCHITECTURES["accurate"], image=(375, 500), classes=1000,
    maps=((17, 17), (20, 23), (23, 29), (29, 35), (32, 38), (35, 44)),
    small=((2, 17, 17), (1, 20, 23), (3, 16, 15)), channels=(128, 40),
    products=((4096, 4096, 4096), (8192, 8192, 8192), (12600, 4096, 25600)), copied=1 << 30,
    batches=(1, 8), crops=128, kinds=(BFLOAT16, TF32, FLOAT16, FLOAT32),
)  # fmt: skip
TINY = Sizes(
    architecture=Architecture("tiny", (Conv(8, 5, stride=2), Conv(16, 3, pool=3)), kernel=2, hidden=(16, 16),
                              short_side=20, scales=((23, 23),) * 5 + ((23, 25),)),
    image=(30, 36), classes=5, maps=((8, 8), (8, 9)), small=((2, 6, 7), (1, 7, 8)), channels=(16, 6),
    products=((64, 64, 64),), copied=1 << 12, batches=(1, 2), crops=4,
    kinds=(FLOAT16, TF32, FLOAT32),  # Triton's interpreter multiplies bfloat16 as if it were integers
)  # fmt: skip


def numbers(shape: Sequence[int], kind: Kind, device: torch.device, seed: int, scale: float = 1.0) -> Tensor:
    """Normal numbers between guards of NaN; four axes are channels-last."""
    generator = torch.Generator(device).manual_seed(seed)
    shape = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else tuple(shape)
    count = torch.Size(shape).numel()
    whole = torch.full((count + 2 * GUARD,), torch.nan, dtype=kind.dtype, device=device)
    inner = whole[GUARD : GUARD + count].view(shape)
    inner.copy_(scale * torch.randn(shape, generator=generator, device=device))
    return inner.permute(0, 3, 1, 2) if len(shape) == 4 else inner


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is given out uninitialised holds NaN inside the block (integers: their largest)."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ops without a deterministic form, which none of this is about
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


class Layer:
    """The classifier's first layer on maps of several sizes: inputs, truth, and checks against it."""

    def __init__(self, kind: Kind, maps: Sequence[tuple[int, int, int]], channels: int, outputs: int, kernel: int,
                 pool: int, device: torch.device):  # fmt: skip
        self.kind, self.kernel, self.pool = kind, kernel, pool
        self.maps = [numbers((n, channels, h, w), kind, device, seed) for seed, (n, h, w) in enumerate(maps)]
        shape = (outputs, channels, kernel, kernel)
        self.weight = numbers(shape, kind, device, 100, (channels * kernel**2) ** -0.5)
        self.bias = numbers((outputs,), kind, device, 101, 0.2)

    @property
    def places(self) -> int:
        return sum(n * h * w for n, h, w in output_shapes(self.maps, self.kernel, self.pool))

    @property
    def flop(self) -> int:
        return 2 * self.places * self.weight.numel()

    @property
    def moved(self) -> int:
        """The least bytes: maps, weight and result once."""
        elements = sum(m.numel() for m in self.maps) + self.weight.numel() + self.places * len(self.weight)
        return elements * self.weight.element_size()

    @cached_property
    def want(self) -> Tensor:
        """The result's rows by the reference, in float64."""
        with torch.no_grad():
            return self._reference(self.maps, self.weight, self.bias, relu=True)

    def run(self, way: Layered) -> Results:
        with self.kind.active(), torch.no_grad():
            return way(self.maps, self.weight, self.bias)

    def ours(self, maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
        """The library's own way."""
        return ops.skip_classifier_flat(maps, weight, bias, self.pool)

    def check(self, way: Layered, poison: bool = True) -> None:
        """Raises AssertionError where the results are not those of the reference."""
        with poisoned() if poison else nullcontext():
            got = rows_of(self.run(way))
        assert_matches(got, self.want, self.kind.tolerance)

    def check_gradients(self, way: Layered, poison: bool = True) -> None:
        """Of bias, maps and weight; of the latter two for some channels and some outputs, to bound the memory."""
        inputs = [t.detach().requires_grad_() for t in (self.weight, self.bias, *self.maps)]
        with poisoned() if poison else nullcontext(), self.kind.active():
            rows = rows_of(way(inputs[2:], *inputs[:2]))
            grad = numbers(rows.shape, self.kind, rows.device, 102)
            of_weight, of_bias, *of_maps = torch.autograd.grad(rows, inputs, grad)
        # Next to 0 rounding may turn the ReLU either way, and both are right: the mask is the result's own.
        grad = torch.where(rows > 0, grad.double(), 0.0)
        assert_matches(of_bias, grad.sum(dim=0), self.kind.tolerance)
        some, few = _spread(len(self.weight)), _spread(self.weight.shape[1])
        part = self.weight[some].double().requires_grad_()
        rows = self._reference(self.maps, part, None, relu=False)
        assert_matches(of_weight[some], torch.autograd.grad(rows, part, grad[:, some])[0], self.kind.tolerance)
        parts = [m[:, few].double().requires_grad_() for m in self.maps]
        rows = self._reference(parts, self.weight[:, few], None, relu=False)
        assert_matches([m[:, few] for m in of_maps], torch.autograd.grad(rows, parts, grad), self.kind.tolerance)

    def training(self, way: Layered) -> Callable[[], object]:
        """A forward and backward pass to be timed."""
        inputs = [t.detach().requires_grad_() for t in (self.weight, self.bias, *self.maps)]
        with self.kind.active():
            results = way(inputs[2:], *inputs[:2])
        grads = [torch.randn_like(r) for r in ([results] if isinstance(results, Tensor) else results)]
        del results

        def step() -> object:
            with self.kind.active():
                results = way(inputs[2:], *inputs[:2])
                return torch.autograd.grad([results] if isinstance(results, Tensor) else results, inputs, grads)

        return step

    def _reference(self, maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        weight, bias = weight.double().contiguous(), None if bias is None else bias.double()
        return rows_of([reference.skip_classifier(m.double(), weight, bias, self.pool, relu) for m in maps])


def rows_of(results: Results) -> Tensor:
    """Results as one matrix [places, outputs]."""
    if isinstance(results, Tensor):
        return results
    return torch.cat([r.permute(0, 2, 3, 1).flatten(0, 2) for r in results])


def _spread(count: int) -> list[int]:
    return sorted({round(x) for x in torch.linspace(0, count - 1, SAMPLES).tolist()})


def stock(maps: Sequence[Tensor], weight: Tensor, bias: Tensor, size: int) -> list[Tensor]:
    """What anyone would write: pool at stride 1, convolve with dilation."""
    return [F.relu(F.conv2d(F.max_pool2d(m, size, 1), weight, bias, dilation=size)) for m in maps]


def ways(layer: Layer, dry: bool, pools: bool = False, singly: bool = False) -> dict[str, Layered]:
    """The ways to compute the layer, by the name that their rows carry; stock torch first.

    pools: with separate and fused pooling forced, if kernels run. singly: also with one call a scale.
    """

    def loop(maps: Sequence[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
        last = SimpleNamespace(weight=weight, bias=bias)
        shape = SimpleNamespace(pool=layer.pool, kernel=layer.kernel)
        net = SimpleNamespace(architecture=shape, classes=len(weight), fc_layers=[last])
        return [offset_loop(net, m).relu_() for m in maps]

    def each(maps: Sequence[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
        return [ops.skip_classifier(m, weight, bias, layer.pool) for m in maps]

    plain = partial(stock, size=layer.pool)
    found: dict[str, Layered] = {STOCK: plain, "torch.compile": compiled(plain, dry), "loop over offsets": loop,
                                 FAST: layer.ours}  # fmt: skip
    if singly:
        found[f"{FAST}, one call a scale"] = each
    if pools and has_kernels(layer.kind, layer.weight.device):
        for pool in ("separate", "fused"):
            found[f"{FAST}, {pool}"] = forced(layer.ours, pool=pool)
    return found


def forced(way: Layered, **options: object) -> Layered:
    """With launch options forced (kernels/launch.py)."""
    from overfeat.kernels import launch

    def run(*arguments: object) -> Results:
        with launch.override(**options):
            return way(*arguments)

    return run


def compiled(function: Callable, dry: bool, **options: object) -> Callable:
    """Under torch.compile, anew: what was compiled before is forgotten, or its limit would be met."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, backend="aot_eager" if dry else "inductor", **options)


def has_kernels(kind: Kind, device: torch.device) -> bool:
    """Whether overfeat.fast runs Triton kernels there."""
    return ops.select_backend("skip_classifier_flat", device, kind.dtype).name == "triton"


def untrained(
    sizes: Sizes, dtype: torch.dtype, device: torch.device, hidden: tuple[int, ...] | None = None
) -> OverFeat:
    """The net, or one with other `hidden` layers, with random weights that do not fade, in evaluation mode."""
    architecture = replace(sizes.architecture, hidden=hidden or sizes.architecture.hidden, init_std=None)
    with torch.device(device):
        net = OverFeat(architecture, sizes.classes)
    return net.to(dtype).eval()
