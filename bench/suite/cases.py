"""What the suites measure: the cases of each, on the device and with the backends that there are.

Nets, images and maps are made when a case's `inputs` first run, so that cases can be listed at no cost.
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

from bench.suite.baselines import (
    eager,
    first_layer,
    maps_of,
    monai_windows,
    naive_windows,
    offset_loop,
    stage,
    windows_alone,
)
from bench.suite.made_up import CANVAS, PLACES, one_image
from bench.suite.run import Case, Run, Way
from overfeat import ops
from overfeat.classification.predict import classify
from overfeat.data.resize import resize
from overfeat.dense.scales import six_scales
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.flops import work
from overfeat.models.overfeat import OverFeat, build
from overfeat.ops import backend, merge_boxes
from overfeat.ops.backends import prepacked

OURS, FAST, DIRECT = "overfeat", "overfeat.fast", "overfeat.fast-direct"  # the last without Winograd's convolutions
EAGER, COMPILED = "torch.eager", "torch.compile"
LOOP, NAIVE, MONAI = "offset-loop", "naive-windows", "monai"
PAPER_LOOP, NMS, WBF = "paper-loop", "nms", "wbf"
WAYS = (OURS, FAST, DIRECT, EAGER, COMPILED, LOOP, NAIVE, MONAI, PAPER_LOOP, NMS, WBF)
CLASSES = 1000
IMAGE = (375, 500)  # height, width: the usual size of an ImageNet picture
ACCURATE = ARCHITECTURES["accurate"]
SIZES = six_scales(ACCURATE, *IMAGE)
COMPARED = 64  # outputs of each layer whose gradients are: comparing all takes longer than the step
PERIOD = 1_000_003  # of the noise in weights: a prime, so that no two rows are alike


@dataclass(eq=False)
class Machine:
    """What the suites are run on, and how thoroughly; what they share."""

    run: Run

    @property
    def quick(self) -> bool:
        return self.run.quick

    @property
    def device(self) -> torch.device:
        return self.run.device

    @cached_property
    def fast(self) -> bool:
        """Whether overfeat.fast has a backend for this device; a word about it where it has none."""
        probe = torch.zeros(1, 8, 30, 30, device=self.device)
        there = ops.chosen("skip_classifier_flat", probe, 3) != "torch"
        if not there:
            self.run.leave_out(FAST, "it has no backend for this device; `overfeat.fast.status()` says why")
        return there

    def has(self, module: str, ways: str) -> bool:
        """Whether a package is there, imported; a word about it where it is not."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except ImportError as error:
            self.run.leave_out(ways, f"{error}; it is in the extra bench")
            return False
        return True

    @cached_property
    def dtypes(self) -> list[torch.dtype]:
        """float32, and bfloat16 where the device has its arithmetic; on a CPU only if not all is to be quick."""
        if self.quick and self.device.type == "cpu":
            return [torch.float32]
        if self.device.type == "cuda":
            there = torch.cuda.is_bf16_supported(False)
        else:
            there = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if not there:
            self.run.leave_out("bfloat16", "this device has no arithmetic for it")
        return [torch.float32, *([torch.bfloat16] if there else [])]

    @functools.cache  # noqa: B019  it lives as long as the run
    def net(self, name: str, dtype: torch.dtype) -> OverFeat:
        """A net with random weights that let its values through, of 1,000 classes."""
        net = _without_weights(name).to_empty(device=self.device)
        noise = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0)).to(self.device)
        with torch.no_grad():
            for layer in (*net.conv_layers, *net.fc_layers):
                weight = layer.weight
                values = noise.repeat(-(-weight.numel() // PERIOD))[: weight.numel()].view(weight.shape)
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
        """An image at one of the accurate net's six scales, from 1."""
        return resize(self.pixels(1, *IMAGE), SIZES[number - 1])

    @functools.cache  # noqa: B019
    def maps(self, number: int, dtype: torch.dtype) -> Tensor:
        """The accurate net's last maps there."""
        with torch.no_grad():
            return maps_of(self.net("accurate", dtype), self.scaled(number))

    def ours(self, function: Callable[[], object]) -> dict[str, Way]:
        """A function of the library on stock torch, and on what overfeat.fast chooses."""
        ways = {OURS: Way(torch.no_grad()(_within(partial(backend, "torch"), function)))}
        if self.fast:  # on a CPU weights are prepared at the second call
            ways[FAST] = Way(torch.no_grad()(function), warm=3)
        return ways

    def torch(self, function: Callable[..., object], call: Callable[[Callable], object]) -> dict[str, Way]:
        """call(function) in stock torch and, unless all is to be quick, call(function by torch.compile)."""
        ways = {EAGER: baseline(partial(call, function))}
        if not self.quick:
            ways[COMPILED] = baseline(partial(call, compiled(function)))
        return ways

    def windows(self, call: Callable[[Callable[[OverFeat, Tensor], Tensor]], Tensor]) -> dict[str, Way]:
        """Every window on its own, by a loop and by MONAI."""
        batch = 64 if self.device.type == "cuda" else 16
        padded = f"windows in batches of {batch}, each padded at its own border, so other scores by design"
        ways = {NAIVE: baseline(partial(call, partial(naive_windows, batch=batch)), like="", cold=True, remark=padded)}
        if self.has("monai.inferers", MONAI):
            run = partial(call, partial(monai_windows, batch=batch))
            ways[MONAI] = baseline(run, like=NAIVE, cold=True, remark=f"equal to {NAIVE}")
        return ways


def _without_weights(name: str) -> OverFeat:
    with torch.device("meta"):
        return build(name, CLASSES)


@functools.cache
def weight_bytes(name: str, layers: str = "") -> int:
    """Bytes of a net's float32 weights; layers: "fc_layers" or "fc_layers.0", for those alone."""
    return sum(4 * p.numel() for n, p in _without_weights(name).named_parameters() if n.startswith(layers))


def _within(context: Callable, function: Callable[[], object]) -> Callable[[], object]:
    """The function, run within the context."""

    def run() -> object:
        with context():
            return function()

    return run


def baseline(function: Callable[[], object], **more: object) -> Way:
    """A way that is not ours."""
    return Way(torch.no_grad()(function), baseline=True, **more)


def compiled(function: Callable[..., object]) -> Callable[..., object]:
    """The function by torch.compile: for each shape on its own, and an error where it cannot."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def dense(machine: Machine) -> Iterator[Case]:
    """The accurate net over each scale, fine stride, image to class scores of every window."""
    for number in (1, 3) if machine.quick else range(1, 7):
        counts = work(ACCURATE, *SIZES[number - 1], CLASSES, "fine")

        def call(function: Callable[[OverFeat, Tensor], object], number: int = number) -> object:
            return function(machine.net("accurate", torch.float32), machine.scaled(number))

        ways = machine.ours(partial(call, lambda net, image: net(image, "fine")))
        ways |= machine.torch(eager, call)
        ways[LOOP] = baseline(partial(call, lambda net, image: offset_loop(net, maps_of(net, image))), cold=True)
        if number == (1 if machine.quick else 6):
            ways |= machine.windows(call)
        yield Case(
            "dense", "accurate net", f"scale {number}: {_size(SIZES[number - 1])}, {counts['places']} windows", LOOP,
            ways, partial(call, _only_made), flop=2 * (counts["features"] + counts["first"] + counts["rest"]),
            moved=weight_bytes("accurate") + 4 * CLASSES * counts["places"],
        )  # fmt: skip


def classifier(machine: Machine) -> Iterator[Case]:
    """The accurate net's classifier: its first layer at each scale, and all of it for six scales in one call."""
    for dtype in machine.dtypes:
        for number in (1, 4) if machine.quick else range(1, 7):
            counts = work(ACCURATE, *SIZES[number - 1], CLASSES, "fine")

            def call(function: Callable[[OverFeat, Tensor], object], number: int = number, dtype=dtype) -> object:
                return function(machine.net("accurate", dtype), machine.maps(number, dtype))

            ways = machine.ours(partial(call, _our_first_layer)) | machine.torch(first_layer, call)
            ways[LOOP] = baseline(partial(call, partial(offset_loop, layers=1)))
            outputs = 4 * ACCURATE.hidden[0] * counts["places"]  # the maps are little beside these and the weights
            yield Case(
                "classifier", "first full layer", f"scale {number}: {counts['places']} windows", LOOP, ways,
                partial(call, _only_made), dtype, 2 * counts["first"],
                (weight_bytes("accurate", "fc_layers.0") + outputs) * dtype.itemsize / 4,
            )  # fmt: skip
        if machine.quick:
            continue
        counts = [work(ACCURATE, *size, CLASSES, "fine") for size in SIZES]
        places = sum(count["places"] for count in counts)

        def on_all(function: Callable[[OverFeat, list[Tensor]], object], dtype: torch.dtype = dtype) -> object:
            return function(machine.net("accurate", dtype), [machine.maps(n, dtype) for n in range(1, 7)])

        ways = machine.ours(partial(on_all, lambda net, maps: net.classifier(maps, "fine")))
        ways |= machine.torch(_each(stage), on_all)
        ways[LOOP] = baseline(partial(on_all, _each(offset_loop)))
        yield Case(
            "classifier", "all full layers", f"six scales: {places} windows", LOOP, ways, partial(on_all, _only_made),
            dtype, 2 * sum(count["first"] + count["rest"] for count in counts),
            (weight_bytes("accurate", "fc_layers") + 4 * CLASSES * places) * dtype.itemsize / 4,
        )  # fmt: skip


def merge(machine: Machine) -> Iterator[Case]:
    """Greedy merging of one image and class: beside the paper's loop, suppression and weighted box fusion."""
    for count in (300,) if machine.quick else (300, PLACES):
        boxes, scores = (t.to(machine.device) for t in one_image(count))

        def merged(boxes: Tensor = boxes, scores: Tensor = scores) -> list[Tensor]:
            found = merge_boxes(boxes, scores)
            return [found.boxes, found.scores]

        ways = machine.ours(merged) if machine.device.type == "cuda" else {OURS: Way(merged)}
        ways[PAPER_LOOP] = baseline(_within(partial(backend, "reference"), merged), cold=True)
        if machine.has("ensemble_boxes", f"{NMS}, {WBF}"):
            ways |= _ensemble_boxes(boxes, scores)
        yield Case(
            "merge", "merge_boxes", f"{count} boxes, one class", PAPER_LOOP, ways, _only_made, moved=boxes.nbytes * 1.25
        )


def _ensemble_boxes(boxes: Tensor, scores: Tensor) -> dict[str, Way]:
    """NMS and weighted box fusion of ensemble-boxes, which run on the CPU, with boxes as they want them."""
    from ensemble_boxes import nms, weighted_boxes_fusion

    lists = [(boxes.cpu() / CANVAS).numpy()], [scores.cpu().numpy()], [torch.zeros(len(boxes)).numpy()]
    ways = {NMS: partial(nms, *lists, iou_thr=0.5), WBF: partial(weighted_boxes_fusion, *lists, iou_thr=0.55)}
    told = "of ensemble-boxes, on the CPU; another result: {} boxes left"
    return {name: baseline(way, like="", remark=lambda got: told.format(len(got[0]))) for name, way in ways.items()}


def train(machine: Machine) -> Iterator[Case]:
    """A step on windows, without dropout: forward, and forward with backward; the fast net as in convnet-benchmarks."""
    batches = {"fast": 4} if machine.quick else {"fast": 128, "accurate": 32}
    if machine.device.type == "cuda":
        batches = dict.fromkeys(batches, 128)
    for name, batch in batches.items():
        side = ARCHITECTURES[name].window
        counts = work(ARCHITECTURES[name], side, side, CLASSES, "coarse")
        flop = 2 * batch * (counts["features"] + counts["first"] + counts["rest"])

        def call(function: Callable[[OverFeat, Tensor], object], name=name, batch=batch, side=side) -> object:
            return function(machine.net(name, torch.float32), machine.pixels(batch, side, side))

        shape = f"{batch} x 3 x {side} x {side}"
        inputs = partial(call, _only_made)
        ways = machine.ours(partial(call, _our_scores)) | machine.torch(windows_alone, call)
        moved = weight_bytes(name)
        yield Case("train", f"{name} net, forward", shape, EAGER, ways, inputs, torch.float32, flop, moved, batch)

        def stepped(function: Callable[[OverFeat, Tensor], Tensor], call: Callable = call) -> object:
            return call(partial(_step, function))

        ways = machine.ours(partial(stepped, _our_scores))
        if machine.device.type == "cpu" and ways.pop(FAST, None):
            machine.run.leave_out(f"train, backward, {FAST}", f"with gradients it is {OURS} on a CPU")
        ways |= machine.torch(windows_alone, stepped)
        # The first convolution has no gradient of its input; the count says three times the forward all the same.
        yield Case(
            "train", f"{name} net, forward and backward", shape, EAGER, ways, inputs, torch.float32, 3 * flop,
            3 * moved, batch,
        )  # fmt: skip


def _step(function: Callable[[OverFeat, Tensor], Tensor], net: OverFeat, windows: Tensor) -> list[Tensor]:
    """Forward and backward; gives some of the gradients, and leaves none behind."""
    with torch.enable_grad():
        scores = function(net, windows)
        F.cross_entropy(scores, torch.arange(len(scores), device=scores.device) % CLASSES).backward()
    gradients = [layer.weight.grad[:COMPARED].clone() for layer in (*net.conv_layers, *net.fc_layers)]
    net.zero_grad(set_to_none=True)
    return gradients


def end_to_end(machine: Machine) -> Iterator[Case]:
    """An image to the scores of its classes: six scales of the accurate net, fine stride, no mirror images."""
    counts = [work(ACCURATE, *size, CLASSES, "fine") for size in SIZES]
    places = sum(count["places"] for count in counts)
    for dtype in machine.dtypes:

        def call(function: Callable[[OverFeat, Tensor], object], dtype: torch.dtype = dtype) -> object:
            return function(machine.net("accurate", dtype), machine.pixels(1, *IMAGE))

        def by(windows: Callable[[OverFeat, Tensor], Tensor], call: Callable = call) -> object:
            return call(partial(_vote, windows))

        ours = partial(call, lambda net, image: classify(net, image, flip=False))
        ways = machine.ours(ours) | machine.torch(eager, by)
        if dtype == torch.float32 and not machine.quick:
            ways[LOOP] = baseline(partial(by, lambda net, image: offset_loop(net, maps_of(net, image))), cold=True)
            ways |= machine.windows(by)
            if machine.fast and machine.device.type == "cpu":
                ways[DIRECT] = Way(torch.no_grad()(_within(prepacked.direct, ours)))
        yield Case(
            "end-to-end", "accurate net, six scales", f"{_size(IMAGE)}, {places} windows", EAGER, ways,
            partial(call, _only_made), dtype,
            2 * sum(count[part] for count in counts for part in ("features", "first", "rest")),
            weight_bytes("accurate") * dtype.itemsize / 4, 1,
        )  # fmt: skip


def _vote(windows: Callable[[OverFeat, Tensor], Tensor], net: OverFeat, image: Tensor) -> Tensor:
    """The mean over six scales of each class's best softmax, from the scores of all windows of a scale."""
    best = [windows(net, resize(image, size)).float().softmax(dim=1).amax(dim=(2, 3)) for size in SIZES]
    return torch.stack(best).mean(dim=0)


def _our_first_layer(net: OverFeat, maps: Tensor) -> Tensor:
    return ops.skip_classifier(maps, net.fc_layers[0].weight, net.fc_layers[0].bias, net.architecture.pool)


def _our_scores(net: OverFeat, windows: Tensor) -> Tensor:
    return net(windows).flatten(1)


def _each(function: Callable[[OverFeat, Tensor], Tensor]) -> Callable[[OverFeat, list[Tensor]], list[Tensor]]:
    return lambda net, maps: [function(net, m) for m in maps]


def _only_made(*_: object) -> None:
    """For a case's `inputs`: what it takes is made by asking for it."""


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


SUITES: dict[str, Callable[[Machine], Iterator[Case]]] = {
    "dense": dense,
    "classifier": classifier,
    "merge": merge,
    "train": train,
    "end-to-end": end_to_end,
}
