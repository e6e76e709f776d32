"""Every op on the device against overfeat.ops.reference in float64, from random inputs, into poisoned memory."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F

from bench.gpu.cases import (
    FLOAT16,
    FLOAT32,
    FULL,
    GUARD,
    TINY,
    Kind,
    Layer,
    Sizes,
    compiled,
    flatten,
    forced,
    has_kernels,
    poisoned,
    random_values,
    untrained,
)  # fmt: skip
from bench.gpu.run import FAST, Run
from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.ops import reference
from overfeat.ops.boxes import MATCH_METRICS

POOL, LAYER, SCORES, MERGING = "offset pooling", "first full layer", "class scores", "merging"
WIDE_BYTES = 24 << 30  # must be free for the feature map that spans 2^31 elements


def short(run: Run) -> None:
    """Every op, dtype and launch configuration, at small sizes."""
    for dtype, match in itertools.product((torch.float32, torch.float64), MATCH_METRICS):
        name = str(dtype).removeprefix("torch.")
        run.check(f"merging, {match}, {name}", MERGING, FAST, name, lambda d=dtype, m=match: merging(run, d, m))
    for kind in sizes(run).kinds:
        for window, last in itertools.product(((2, 1), (3, 1), (3, 2)), (False, True)):
            layout, name = "channels-last" if last else "contiguous", "pooling {}, dilation {}".format(*window)
            run.check(f"{name}, {layout}, {kind.name}", POOL, FAST, kind.name,
                      lambda k=kind, w=window, c=last: pooling(run, k, *w, c))  # fmt: skip
        run.check(f"class scores, {kind.name}", SCORES, FAST, kind.name, lambda k=kind: scores(run, k))
        layers = {f"{channels} channels": small(run, kind, channels) for channels in sizes(run).channels}
        layers["overlapping pools"] = overlapping(run, kind)
        for name, layer in layers.items():
            name = f"{name}, {kind.name}"
            run.check(name, LAYER, FAST, kind.name, lambda x=layer: x.check(x.ours))
            run.check(f"gradients, {name}", LAYER, FAST, kind.name, lambda x=layer: x.check_gradients(x.ours))
            if not has_kernels(kind, run.device):
                continue
            for pool, split_k in itertools.product(("separate", "fused"), (1, 3)):
                launched = forced(layer.ours, pool=pool, split_k=split_k)
                run.check(f"{pool} pooling, split-K {split_k}, {name}", LAYER, FAST, kind.name,
                          lambda x=layer, w=launched: x.check(w), forced=True)  # fmt: skip


def thorough(run: Run) -> None:
    """Every tile, streams, graphs, torch.compile, autocast, and a feature map that spans more than 2^31 elements."""
    kind = sizes(run).kinds[0]
    run.check("torch.compile of the classifier", LAYER, FAST, kind.name, lambda: whole_graph(run, kind))
    run.check("autocast", LAYER, FAST, kind.name, lambda: autocast(run, kind))
    if run.dry:
        run.skip("streams, CUDA graphs, 2^31 elements", "needs a GPU")
    else:
        run.check("two streams", LAYER, FAST, kind.name, lambda: streams(run, kind))
        run.check("CUDA graph", LAYER, FAST, kind.name, lambda: graph(run, kind))
        if torch.cuda.mem_get_info()[0] >= WIDE_BYTES:
            run.check("a map over 2^31 elements", LAYER, FAST, kind.name, lambda: wide(run, kind))
        else:
            run.skip("a map over 2^31 elements", "not enough free memory")
    for kind in sizes(run).kinds:
        if not has_kernels(kind, run.device):
            continue
        layer = small(run, kind, sizes(run).channels[0])
        for tile, fused in tiles(run, kind):
            launched = forced(layer.ours, tile=tile, pool="fused" if fused else "separate", split_k=1)
            name = f"{kind.name}, {'fused, ' if fused else ''}{tile}"
            run.check(name, LAYER, FAST, kind.name, lambda x=layer, w=launched: x.check(w), forced=True)
            if not fused:
                run.check(f"gradients, {name}", LAYER, FAST, kind.name,
                          lambda x=layer, w=launched: x.check_gradients(w), forced=True)  # fmt: skip


def fragile(run: Run) -> None:
    """Checks whose failure may take the device down, so they come last."""
    kind = sizes(run).kinds[0]
    if run.dry or not has_kernels(kind, run.device):
        run.skip("odd addresses; a graph whose tables were evicted", "needs a GPU with kernels")
        return
    run.check("maps at odd addresses", LAYER, FAST, kind.name, lambda: odd_addresses(run, kind))
    run.check("CUDA graph after other shapes", LAYER, FAST, kind.name, lambda: graph(run, kind, others=80))


def sizes(run: Run) -> Sizes:
    """The problem sizes of this run. Chips below capability 8.0 have neither bfloat16 nor TF32."""
    if run.dry:
        return TINY
    old = torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0)
    return replace(FULL, kinds=(FLOAT16, FLOAT32)) if old else FULL


def small(run: Run, kind: Kind, channels: int) -> Layer:
    """A layer on feature maps of unequal sizes; its outputs do not fill their last tile."""
    kernel, pool = sizes(run).architecture.kernel, sizes(run).architecture.pool
    return Layer(kind, sizes(run).small, channels, channels + 8, kernel, pool, run.device)


def overlapping(run: Run, kind: Kind) -> Layer:
    """The same after 3 x 3 pools of stride 2."""
    channels, kernel = sizes(run).channels[0], sizes(run).architecture.kernel
    return Layer(kind, sizes(run).small, channels, channels + 8, kernel, 3, run.device, tap=2)


def six(run: Run, kind: Kind, channels: int, outputs: int) -> Layer:
    """A layer on one feature map per scale."""
    a = sizes(run).architecture
    return Layer(kind, [(1, h, w) for h, w in sizes(run).maps], channels, outputs, a.kernel, a.pool, run.device)


def tiles(run: Run, kind: Kind) -> Iterator[tuple[object, bool]]:
    """Tiles of launch.TILES for a kind of arithmetic, each once, and whether they are for fused pooling."""
    from overfeat.kernels import launch

    if run.dry:
        yield from ((launch.INTERPRETED_TILE, False), (launch.INTERPRETED_TILE, True))
        return
    name = launch.arithmetic(kind.dtype, "ieee" if kind.precision == "highest" else "tf32")
    for table, fused in ((name, False), (f"{name}, fused", True)):
        for tile in dict.fromkeys(tile for rows in launch.TILES[table].values() for _, tile in rows):
            yield tile, fused


def pooling(run: Run, kind: Kind, size: int, dilation: int, last: bool) -> None:
    """Forward and backward; values are rounded, so that many windows have several maxima."""
    maps = (2 * random_values(sizes(run).pooled, kind, run.device, 0)).round_()
    maps = maps.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    truth = maps.detach().double().requires_grad_()
    expected = reference.offset_max_pool(truth, size, dilation)
    grad = random_values(expected.shape, kind, run.device, 1)
    with poisoned():
        actual = ops.offset_max_pool(maps, size, dilation)
        (of_maps,) = torch.autograd.grad(actual, maps, grad)
    assert_matches(actual, expected, kind.tolerance)
    assert_matches(of_maps, torch.autograd.grad(expected, truth, grad.double())[0], kind.tolerance)


def scores(run: Run, kind: Kind) -> None:
    counts, classes = [1, 16, 17, 100, 3], sizes(run).classes
    logits = 4 * random_values((sum(counts), 2 * classes), kind, run.device, 0)
    logits[:, classes:] = torch.nan
    logits = logits[:, :classes]
    with poisoned():
        actual = ops.class_scores(logits, counts)
    # In float64, which reference.class_scores would turn to float32.
    expected = torch.stack([part.softmax(dim=1).amax(dim=0) for part in logits.double().split(counts)])
    assert_matches(actual, expected, torch.float32)


def merging(run: Run, dtype: torch.dtype, match: str) -> None:
    """Groups of every size with a launch configuration of its own, with ties, bit for bit as the paper's loop."""
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 2, 9] if run.dry else [1, 2, 63, 64, 65, 257, 700, 1100, 2100]
    groups = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    corner = torch.randint(0, 400, (len(groups), 2), generator=generator)
    side = torch.randint(10, 60, (len(groups), 2), generator=generator)
    scores = torch.rand(len(groups), generator=generator, dtype=dtype)
    given = [t.to(run.device) for t in (torch.cat([corner, corner + side], dim=1).to(dtype), scores, groups)]
    threshold = {"normalised": 1.1, "sum": 50.0, "centres": 0.3}[match]
    for average in ops.BOX_AVERAGES:
        options = {"match_threshold": threshold, "match_metric": match, "box_average": average, "min_iou": 0.1}
        with poisoned():
            actual = ops.merge_boxes(*given, **options)
        with ops.backend("reference"):
            expected = ops.merge_boxes(*given, **options)
        for name, value in vars(expected).items():
            assert torch.equal(getattr(actual, name), value), f"{name}, average {average}: differs from the reference"


def streams(run: Run, kind: Kind) -> None:
    """Two concurrent streams give exactly the results of sequential calls."""
    layers = [six(run, kind, 128, 256), small(run, kind, 128)]
    alone = [layer.run(layer.ours) for layer in layers]
    queues = [torch.cuda.Stream() for _ in layers]
    concurrent: list[list] = [[], []]
    for queue in queues:
        queue.wait_stream(torch.cuda.current_stream())
    for _ in range(20):
        for layer, queue, results in zip(layers, queues, concurrent, strict=True):
            with torch.cuda.stream(queue):
                results.append(layer.run(layer.ours))
    torch.cuda.synchronize()
    for expected, results in zip(alone, concurrent, strict=True):
        for i, actual in enumerate(results):
            assert torch.equal(actual, expected), f"call {i}: {_first(actual, expected)}"


def graph(run: Run, kind: Kind, others: int = 0) -> None:
    """A captured call gives the result of a call with new inputs, also after calls with `others` shapes."""
    layer = six(run, kind, 128, 256)
    queue = torch.cuda.Stream()
    queue.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(queue):
        layer.run(layer.ours)
    torch.cuda.current_stream().wait_stream(queue)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        actual = layer.run(layer.ours)
    for i in range(others):
        maps = [random_values((1, 16, 15 + i, 16), kind, run.device, i)]
        ops.skip_classifier_flat(maps, random_values((16, 16, 5, 5), kind, run.device, 0), None, 3)
    filler = [
        torch.full((1 << n,), torch.nan, device=run.device) for n in range(4, 20) for _ in range(8 if others else 0)
    ]
    for m in layer.maps:
        m.copy_(torch.randn_like(m))
    captured.replay()
    actual = actual.clone()
    del filler
    expected = layer.run(layer.ours)
    assert torch.equal(actual, expected), _first(actual, expected)


def whole_graph(run: Run, kind: Kind) -> None:
    """The classifier under torch.compile as one graph, without breaks."""
    net = untrained(sizes(run), kind.dtype, run.device, hidden=(48, 32))
    maps = [
        random_values((1, net.conv_layers[-1].out_channels, h, w), kind, run.device, i)
        for i, (h, w) in enumerate(sizes(run).maps)
    ]
    with torch.no_grad():
        expected = net.classifier(maps, "fine")
        actual = compiled(net.classifier, run.dry, "aot_eager", fullgraph=True)(maps, "fine")
    assert_matches(actual, expected, kind.tolerance)


def autocast(run: Run, kind: Kind) -> None:
    """float32 inputs under autocast give the results of inputs in its dtype."""
    layer, exact = small(run, kind, sizes(run).channels[0]), small(run, FLOAT32, sizes(run).channels[0])
    with torch.autocast(run.device.type, kind.dtype), torch.no_grad():
        actual = exact.ours(exact.maps, exact.weight, exact.bias)
    assert actual.dtype == kind.dtype, f"{actual.dtype} under autocast to {kind.dtype}"
    assert_matches(actual, layer.expected, kind.tolerance)


def wide(run: Run, kind: Kind) -> None:
    """A feature map whose images lie more than 2^31 elements apart, and results of 2^31 elements and more."""
    near = random_values((2, 64, 17, 18), kind, run.device, 0)
    flat = torch.empty((1 << 31) + near.numel(), dtype=kind.dtype, device=run.device)
    strides = (1, 18 * 64, 64)
    far = flat.as_strided(near.shape, ((1 << 31) + 8, *strides)).copy_(near)
    weight = random_values((40, 64, 5, 5), kind, run.device, 1, 0.02)
    for pool in ("separate", "fused"):
        options = {"pool": pool} if has_kernels(kind, run.device) else {}
        actual = forced(ops.skip_classifier_flat, **options)([far], weight, None, 3)
        expected = flatten([reference.skip_classifier(near.double(), weight.double(), None, 3)])
        assert_matches(actual, expected, kind.tolerance)
    assert_matches(ops.offset_max_pool(far, 3), reference.offset_max_pool(near.double(), 3), kind.tolerance)
    del far, flat
    large = torch.zeros(1, 64, 5800, 5800, dtype=kind.dtype, device=run.device)  # 2^31 and a little
    large[0, -1, -3:, -3:] = near[0, 0, :3, :3]
    actual = ops.offset_max_pool(large, 3)
    assert_matches(actual[0, -1, -2:, -2:], F.max_pool2d(large[:, -1:, -4:, -4:], 3, 1)[0, 0], kind.tolerance)


def odd_addresses(run: Run, kind: Kind) -> None:
    """Feature maps and weight that start one element after a multiple of 16 bytes."""
    layer = small(run, kind, sizes(run).channels[0])
    layer.maps = [_moved(m) for m in layer.maps]
    layer.weight = _moved(layer.weight)
    for pool in ("separate", "fused"):
        layer.check(forced(layer.ours, pool=pool))
    layer.check_gradients(layer.ours)


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    last = tensor.permute(0, 2, 3, 1)
    flat = torch.full((tensor.numel() + 2 * GUARD,), torch.nan, dtype=tensor.dtype, device=tensor.device)
    return flat[GUARD + 1 :][: tensor.numel()].view(last.shape).copy_(last).permute(0, 3, 1, 2)


def _first(actual: torch.Tensor, expected: torch.Tensor) -> str:
    """The first element in which two matrices differ."""
    position = tuple((actual != expected).nonzero()[0].tolist())
    return f"at {list(position)}: {actual[position].item()}, expected {expected[position].item()}"
