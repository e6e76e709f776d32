"""What is checked and timed: kinds of arithmetic, the first full layer, and its implementations."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.run import EAGER, FAST
from bench.suite.baselines import offset_loop
from bench.tolerance import assert_matches
from overfeat import (
    fast,  # noqa: F401 (registers its backends)
    ops,
)
from overfeat.models.architecture import ARCHITECTURES, Architecture, Conv
from overfeat.models.overfeat import OverFeat
from overfeat.ops import reference
from overfeat.ops.layout import output_shapes

GUARD = 256  # NaN elements on both sides of an input: reads out of bounds become visible
SAMPLES = 16  # outputs and channels whose gradients are compared; each depends on all positions and taps

Results = Tensor | list[Tensor]
Layered = Callable[[Sequence[Tensor], Tensor, Tensor], Results]


@dataclass(frozen=True)
class Kind:
    """Arithmetic: a dtype, and for float32 the precision of matmuls."""

    name: str
    dtype: torch.dtype
    precision: str = "highest"

    @property
    def tolerance(self) -> torch.dtype | str:
        return "tf32" if self.precision == "high" else self.dtype

    @contextmanager
    def active(self) -> Iterator[None]:
        """Matmuls and convolutions of float32 have this precision inside the block."""
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
    """All problem sizes. maps: (height, width) of the last feature maps at each scale."""

    architecture: Architecture
    image: tuple[int, int]
    classes: int
    maps: tuple[tuple[int, int], ...]
    small: tuple[tuple[int, int, int], ...]  # images, height, width of the feature maps of short checks
    pooled: tuple[int, int, int, int]  # [N, C, H, W] of the pooling checks
    channels: tuple[int, int]  # of short checks: divisible by 16, and not
    overlapping: tuple[int, int, int]  # channels, outputs, kernel of a layer after overlapping pools
    gemms: tuple[tuple[int, int, int], ...]  # (m, n, k) for the measured peak
    copied: int  # bytes, for the measured peak of copies
    batches: tuple[int, int]
    crops: int  # in a batch of training
    kinds: tuple[Kind, ...]  # the first is used for most timings

    def layer(self, kind: Kind, maps: Sequence[tuple[int, int, int]], device: torch.device) -> "Layer":
        """The net's first full layer on feature maps of these sizes."""
        a = self.architecture
        return Layer(kind, maps, a.convs[-1].channels, a.hidden[0], a.kernel, a.pool, device)

    def overlapping_layer(self, kind: Kind, images: int, device: torch.device) -> "Layer":
        """A first full layer after 3 x 3 pools of stride 2, as AlexNet's, on a feature map per scale."""
        return Layer(kind, [(images, h, w) for h, w in self.maps], *self.overlapping, 3, device, tap=2)


FULL = Sizes(
    architecture=ARCHITECTURES["accurate"], image=(375, 500), classes=1000,
    maps=((17, 17), (20, 23), (23, 29), (29, 35), (32, 38), (35, 44)),
    small=((2, 17, 17), (1, 20, 23), (3, 16, 15)), pooled=(2, 24, 17, 20), channels=(128, 40),
    overlapping=(256, 4096, 6),
    gemms=((4096, 4096, 4096), (8192, 8192, 8192), (12600, 4096, 25600)), copied=1 << 30,
    batches=(1, 8), crops=128, kinds=(BFLOAT16, TF32, FLOAT16, FLOAT32),
)  # fmt: skip
TINY = Sizes(
    architecture=Architecture("tiny", (Conv(8, 5, stride=2), Conv(16, 3, pool=3)), kernel=2, hidden=(16, 16),
                              short_side=20, scales=((23, 23),) * 5 + ((23, 25),)),
    image=(30, 36), classes=5, maps=((8, 8), (8, 9)), small=((2, 6, 7), (1, 7, 8)), pooled=(2, 5, 7, 8),
    channels=(16, 6), overlapping=(16, 24, 2),
    gemms=((64, 64, 64),), copied=1 << 12, batches=(1, 2), crops=4,
    kinds=(FLOAT16, TF32, FLOAT32),  # Triton's interpreter treats bfloat16 as integers
)  # fmt: skip


def random_values(shape: Sequence[int], kind: Kind, device: torch.device, seed: int, scale: float = 1.0) -> Tensor:
    """Normally distributed values between guards of NaN; four dimensions are channels-last."""
    generator = torch.Generator(device).manual_seed(seed)
    shape = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else tuple(shape)
    count = torch.Size(shape).numel()
    whole = torch.full((count + 2 * GUARD,), torch.nan, dtype=kind.dtype, device=device)
    inner = whole[GUARD : GUARD + count].view(shape)
    inner.copy_(scale * torch.randn(shape, generator=generator, device=device))
    return inner.permute(0, 3, 1, 2) if len(shape) == 4 else inner


@contextmanager
def poisoned() -> Iterator[None]:
    """Uninitialised memory holds NaN inside the block (integers: their maximum)."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about ops without a deterministic implementation, which are not used here
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


class Layer:
    """The classifier's first layer on feature maps of several sizes: inputs, expected results, checks."""

    def __init__(self, kind: Kind, maps: Sequence[tuple[int, int, int]], channels: int, outputs: int, kernel: int,
                 pool: int, device: torch.device, *, tap: int | None = None):  # fmt: skip
        self.kind, self.kernel, self.pool, self.tap = kind, kernel, pool, tap or pool
        self.maps = [random_values((n, channels, h, w), kind, device, seed) for seed, (n, h, w) in enumerate(maps)]
        shape = (outputs, channels, kernel, kernel)
        self.weight = random_values(shape, kind, device, 100, (channels * kernel**2) ** -0.5)
        self.bias = random_values((outputs,), kind, device, 101, 0.2)

    @property
    def positions(self) -> int:
        return sum(n * h * w for n, h, w in output_shapes(self.maps, self.weight, self.pool, self.tap))

    @property
    def flop(self) -> int:
        return 2 * self.positions * self.weight.numel()

    @property
    def bytes_moved(self) -> int:
        """Lower bound: feature maps, weight and result once each."""
        elements = sum(m.numel() for m in self.maps) + self.weight.numel() + self.positions * len(self.weight)
        return elements * self.weight.element_size()

    @cached_property
    def expected(self) -> Tensor:
        """The flat result [positions, outputs] of the reference, in float64."""
        with torch.no_grad():
            return self._reference(self.maps, self.weight, self.bias, relu=True)

    def run(self, implementation: Layered) -> Results:
        with self.kind.active(), torch.no_grad():
            return implementation(self.maps, self.weight, self.bias)

    def ours(self, maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
        """The library's implementation."""
        return ops.skip_classifier_flat(maps, weight, bias, self.pool, tap=self.tap)

    def check(self, implementation: Layered, poison: bool = True) -> None:
        """Raise AssertionError if the results differ from the reference."""
        with poisoned() if poison else nullcontext():
            actual = flatten(self.run(implementation))
        assert_matches(actual, self.expected, self.kind.tolerance)

    def check_gradients(self, implementation: Layered, poison: bool = True) -> None:
        """Check the gradients of bias, and of some channels and outputs of maps and weight, to bound the memory."""
        inputs = [t.detach().requires_grad_() for t in (self.weight, self.bias, *self.maps)]
        with poisoned() if poison else nullcontext(), self.kind.active():
            flat = flatten(implementation(inputs[2:], *inputs[:2]))
            grad = random_values(flat.shape, self.kind, flat.device, 102)
            of_weight, of_bias, *of_maps = torch.autograd.grad(flat, inputs, grad)
        # Near 0, rounding may switch the ReLU, and both results are correct: use the mask of the actual result.
        grad = torch.where(flat > 0, grad.double(), 0.0)
        assert_matches(of_bias, grad.sum(dim=0), self.kind.tolerance)
        outputs, channels = _spread(len(self.weight)), _spread(self.weight.shape[1])
        weight = self.weight[outputs].double().requires_grad_()
        flat = self._reference(self.maps, weight, None, relu=False)
        expected = torch.autograd.grad(flat, weight, grad[:, outputs])[0]
        assert_matches(of_weight[outputs], expected, self.kind.tolerance)
        maps = [m[:, channels].double().requires_grad_() for m in self.maps]
        flat = self._reference(maps, self.weight[:, channels], None, relu=False)
        assert_matches([m[:, channels] for m in of_maps], torch.autograd.grad(flat, maps, grad), self.kind.tolerance)

    def training(self, implementation: Layered) -> Callable[[], object]:
        """A forward and backward pass to time."""
        inputs = [t.detach().requires_grad_() for t in (self.weight, self.bias, *self.maps)]
        with self.kind.active():
            results = implementation(inputs[2:], *inputs[:2])
        grads = [torch.randn_like(r) for r in ([results] if isinstance(results, Tensor) else results)]
        del results

        def step() -> object:
            with self.kind.active():
                results = implementation(inputs[2:], *inputs[:2])
                return torch.autograd.grad([results] if isinstance(results, Tensor) else results, inputs, grads)

        return step

    def _reference(self, maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        weight, bias = weight.double().contiguous(), None if bias is None else bias.double()
        return flatten([reference.skip_classifier(m.double(), weight, bias, self.pool, relu, self.tap) for m in maps])


def flatten(results: Results) -> Tensor:
    """Results as one matrix [positions, outputs]."""
    if isinstance(results, Tensor):
        return results
    return torch.cat([r.permute(0, 2, 3, 1).flatten(0, 2) for r in results])


def _spread(count: int) -> list[int]:
    return sorted({round(x) for x in torch.linspace(0, count - 1, SAMPLES).tolist()})


def pool_and_convolve(maps: Sequence[Tensor], weight: Tensor, bias: Tensor, size: int, tap: int) -> list[Tensor]:
    """Plain PyTorch: pool at stride 1, convolve with dilation."""
    return [F.relu(F.conv2d(F.max_pool2d(m, size, 1), weight, bias, dilation=tap)) for m in maps]


def implementations(layer: Layer, dry: bool, pools: bool = False, singly: bool = False) -> dict[str, Layered]:
    """The implementations of the layer by the name in their rows, eager PyTorch first.

    pools: also with separate and fused pooling forced, if kernels run. singly: also with one call per scale.
    """

    def loop(maps: Sequence[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
        last = SimpleNamespace(weight=weight, bias=bias)
        shape = SimpleNamespace(pool=layer.pool, kernel=layer.kernel)
        net = SimpleNamespace(architecture=shape, classes=len(weight), fc_layers=[last])
        return [offset_loop(net, m).relu_() for m in maps]

    def each(maps: Sequence[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
        return [ops.skip_classifier(m, weight, bias, layer.pool, tap=layer.tap) for m in maps]

    plain = partial(pool_and_convolve, size=layer.pool, tap=layer.tap)
    named: dict[str, Layered] = {EAGER: plain, "torch.compile": compiled(plain, dry), FAST: layer.ours}
    if layer.tap == layer.pool:
        named["loop over offsets"] = loop
    if singly:
        named[f"{FAST}, one call per scale"] = each
    if pools and has_kernels(layer.kind, layer.weight.device):
        for pool in ("separate", "fused"):
            named[f"{FAST}, {pool}"] = forced(layer.ours, pool=pool)
    return named


def forced(implementation: Layered, **options: object) -> Layered:
    """With launch options forced (kernels/launch.py)."""
    from overfeat.kernels import launch

    def run(*arguments: object) -> Results:
        with launch.override(**options):
            return implementation(*arguments)

    return run


def compiled(function: Callable, dry: bool, dry_backend: str = "eager", **options: object) -> Callable:
    """The function under torch.compile; earlier compilations are discarded, or they would reach its limit."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, backend=dry_backend if dry else "inductor", **options)


def has_kernels(kind: Kind, device: torch.device) -> bool:
    """Whether overfeat.fast runs Triton kernels on this device."""
    return ops.select_backend("skip_classifier_flat", device, kind.dtype).name == "triton"


def untrained(
    sizes: Sizes, dtype: torch.dtype, device: torch.device, hidden: tuple[int, ...] | None = None
) -> OverFeat:
    """The net, or one with other `hidden` layers, with random weights that keep the scale of activations."""
    architecture = replace(sizes.architecture, hidden=hidden or sizes.architecture.hidden, init_std=None)
    with torch.device(device):
        net = OverFeat(architecture, sizes.classes)
    return net.to(dtype).eval()
