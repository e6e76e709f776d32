"""The cases of each suite, with the implementations that this machine can run."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.suite.baselines import classifier as eager_classifier
from bench.suite.baselines import eager, features, first_layer, offset_loop, single_windows, vote
from bench.suite.densify import densify
from bench.suite.kernels import GPU_SUITES, gpu_cases
from bench.suite.machine import ACCURATE, CLASSES, IMAGE, SIZES, Machine, baseline, create_inputs, weight_bytes, within
from bench.suite.names import DIRECT, EAGER, FAST, LOOP, NMS, OURS, PAPER_LOOP, WBF
from bench.suite.runner import Case, Implementation
from bench.suite.synthetic import IMAGE_SIZE, NUM_BOXES, boxes_of_one_class, merged
from overfeat import ops
from overfeat.classification.predict import classify
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.flops import stage_macs
from overfeat.models.overfeat import OverFeat
from overfeat.ops import backend
from overfeat.ops.backends.winograd import without_winograd

SMALL_CLASSES = 10
SMALL_SIZES = ((150, 170), (300, 300), (500, 500), (1000, 1000), (2000, 2000))  # height, width
COMPARED_OUTPUTS = 64  # of each layer: comparing all gradients takes longer than the training step


def dense(machine: Machine) -> Iterator[Case]:
    """The accurate net at each scale, fine stride: image to class scores of every window."""
    for number in (1, 3) if machine.quick else range(1, 7):
        counts = stage_macs(ACCURATE, *SIZES[number - 1], CLASSES, "fine")

        def call(function: Callable[[OverFeat, Tensor], object], number: int = number) -> object:
            return function(machine.net("accurate", torch.float32), machine.scaled(number))

        implementations = machine.ours(partial(call, lambda net, image: net(image, "fine")))
        implementations |= machine.torch(eager, call)
        if not machine.quick:
            implementations |= machine.runtimes(machine.exported("accurate"), _exported(call))
        implementations[LOOP] = baseline(
            partial(call, lambda net, image: offset_loop(net, features(net, image))), cold=True
        )
        if number == (1 if machine.quick else 6):
            implementations |= machine.windows(call)
        yield Case(
            "dense", "accurate net", f"scale {number}: {_size(SIZES[number - 1])}, {counts['positions']} windows", LOOP,
            implementations, partial(call, create_inputs),
            flop=2 * (counts["features"] + counts["first"] + counts["rest"]),
            bytes_moved=weight_bytes("accurate") + 4 * CLASSES * counts["positions"],
        )  # fmt: skip


def small_net(machine: Machine) -> Iterator[Case]:
    """The small net on images of many sizes, fine stride: image to class scores of every window."""
    exported = machine.exported("small", SMALL_CLASSES)
    for dtype in machine.dtypes:
        for size in SMALL_SIZES[1:2] if machine.quick else SMALL_SIZES:

            def call(function: Callable[[OverFeat, Tensor], object], size=size, dtype: torch.dtype = dtype) -> object:
                return function(machine.net("small", dtype, SMALL_CLASSES), machine.pixels(1, *size))

            counts = stage_macs(ARCHITECTURES["small"], *size, SMALL_CLASSES, "fine")
            implementations = machine.ours(partial(call, lambda net, image: net(image, "fine")))
            implementations |= machine.torch(eager, call) | machine.frozen(eager, call)
            implementations |= machine.runtimes(exported, _exported(call), dtype)
            yield Case(
                "small-net", "small net", f"{_size(size)}, {counts['positions']} windows", EAGER, implementations,
                partial(call, create_inputs), dtype,
                2 * (counts["features"] + counts["first"] + counts["rest"]),
                3 * size[0] * size[1] + 4 * SMALL_CLASSES * counts["positions"], 1,
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
                partial(call, create_inputs), dtype, 2 * counts["first"],
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
            partial(on_all, create_inputs), dtype, 2 * sum(count["first"] + count["rest"] for count in counts),
            (weight_bytes("accurate", "fc_layers") + 4 * CLASSES * positions) * dtype.itemsize / 4,
        )  # fmt: skip


def merge(machine: Machine) -> Iterator[Case]:
    """Greedy merging of the boxes of one image and class, beside the paper's loop, NMS and weighted box fusion."""
    for count in (300,) if machine.quick else (300, NUM_BOXES):
        boxes, scores = (t.to(machine.device) for t in boxes_of_one_class(count))

        run = partial(merged, boxes, scores)
        implementations = machine.ours(run) if machine.device.type == "cuda" else {OURS: Implementation(run)}
        implementations[PAPER_LOOP] = baseline(within(partial(backend, "reference"), run), cold=True)
        if machine.has("ensemble_boxes", f"{NMS}, {WBF}"):
            implementations |= _ensemble_boxes(boxes, scores)
        yield Case("merge", "merge_boxes", f"{count} boxes, one class", PAPER_LOOP, implementations, create_inputs,
                   bytes_moved=boxes.nbytes * 1.25)  # fmt: skip


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
        inputs = partial(call, create_inputs)
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
            return call(partial(vote, windows, SIZES, False))

        ours = partial(call, lambda net, image: classify(net, image, flip=False))
        implementations = machine.ours(ours) | machine.torch(eager, by)
        if not machine.quick:
            implementations |= machine.runtimes(machine.exported("accurate"), _exported(by), dtype)
        if dtype == torch.float32 and not machine.quick:
            implementations[LOOP] = baseline(
                partial(by, lambda net, image: offset_loop(net, features(net, image))), cold=True
            )
            implementations |= machine.windows(by)
            if machine.fast and machine.device.type == "cpu":
                implementations[DIRECT] = Implementation(torch.no_grad()(within(without_winograd, ours)))
        yield Case(
            "end-to-end", "accurate net, six scales", f"{_size(IMAGE)}, {positions} windows", EAGER, implementations,
            partial(call, create_inputs), dtype,
            2 * sum(count[part] for count in counts for part in ("features", "first", "rest")),
            weight_bytes("accurate") * dtype.itemsize / 4, 1,
        )  # fmt: skip


def _our_first_layer(net: OverFeat, maps: Tensor) -> Tensor:
    return ops.skip_classifier(maps, net.fc_layers[0].weight, net.fc_layers[0].bias, net.architecture.pool)


def _our_scores(net: OverFeat, windows: Tensor) -> Tensor:
    return net(windows).flatten(1)


def _each(function: Callable[[OverFeat, Tensor], Tensor]) -> Callable[[OverFeat, list[Tensor]], list[Tensor]]:
    return lambda net, maps: [function(net, m) for m in maps]


def _exported(
    call: Callable[[Callable[[OverFeat, Tensor], Tensor]], object],
) -> Callable[[Callable[[Tensor], Tensor]], object]:
    """`call` for a function of the image alone, as an exported net is."""
    return lambda run: call(lambda _, image: run(image))


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


SUITES: dict[str, Callable[[Machine], Iterator[Case]]] = {
    **{name: partial(gpu_cases, name) for name in GPU_SUITES},
    "dense": dense,
    "small-net": small_net,
    "classifier": classifier,
    "merge": merge,
    "train": train,
    "end-to-end": end_to_end,
    "densify": densify,
}
