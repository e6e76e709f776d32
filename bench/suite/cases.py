"""The cases of each suite, with the implementations that this machine can run.

Nets, images and feature maps are created when a case's `inputs` first run, so listing the cases costs nothing.
"""

import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.suite.baselines import classifier as eager_classifier
from bench.suite.baselines import (
    eager,
    features,
    first_layer,
    monai_windows,
    naive_windows,
    offset_loop,
    single_windows,
)
from bench.suite.runner import Case, Implementation, Run
from bench.suite.synthetic import IMAGE_SIZE, NUM_BOXES, boxes_of_one_class
from overfeat import ops
from overfeat.classification.predict import classify
from overfeat.data.resize import resize
from overfeat.dense.scales import six_scales
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.flops import stage_macs
from overfeat.models.overfeat import OverFeat, build
from overfeat.ops import backend, merge_boxes
from overfeat.ops.backends.winograd import without_winograd

OURS, FAST, DIRECT = "overfeat", "overfeat.fast", "overfeat.fast-direct"  # -direct: without Winograd convolutions
EAGER, COMPILED = "torch.eager", "torch.compile"
LOOP, NAIVE, MONAI = "offset-loop", "naive-windows", "monai"
PAPER_LOOP, NMS, WBF = "paper-loop", "nms", "wbf"
IMPLEMENTATIONS = (OURS, FAST, DIRECT, EAGER, COMPILED, LOOP, NAIVE, MONAI, PAPER_LOOP, NMS, WBF)
CLASSES = 1000
IMAGE = (375, 500)  # height, width: a common size of ImageNet images
ACCURATE = ARCHITECTURES["accurate"]
SIZES = six_scales(ACCURATE, *IMAGE)
COMPARED_OUTPUTS = 64  # of each layer: comparing all gradients takes longer than the training step
NOISE_PERIOD = 1_000_003  # of the random weights: a prime, so that no two rows are equal


@dataclass(eq=False)
class Machine:
    """The device of a run and the nets, images and feature maps that its suites share."""

    run: Run

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
    def net(self, name: str, dtype: torch.dtype) -> OverFeat:
        """A net of 1,000 classes with random weights that keep the scale of the activations."""
        net = _without_weights(name).to_empty(device=self.device)
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
        implementations = {OURS: Implementation(torch.no_grad()(_within(partial(backend, "torch"), function)))}
        if self.fast:  # on a CPU weights are packed at the second call
            implementations[FAST] = Implementation(torch.no_grad()(function), warmup=3)
        return implementations

    def torch(self, function: Callable[..., object], call: Callable[[Callable], object]) -> dict[str, Implementation]:
        """call(function) in eager PyTorch and, unless the run is quick, with the function under torch.compile."""
        implementations = {EAGER: baseline(partial(call, function))}
        if not self.quick:
            implementations[COMPILED] = baseline(partial(call, compiled(function)))
        return implementations

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


def _without_weights(name: str) -> OverFeat:
    with torch.device("meta"):
        return build(name, CLASSES)


@functools.cache
def weight_bytes(name: str, layers: str = "") -> int:
    """Bytes of a net's float32 weights, or of the layers whose names start with `layers`, such as "fc_layers.0"."""
    return sum(4 * p.numel() for n, p in _without_weights(name).named_parameters() if n.startswith(layers))


def _within(context: Callable, function: Callable[[], object]) -> Callable[[], object]:
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


def dense(machine: Machine) -> Iterator[Case]:
    """The accurate net at each scale, fine stride: image to class scores of every window."""
    for number in (1, 3) if machine.quick else range(1, 7):
        counts = stage_macs(ACCURATE, *SIZES[number - 1], CLASSES, "fine")

        def call(function: Callable[[OverFeat, Tensor], object], number: int = number) -> object:
            return function(machine.net("accurate", torch.float32), machine.scaled(number))

        implementations = machine.ours(partial(call, lambda net, image: net(image, "fine")))
        implementations |= machine.torch(eager, call)
        implementations[LOOP] = baseline(
            partial(call, lambda net, image: offset_loop(net, features(net, image))), cold=True
        )
        if number == (1 if machine.quick else 6):
            implementations |= machine.windows(call)
        yield Case(
            "dense", "accurate net", f"scale {number}: {_size(SIZES[number - 1])}, {counts['positions']} windows", LOOP,
            implementations, partial(call, _create_inputs),
            flop=2 * (counts["features"] + counts["first"] + counts["rest"]),
            bytes_moved=weight_bytes("accurate") + 4 * CLASSES * counts["positions"],
        )  # fmt: skip


def classifier(machine: Machine) -> Iterator[Case]:
    """The accurate net's classifier: its first layer at each scale, and all layers for six scales in one call."""
    for dtype in machine.dtypes:
        for number in (1, 4) if machine.quick else range(1, 7):
            counts = stage_macs(ACCURATE, *SIZES[number - 1], CLASSES, "fine")

            def call(function: Callable[[OverFeat, Tensor], object], number: int = number, dtype=dtype) -> object:
                return function(machine.net("accurate", dtype), machine.maps(number, dtype))

            implementations = machine.ours(partial(call, _our_first_layer)) | machine.torch(first_layer, call)
            implementations[LOOP] = baseline(partial(call, partial(offset_loop, layers=1)))
            # The feature maps are small beside the outputs and the weights.
            outputs = 4 * ACCURATE.hidden[0] * counts["positions"]
            yield Case(
                "classifier", "first full layer", f"scale {number}: {counts['positions']} windows", LOOP,
                implementations,
                partial(call, _create_inputs), dtype, 2 * counts["first"],
                (weight_bytes("accurate", "fc_layers.0") + outputs) * dtype.itemsize / 4,
            )  # fmt: skip
        if machine.quick:
            continue
        counts = [stage_macs(ACCURATE, *size, CLASSES, "fine") for size in SIZES]
        positions = sum(count["positions"] for count in counts)

        def on_all(function: Callable[[OverFeat, list[Tensor]], object], dtype: torch.dtype = dtype) -> object:
            return function(machine.net("accurate", dtype), [machine.maps(n, dtype) for n in range(1, 7)])

        implementations = machine.ours(partial(on_all, lambda net, maps: net.classifier(maps, "fine")))
        implementations |= machine.torch(_each(eager_classifier), on_all)
        implementations[LOOP] = baseline(partial(on_all, _each(offset_loop)))
        yield Case(
            "classifier", "all full layers", f"six scales: {positions} windows", LOOP, implementations,
            partial(on_all, _create_inputs), dtype, 2 * sum(count["first"] + count["rest"] for count in counts),
            (weight_bytes("accurate", "fc_layers") + 4 * CLASSES * positions) * dtype.itemsize / 4,
        )  # fmt: skip


def merge(machine: Machine) -> Iterator[Case]:
    """Greedy merging of the boxes of one image and class, beside the paper's loop, NMS and weighted box fusion."""
    for count in (300,) if machine.quick else (300, NUM_BOXES):
        boxes, scores = (t.to(machine.device) for t in boxes_of_one_class(count))

        def merged(boxes: Tensor = boxes, scores: Tensor = scores) -> list[Tensor]:
            result = merge_boxes(boxes, scores)
            return [result.boxes, result.scores]

        implementations = machine.ours(merged) if machine.device.type == "cuda" else {OURS: Implementation(merged)}
        implementations[PAPER_LOOP] = baseline(_within(partial(backend, "reference"), merged), cold=True)
        if machine.has("ensemble_boxes", f"{NMS}, {WBF}"):
            implementations |= _ensemble_boxes(boxes, scores)
        yield Case(
            "merge",
            "merge_boxes",
            f"{count} boxes, one class",
            PAPER_LOOP,
            implementations,
            _create_inputs,
            bytes_moved=boxes.nbytes * 1.25,
        )


def _ensemble_boxes(boxes: Tensor, scores: Tensor) -> dict[str, Implementation]:
    """NMS and weighted box fusion of ensemble-boxes, on the CPU, with boxes in 0..1 as it expects them."""
    from ensemble_boxes import nms, weighted_boxes_fusion

    lists = [(boxes.cpu() / IMAGE_SIZE).numpy()], [scores.cpu().numpy()], [torch.zeros(len(boxes)).numpy()]
    functions = {NMS: partial(nms, *lists, iou_thr=0.5), WBF: partial(weighted_boxes_fusion, *lists, iou_thr=0.55)}
    remark = "ensemble-boxes on the CPU; results differ by design: {} boxes kept"
    return {
        name: baseline(function, compare_with="", remark=lambda result: remark.format(len(result[0])))
        for name, function in functions.items()
    }


def train(machine: Machine) -> Iterator[Case]:
    """A training step on windows, without dropout: forward, and forward with backward, as in convnet-benchmarks."""
    batches = {"fast": 4} if machine.quick else {"fast": 128, "accurate": 32}
    if machine.device.type == "cuda":
        batches = dict.fromkeys(batches, 128)
    for name, batch in batches.items():
        side = ARCHITECTURES[name].window
        counts = stage_macs(ARCHITECTURES[name], side, side, CLASSES, "coarse")
        flop = 2 * batch * (counts["features"] + counts["first"] + counts["rest"])

        def call(function: Callable[[OverFeat, Tensor], object], name=name, batch=batch, side=side) -> object:
            return function(machine.net(name, torch.float32), machine.pixels(batch, side, side))

        shape = f"{batch} x 3 x {side} x {side}"
        inputs = partial(call, _create_inputs)
        implementations = machine.ours(partial(call, _our_scores)) | machine.torch(single_windows, call)
        moved = weight_bytes(name)
        yield Case(
            "train", f"{name} net, forward", shape, EAGER, implementations, inputs, torch.float32, flop, moved, batch
        )

        def stepped(function: Callable[[OverFeat, Tensor], Tensor], call: Callable = call) -> object:
            return call(partial(_step, function))

        implementations = machine.ours(partial(stepped, _our_scores))
        if machine.device.type == "cpu" and implementations.pop(FAST, None):
            machine.run.skip(f"train, backward, {FAST}", f"on a CPU it equals {OURS} when gradients are needed")
        implementations |= machine.torch(single_windows, stepped)
        # Counted as three times the forward pass, although the first convolution needs no gradient of its input.
        yield Case(
            "train", f"{name} net, forward and backward", shape, EAGER, implementations, inputs,
            torch.float32, 3 * flop, 3 * moved, batch,
        )  # fmt: skip


def _step(function: Callable[[OverFeat, Tensor], Tensor], net: OverFeat, windows: Tensor) -> list[Tensor]:
    """Forward and backward; the gradients of the first outputs of each layer."""
    with torch.enable_grad():
        scores = function(net, windows)
        F.cross_entropy(scores, torch.arange(len(scores), device=scores.device) % CLASSES).backward()
    gradients = [layer.weight.grad[:COMPARED_OUTPUTS].clone() for layer in (*net.conv_layers, *net.fc_layers)]
    net.zero_grad(set_to_none=True)
    return gradients


def end_to_end(machine: Machine) -> Iterator[Case]:
    """An image to class scores: the accurate net at six scales, fine stride, no horizontal flip."""
    counts = [stage_macs(ACCURATE, *size, CLASSES, "fine") for size in SIZES]
    positions = sum(count["positions"] for count in counts)
    for dtype in machine.dtypes:

        def call(function: Callable[[OverFeat, Tensor], object], dtype: torch.dtype = dtype) -> object:
            return function(machine.net("accurate", dtype), machine.pixels(1, *IMAGE))

        def by(windows: Callable[[OverFeat, Tensor], Tensor], call: Callable = call) -> object:
            return call(partial(_vote, windows))

        ours = partial(call, lambda net, image: classify(net, image, flip=False))
        implementations = machine.ours(ours) | machine.torch(eager, by)
        if dtype == torch.float32 and not machine.quick:
            implementations[LOOP] = baseline(
                partial(by, lambda net, image: offset_loop(net, features(net, image))), cold=True
            )
            implementations |= machine.windows(by)
            if machine.fast and machine.device.type == "cpu":
                implementations[DIRECT] = Implementation(torch.no_grad()(_within(without_winograd, ours)))
        yield Case(
            "end-to-end", "accurate net, six scales", f"{_size(IMAGE)}, {positions} windows", EAGER, implementations,
            partial(call, _create_inputs), dtype,
            2 * sum(count[part] for count in counts for part in ("features", "first", "rest")),
            weight_bytes("accurate") * dtype.itemsize / 4, 1,
        )  # fmt: skip


def _vote(windows: Callable[[OverFeat, Tensor], Tensor], net: OverFeat, image: Tensor) -> Tensor:
    """The mean over six scales of each class's maximum softmax score over the windows of a scale."""
    maxima = [windows(net, resize(image, size)).float().softmax(dim=1).amax(dim=(2, 3)) for size in SIZES]
    return torch.stack(maxima).mean(dim=0)


def _our_first_layer(net: OverFeat, maps: Tensor) -> Tensor:
    return ops.skip_classifier(maps, net.fc_layers[0].weight, net.fc_layers[0].bias, net.architecture.pool)


def _our_scores(net: OverFeat, windows: Tensor) -> Tensor:
    return net(windows).flatten(1)


def _each(function: Callable[[OverFeat, Tensor], Tensor]) -> Callable[[OverFeat, list[Tensor]], list[Tensor]]:
    return lambda net, maps: [function(net, m) for m in maps]


def _create_inputs(*_: object) -> None:
    """For a case's `inputs`: asking the machine for them creates them."""


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


SUITES: dict[str, Callable[[Machine], Iterator[Case]]] = {
    "dense": dense,
    "classifier": classifier,
    "merge": merge,
    "train": train,
    "end-to-end": end_to_end,
}
