"""The machine of a run: the implementations that it can run, and the nets, images and maps that suites share.

Nets, images and feature maps are created when a case's `inputs` first run, so listing the cases costs nothing.
"""

import functools
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch._inductor import config as inductor_config

from bench.suite.baselines import features, monai_windows, naive_windows
from bench.suite.names import COMPILED, EAGER, FAST, FROZEN, MONAI, NAIVE, ONNXRUNTIME, OPENVINO, OURS
from bench.suite.runner import Implementation, Run
from bench.suite.runtimes import EXPORTER, IMAGE_SIZE, Exported, has_bfloat16
from overfeat import ops
from overfeat.data.resize import resize
from overfeat.dense.scales import six_scales
from overfeat.models.architecture import ARCHITECTURES, Architecture
from overfeat.models.overfeat import OverFeat, build
from overfeat.models.plain import PlainNet
from overfeat.ops import backend

CLASSES = 1000
IMAGE = (375, 500)  # height, width: a common size of ImageNet images
ACCURATE = ARCHITECTURES["accurate"]
SIZES = six_scales(ACCURATE.geometry, *IMAGE)
NOISE_PERIOD = 1_000_003  # of the random weights: a prime, so that no two rows are equal


@dataclass(eq=False)
class Machine:
    """The device of a run and the nets, images and feature maps that its suites share.

    tiny: the cases of the kernels are tiny, for Triton's interpreter; their times have no meaning.
    """

    run: Run
    tiny: bool = False

    @property
    def quick(self) -> bool:
        return self.run.quick

    @property
    def device(self) -> torch.device:
        return self.run.device

    @cached_property
    def fast(self) -> bool:
        """Whether overfeat.fast has a backend for this device; if not, that is recorded."""
        available = ops.select_backend("skip_classifier_flat", self.device, torch.float32).name != "torch"
        if not available:
            self.run.skip(FAST, "no backend for this device; see `overfeat.fast.status()`")
        return available

    def has(self, module: str, implementations: str) -> bool:
        """Whether a package can be imported; if not, the implementations that need it are recorded as skipped."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except ImportError as error:
            self.run.skip(implementations, f"{error}; it is in the extra bench")
            return False
        return True

    @cached_property
    def dtypes(self) -> list[torch.dtype]:
        """float32, and bfloat16 if the device supports it; float32 alone in a quick run on a CPU."""
        if self.quick and self.device.type == "cpu":
            return [torch.float32]
        if self.device.type == "cuda":
            supported = torch.cuda.is_bf16_supported(False)
        else:
            supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if not supported:
            self.run.skip("bfloat16", "this device does not support it")
        return [torch.float32, *([torch.bfloat16] if supported else [])]

    @functools.cache  # noqa: B019  (a Machine lives as long as the run)
    def net(self, name: str | Architecture, dtype: torch.dtype, classes: int = CLASSES) -> OverFeat:
        """A net with random weights that keep the scale of the activations."""
        net = _without_weights(name, classes).to_empty(device=self.device)
        noise = torch.randn(NOISE_PERIOD, generator=torch.Generator().manual_seed(0)).to(self.device)
        with torch.no_grad():
            for layer in (*net.conv_layers, *net.fc_layers):
                weight = layer.weight
                values = noise.repeat(-(-weight.numel() // NOISE_PERIOD))[: weight.numel()].view(weight.shape)
                weight.copy_(values * (2 / weight[0].numel()) ** 0.5)
                layer.bias.zero_()
        return net.eval().to(dtype)

    @functools.cache  # noqa: B019
    def pixels(self, count: int, height: int, width: int) -> Tensor:
        """Random images, uint8."""
        g = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=g).to(self.device)

    @functools.cache  # noqa: B019
    def scaled(self, number: int) -> Tensor:
        """An image at one of the accurate net's six scales, numbered from 1."""
        return resize(self.pixels(1, *IMAGE), SIZES[number - 1])

    @functools.cache  # noqa: B019
    def maps(self, number: int, dtype: torch.dtype) -> Tensor:
        """The accurate net's last feature maps at a scale."""
        with torch.no_grad():
            return features(self.net("accurate", dtype), self.scaled(number))

    def ours(self, function: Callable[[], object]) -> dict[str, Implementation]:
        """A function of the library on the eager backend, and on the backend that overfeat.fast selects."""
        implementations = {OURS: Implementation(torch.no_grad()(within(partial(backend, "torch"), function)))}
        if self.fast:  # on a CPU weights are packed at the second call
            implementations[FAST] = Implementation(torch.no_grad()(function), warmup=3)
        return implementations

    def runtimes(
        self, exported: Exported, call: Callable[[Callable[..., Tensor]], object],
        dtype: torch.dtype = torch.float32, suffix: str = "", **more: object,
    ) -> dict[str, Implementation]:  # fmt: skip
        """call(function), where the function is an exported module in ONNX Runtime, and in OpenVINO."""
        return {
            name + suffix: baseline(partial(call, partial(exported.run, name, dtype)), **more)
            for name in self._runtimes_for(dtype)
        }

    @functools.cache  # noqa: B019
    def _runtimes_for(self, dtype: torch.dtype) -> list[str]:
        """The runtimes that can run in this dtype; why the others cannot is recorded."""
        both = f"{ONNXRUNTIME}, {OPENVINO}"
        if self.device.type != "cpu":
            self.run.skip(both, "they are measured on a CPU")
            return []
        if not self.has(EXPORTER, both):
            return []
        names = [name for name in (ONNXRUNTIME, OPENVINO) if self.has(name, name)]
        if dtype == torch.bfloat16 and ONNXRUNTIME in names:
            self.run.skip(f"{ONNXRUNTIME}, bfloat16", "it has no convolutions in bfloat16 on a CPU")
            names.remove(ONNXRUNTIME)
        if dtype == torch.bfloat16 and OPENVINO in names and not has_bfloat16():
            self.run.skip(f"{OPENVINO}, bfloat16", "it does not support it on this processor")
            names.remove(OPENVINO)
        return names

    @functools.cache  # noqa: B019
    def exported(self, name: str, classes: int = CLASSES) -> Exported:
        """A net with the weights of `net`, at fine stride, for other runtimes: images of any size -> logits."""
        side = ARCHITECTURES[name].window + 4 * ARCHITECTURES[name].fine_stride
        return Exported(
            lambda: PlainNet(self.net(name, torch.float32, classes)),
            lambda: [self.pixels(1, side, side + 4)], [IMAGE_SIZE],
        )  # fmt: skip

    def torch(self, function: Callable[..., object], call: Callable[[Callable], object]) -> dict[str, Implementation]:
        """call(function) in eager PyTorch and, unless the run is quick, with the function under torch.compile."""
        implementations = {EAGER: baseline(partial(call, function))}
        if not self.quick:
            implementations[COMPILED] = baseline(partial(call, compiled(function)))
        return implementations

    def frozen(self, function: Callable[..., object], call: Callable[[Callable], object]) -> dict[str, Implementation]:
        """As `torch`, with the function compiled for constant weights; on a CPU, unless the run is quick."""
        if self.quick or self.device.type != "cpu":
            return {}
        own = compiled(lambda *inputs: function(*inputs))  # not the function that `torch` compiles
        return {FROZEN: baseline(within(partial(inductor_config.patch, freezing=True), partial(call, own)))}

    def windows(self, call: Callable[[Callable[[OverFeat, Tensor], Tensor]], Tensor]) -> dict[str, Implementation]:
        """Every window on its own, by a loop and by MONAI."""
        batch = 64 if self.device.type == "cuda" else 16
        padded = f"batches of {batch} windows, each padded at its own border: scores differ by design"
        run = partial(call, partial(naive_windows, batch=batch))
        implementations = {NAIVE: baseline(run, compare_with="", cold=True, remark=padded)}
        if self.has("monai.inferers", MONAI):
            run = partial(call, partial(monai_windows, batch=batch))
            implementations[MONAI] = baseline(run, compare_with=NAIVE, cold=True, remark=f"equal to {NAIVE}")
        return implementations


def _without_weights(name: str | Architecture, classes: int = CLASSES) -> OverFeat:
    with torch.device("meta"):
        return build(name, classes)


@functools.cache
def weight_bytes(name: str, layers: str = "") -> int:
    """Bytes of a net's float32 weights, or of the layers whose names start with `layers`, such as "fc_layers.0"."""
    return sum(4 * p.numel() for n, p in _without_weights(name).named_parameters() if n.startswith(layers))


def within(context: Callable, function: Callable[[], object]) -> Callable[[], object]:
    """The function run inside a context manager."""

    def run() -> object:
        with context():
            return function()

    return run


def baseline(function: Callable[[], object], **more: object) -> Implementation:
    """An implementation that is not part of the library."""
    return Implementation(torch.no_grad()(function), baseline=True, **more)


def compiled(function: Callable[..., object]) -> Callable[..., object]:
    """The function under torch.compile, specialized for each shape; graph breaks are errors."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def create_inputs(*_: object) -> None:
    """For a case's `inputs`: asking the machine for them creates them."""
