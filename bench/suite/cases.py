"""What the suites measure: the cases of each, on the device and with the backends that there are.

Listing cases costs nothing: nets, images and maps are made when a way first runs.
"""

import functools
import importlib.util
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.suite.baselines import (
    eager,
    first_layer,
    monai_windows,
    naive_windows,
    offset_loop,
    stage,
    windows_alone,
)
from bench.suite.made_up import CANVAS, PLACES, one_image
from bench.suite.run import Case, Run, Way
from overfeat import ops, packed
from overfeat.architectures import ARCHITECTURES
from overfeat.classify import classify
from overfeat.measuring import work
from overfeat.nets import OverFeat, build
from overfeat.ops import backend, merge_boxes
from overfeat.resize import resize

OURS, FAST, PLAIN = "overfeat", "overfeat.fast", "overfeat.fast, plain sums"
STOCK, COMPILED = "stock torch", "torch.compile"
NAIVE, LOOP, MONAI = "naive windows", "loop over offsets", "MONAI"
PAPER_LOOP, NMS, WBF = "the paper's loop", "NMS", "WBF"
WAYS = (OURS, FAST, PLAIN, STOCK, COMPILED, LOOP, NAIVE, MONAI, PAPER_LOOP, NMS, WBF)
CLASSES = 1000
IMAGE = (375, 500)  # height, width: the usual size of an ImageNet picture
ACCURATE = ARCHITECTURES["accurate"]
SIZES = ACCURATE.six_scales(*IMAGE)
COMPARED = 64  # outputs of each layer whose gradients are: comparing all takes longer than the step
PERIOD = 1_000_003  # of the noise in weights: a prime, so that no two rows are alike
WIDTHS = (ACCURATE.convs[-1].channels * ACCURATE.kernel**2, *ACCURATE.hidden, CLASSES)  # of the full layers
EXTRA = "it is in the extra bench"


@dataclass(eq=False)
class Machine:
    """What the suites are run on, and how thoroughly."""

    run: Run
    quick: bool

    @property
    def device(self) -> torch.device:
        return self.run.device

    @cached_property
    def fast(self) -> bool:
        """Whether overfeat.fast has a backend for this device; a word about it where it has none."""
        probe = torch.zeros(1, 8, 30, 30, device=self.device)
        there = ops.chosen("skip_classifier_rows", probe, 3) != "torch"
        if not there:
            self.run.leave_out(FAST, "it has no backend for this device; `overfeat.fast.status()` says why")
        return there

    def has(self, module: str, way: str) -> bool:
        """Whether a package is there; a word about it where it is not."""
        there = importlib.util.find_spec(module) is not None
        if not there:
            self.run.leave_out(way, f"{module} is not installed; {EXTRA}")
        return there

    @cached_property
    def dtypes(self) -> list[torch.dtype]:
        """float32, and bfloat16 where the device has its arithmetic; on a CPU only if not all is to be quick."""
        if self.quick and self.device.type == "cpu":
            return [torch.float32]
        there = torch.cuda.is_bf16_supported(False) if self.device.type == "cuda" else _bfloat16_on_cpu()
        if not there:
            self.run.leave_out("bfloat16", "this device has no arithmetic for it")
        return [torch.float32, *([torch.bfloat16] if there else [])]

    @functools.cache  # noqa: B019  it lives as long as the run
    def net(self, name: str, dtype: torch.dtype = torch.float32) -> OverFeat:
        """A net with random weights that let its values through, of 1,000 classes."""
        with torch.device("meta"):
            net = build(name, CLASSES)
        net.to_empty(device=self.device)
        noise = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0)).to(self.device)
        with torch.no_grad():
            for layer in (*net.convs, *net.fulls):
                weight = layer.weight
                values = noise.repeat(-(-weight.numel() // PERIOD))[: weight.numel()].view(weight.shape)
                weight.copy_(values * (2 / weight[0].numel()) ** 0.5)
                layer.bias.zero_()
        return net.eval().to(dtype)

    @functools.cache  # noqa: B019
    def image(self) -> Tensor:
        """[1, 3, *IMAGE], uint8."""
        g = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (1, 3, *IMAGE), dtype=torch.uint8, generator=g).to(self.device)

    @functools.cache  # noqa: B019
    def scaled(self, number: int) -> Tensor:
        """The image at one of the accurate net's six scales, from 1."""
        return resize(self.image(), SIZES[number - 1])

    @functools.cache  # noqa: B019
    def maps(self, number: int, dtype: torch.dtype) -> Tensor:
        """Its last maps there."""
        with torch.no_grad():
            return self.net("accurate", dtype).features(self.scaled(number))

    def ours(self, function: Callable[[], object]) -> dict[str, Way]:
        """A function of the library on stock torch, and on what overfeat.fast chooses."""
        ways = {OURS: Way(torch.no_grad()(_within("torch", function)))}
        if self.fast:  # on a CPU weights are prepared at the second call
            ways[FAST] = Way(torch.no_grad()(function), warm=3)
        return ways

    def baselines(self, stock: Callable[[], object], compiled: Callable[[], object] | None) -> dict[str, Way]:
        """Stock torch, and torch.compile unless all is to be quick."""
        ways = {STOCK: baseline(stock)}
        if compiled is not None and not self.quick:
            ways[COMPILED] = baseline(compiled, warm=2)
        return ways

    def windows(self, run: Callable[[Callable[[OverFeat, Tensor], Tensor]], Tensor]) -> dict[str, Way]:
        """Every window on its own, by a loop and by MONAI."""
        padded = "each window padded at its own border, so other scores by design"
        ways = {NAIVE: baseline(partial(run, naive_windows), like="", remark=padded)}
        if self.has("monai", MONAI):
            ways[MONAI] = baseline(partial(run, monai_windows), like=NAIVE, remark=f"equal to {NAIVE}")
        return ways


def _bfloat16_on_cpu() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _within(name: str, function: Callable[[], object]) -> Callable[[], object]:
    """The function, on a backend of ours where that has its ops."""

    @functools.wraps(function)
    def run() -> object:
        with backend(name):
            return function()

    return run


def _plain_sums(function: Callable[[], object]) -> Callable[[], object]:
    """The function, without Winograd's convolutions."""

    def run() -> object:
        with mock.patch.object(packed, "GAIN", 0):
            return function()

    return run


def baseline(function: Callable[[], object], **more: object) -> Way:
    """A way that is not ours."""
    return Way(torch.no_grad()(function), baseline=True, **more)


def compiled(function: Callable[..., object]) -> Callable[..., object]:
    """The function by torch.compile, compiled when it first runs, for that one shape; an error where it cannot."""
    cached: list[Callable] = []

    def run(*arguments: object) -> object:
        if not cached:
            torch._dynamo.reset()
            cached.append(torch.compile(function, fullgraph=True, dynamic=False))
        return cached[0](*arguments)

    return run


def made(*_: object) -> None:
    """For inputs that are made when they are first asked for."""


def dense(machine: Machine) -> Iterator[Case]:
    """The accurate net over each scale, fine stride, image to class scores of every window."""
    for number in (1, 3) if machine.quick else range(1, 7):
        counts = work(ACCURATE, *SIZES[number - 1], CLASSES, "fine")

        def run(function: Callable[[OverFeat, Tensor], Tensor], number: int = number) -> Tensor:
            return function(machine.net("accurate"), machine.scaled(number))

        ways = machine.ours(partial(run, lambda net, scaled: net(scaled, "fine")))
        ways |= machine.baselines(partial(run, eager), partial(run, compiled(eager)))
        ways[LOOP] = baseline(partial(run, lambda net, scaled: offset_loop(net, net.features(scaled))))
        if number == (1 if machine.quick else 6):
            ways |= machine.windows(run)
        shape = f"scale {number}: {SIZES[number - 1][0]}x{SIZES[number - 1][1]}, {counts['places']} windows"
        flop = 2 * (counts["features"] + counts["first"] + counts["rest"])
        yield Case("dense", "accurate net", shape, LOOP, ways, partial(run, made), flop=flop)


def classifier(machine: Machine) -> Iterator[Case]:
    """The accurate net's classifier: its first layer at each scale, and all of it for six scales in one call."""
    numbers = (1, 4) if machine.quick else range(1, 7)
    for dtype in machine.dtypes:
        for number in numbers:
            counts = work(ACCURATE, *SIZES[number - 1], CLASSES, "fine")

            def run(function: Callable, number: int = number, dtype: torch.dtype = dtype) -> Tensor:
                return function(machine.net("accurate", dtype), machine.maps(number, dtype))

            def first(net: OverFeat, maps: Tensor) -> Tensor:
                layer = net.fulls[0]
                return ops.skip_classifier(maps, layer.weight, layer.bias, net.architecture.pool)

            ways = machine.ours(partial(run, first))
            ways |= machine.baselines(partial(run, first_layer), partial(run, compiled(first_layer)))
            ways[LOOP] = baseline(partial(run, partial(offset_loop, layers=1)))
            moved = (WIDTHS[0] + counts["places"]) * WIDTHS[1] * dtype.itemsize  # the maps are little beside these
            shape = f"scale {number}: {counts['places']} windows"
            flop = 2 * counts["first"]
            yield Case("classifier", "first full layer", shape, LOOP, ways, partial(run, made), dtype, flop, moved)
        if machine.quick:
            continue
        counts = [work(ACCURATE, *size, CLASSES, "fine") for size in SIZES]

        def each(function: Callable, dtype: torch.dtype = dtype) -> list[Tensor]:
            return [function(machine.net("accurate", dtype), machine.maps(number, dtype)) for number in range(1, 7)]

        def at_once(dtype: torch.dtype = dtype) -> list[Tensor]:
            return machine.net("accurate", dtype).classifier(
                [machine.maps(number, dtype) for number in range(1, 7)], "fine"
            )

        ways = machine.ours(at_once) | machine.baselines(partial(each, stage), None)
        ways[LOOP] = baseline(partial(each, offset_loop))
        weights = sum(math.prod(shape) for shape in itertools.pairwise(WIDTHS))
        places = sum(count["places"] for count in counts)
        flop = 2 * sum(count["first"] + count["rest"] for count in counts)
        moved = (weights + places * CLASSES) * dtype.itemsize
        shape = f"six scales: {places} windows"
        yield Case("classifier", "all full layers", shape, LOOP, ways, partial(each, made), dtype, flop, moved)


def merge(machine: Machine) -> Iterator[Case]:
    """Greedy merging of one image and class: beside the paper's loop, suppression and weighted box fusion."""
    for count in (300,) if machine.quick else (300, PLACES):
        boxes, scores = (t.to(machine.device) for t in one_image(count))

        def merged(boxes: Tensor = boxes, scores: Tensor = scores) -> list[Tensor]:
            found = merge_boxes(boxes, scores)
            return [found.boxes, found.scores]

        def told(got: list[Tensor]) -> str:
            return f"{len(got[0])} boxes left"

        ways = {OURS: Way(merged, remark=told), PAPER_LOOP: baseline(_within("reference", merged), remark=told)}
        if machine.has("ensemble_boxes", f"{NMS}, {WBF}"):
            ways |= _ensemble_boxes(boxes, scores, told)
        yield Case("merge", "merge_boxes", f"{count} boxes, one class", PAPER_LOOP, ways, made)


def _ensemble_boxes(boxes: Tensor, scores: Tensor, told: Callable) -> dict[str, Way]:
    """NMS and weighted box fusion of ensemble-boxes, on a CPU, with boxes as it wants them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ensemble_boxes import nms, weighted_boxes_fusion
    lists = [(boxes / CANVAS).tolist()], [scores.tolist()], [[0] * len(boxes)]
    ways = {NMS: partial(nms, *lists, iou_thr=0.5), WBF: partial(weighted_boxes_fusion, *lists, iou_thr=0.55)}
    return {name: baseline(way, like="", remark=told) for name, way in ways.items()}


def train(machine: Machine) -> Iterator[Case]:
    """A step on windows, without dropout: forward, and forward with backward; the fast net as in convnet-benchmarks."""
    batches = {"fast": 4} if machine.quick else {"fast": 128, "accurate": 32}
    if machine.device.type == "cuda":
        batches = dict.fromkeys(batches, 128)
    for name, batch in batches.items():
        side = ARCHITECTURES[name].window
        counts = work(ARCHITECTURES[name], side, side, CLASSES, "coarse")
        flop = 2 * batch * (counts["features"] + counts["first"] + counts["rest"])

        @functools.cache
        def windows(side: int = side, batch: int = batch) -> Tensor:
            return torch.randn(batch, 3, side, side, device=machine.device)

        def inputs(name: str = name, windows: Callable = windows) -> None:
            made(machine.net(name), windows())

        def plain(name: str = name, windows: Callable = windows) -> Tensor:
            return windows_alone(machine.net(name), windows())

        def ours(name: str = name, windows: Callable = windows) -> Tensor:
            return machine.net(name)(windows()).flatten(1)

        def step(forward: Callable[[], Tensor], name: str = name) -> list[Tensor]:
            net = machine.net(name)
            net.zero_grad(set_to_none=True)
            with torch.enable_grad():
                scores = forward()
                F.cross_entropy(scores, torch.arange(len(scores), device=scores.device) % CLASSES).backward()
            return [layer.weight.grad[:COMPARED] for layer in (*net.convs, *net.fulls)]

        shape = f"{batch} x 3 x {side} x {side}"
        ways = machine.ours(ours) | machine.baselines(plain, None)
        yield Case("train", f"{name} net, forward", shape, STOCK, ways, inputs, flop=flop)
        ways = {FAST if machine.fast else OURS: Way(partial(step, ours), warm=2)}  # on a CPU it changes nothing here
        ways[STOCK] = Way(partial(step, plain), baseline=True)
        # The first convolution has no gradient of its input; the count says three times the forward all the same.
        yield Case("train", f"{name} net, forward and backward", shape, STOCK, ways, inputs, flop=3 * flop)


def end_to_end(machine: Machine) -> Iterator[Case]:
    """An image to the scores of its classes: six scales of the accurate net, fine stride, no mirror images."""
    counts = [work(ACCURATE, *size, CLASSES, "fine") for size in SIZES]
    flop = 2 * sum(count[part] for count in counts for part in ("features", "first", "rest"))
    shape = f"{IMAGE[0]}x{IMAGE[1]}, {sum(count['places'] for count in counts)} windows"
    for dtype in machine.dtypes:

        def inputs(dtype: torch.dtype = dtype) -> None:
            made(machine.net("accurate", dtype), machine.image())

        def by(windows: Callable[[OverFeat, Tensor], Tensor], dtype: torch.dtype = dtype) -> Tensor:
            net = machine.net("accurate", dtype)
            scaled = (resize(machine.image(), size) for size in SIZES)
            best = [windows(net, image).float().softmax(dim=1).amax(dim=(2, 3)) for image in scaled]
            return torch.stack(best).mean(dim=0)

        def ours(dtype: torch.dtype = dtype) -> Tensor:
            return classify(machine.net("accurate", dtype), machine.image(), flip=False)

        six = None if machine.quick else [compiled(eager) for _ in SIZES]

        def by_compiled(by: Callable = by, six: list[Callable] | None = six) -> Tensor:
            each = iter(six)
            return by(lambda net, image: next(each)(net, image))

        ways = machine.ours(ours) | machine.baselines(partial(by, eager), by_compiled)
        if dtype == torch.float32 and not machine.quick:
            ways[LOOP] = baseline(partial(by, lambda net, image: offset_loop(net, net.features(image))))
            ways |= machine.windows(by)
            if machine.fast and machine.device.type == "cpu":
                ways[PLAIN] = Way(torch.no_grad()(_plain_sums(ours)), warm=2)
        yield Case("end-to-end", "accurate net, six scales", shape, STOCK, ways, inputs, dtype, flop)


SUITES: dict[str, Callable[[Machine], Iterator[Case]]] = {
    "dense": dense,
    "classifier": classifier,
    "merge": merge,
    "train": train,
    "end-to-end": end_to_end,
}
