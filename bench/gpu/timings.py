"""Measured peaks, and the times of the first full layer, of whole classifications, and of tiles."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

import overfeat
from bench.gpu.cases import FLOAT16, FLOAT32, TF32, Kind, Layer, forced, has_kernels, implementations, untrained
from bench.gpu.checks import LAYER, MERGING, SCORES, sizes
from bench.gpu.run import EAGER, FAST, Run
from bench.suite.baselines import naive_windows
from bench.suite.synthetic import boxes_of_many_objects, boxes_of_one_class
from overfeat import ops
from overfeat.data.resize import resize
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig
from overfeat.dense.grid import grids
from overfeat.dense.scales import six_scales
from overfeat.models.flops import stage_macs

SIX = "six scales"
COMMON = (EAGER, "torch.compile", FAST)  # timed forward and backward
NAIVE_BATCH = 64  # windows


def measure_peaks(run: Run) -> None:
    """The fastest of a few large GEMMs in every kind of arithmetic, and a copy."""
    for kind in sizes(run).kinds:
        best = {"tflops": 0.0}
        for m, n, k in sizes(run).gemms:
            run.check_budget()
            a = torch.randn(m, k, device=run.device).to(kind.dtype)
            b = torch.randn(n, k, device=run.device).to(kind.dtype).T
            with kind.active():
                times = run.time(lambda a=a, b=b: a @ b)
            rate = 2 * m * n * k / times["median"] / 1e9
            best = max(best, {"tflops": rate, "shape": [m, n, k], **times}, key=lambda peak: peak["tflops"])
        run.results["peaks"][kind.name] = best
        print(f"   {kind.name}: {best['tflops']:.1f} TFLOP/s", flush=True)
    source = torch.empty(sizes(run).copied, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    times = run.time(lambda: target.copy_(source))
    rate = 2 * source.numel() / times["median"] / 1e6
    run.results["peaks"]["copy"] = {"gbs": rate, "bytes": source.numel(), **times}
    print(f"   copy: {rate:.0f} GB/s, read and write", flush=True)


def packed(run: Run) -> None:
    """All six scales, forward, bfloat16: one image and several, with and without horizontal flips."""
    for images in sizes(run).batches:
        for flip in (False, True):
            forward(run, "packed", layer_of(run, main(run), images, flip), images=images, flip=flip, singly=True)


def scales(run: Run) -> None:
    """Each scale on its own, forward, bfloat16, with separate and fused pooling."""
    for images in dict.fromkeys((1, 2, sizes(run).batches[1])):
        for height, width in sizes(run).maps:
            layer = sizes(run).layer(main(run), [(images, height, width)], run.device)
            skipped = () if images == 1 else ("torch.compile",)
            forward(run, "scales", layer, f"{height}x{width}", images=images, pools=True, skipped=skipped)


def overlapping(run: Run) -> None:
    """A layer after 3 x 3 pools of stride 2 on six scales, with separate and fused pooling."""
    for images in sizes(run).batches:
        layer = sizes(run).overlapping_layer(main(run), images, run.device)
        forward(run, "overlapping pools", layer, images=images, pools=True)
        both(run, "overlapping pools", layer, images=images, compare=images == 1)


def training(run: Run) -> None:
    """Forward and backward: six scales in bfloat16, and training crops, which have one position each."""
    for images in sizes(run).batches:
        layer = layer_of(run, main(run), images)
        both(run, "training", layer, images=images, compare=images == 1)
    a, crops = sizes(run).architecture, sizes(run).crops
    layer = Layer(main(run), [(crops, a.kernel, a.kernel)], a.convs[-1].channels, a.hidden[0], a.kernel, 1, run.device)

    def linear(maps: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
        flat, matrix = (t.permute(0, 2, 3, 1).flatten(1) for t in (maps[0], weight))  # the memory layout
        return F.linear(flat, matrix, bias).relu_()

    def op(maps: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
        return ops.skip_classifier_flat(maps, weight, bias, 1)

    def kernels(maps: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
        return torch.ops.overfeat.skip_classifier_flat(list(maps), weight, bias, 1, True, 1)

    for name, implementation in ((EAGER, linear), (FAST, op), (f"{FAST}, as a list of maps", kernels)):
        timed(run, "training", layer, f"{crops} crops", name, implementation, backward=True, verify=True, images=crops)


def other_kinds(run: Run) -> None:
    """Six scales in the other kinds of arithmetic, forward and backward; then each scale on its own."""
    others = [kind for kind in sizes(run).kinds if kind in (TF32, FLOAT16)]
    for kind in others:
        for images in sizes(run).batches:
            layer = layer_of(run, kind, images)
            forward(run, "other kinds", layer, images=images, skipped=("loop over offsets",))
            both(run, "other kinds", layer, images=images, compare=images == 1, skipped=("torch.compile",))
    for images in sizes(run).batches:
        skipped = ("loop over offsets", "torch.compile")
        forward(run, "other kinds", layer_of(run, FLOAT32, images), images=images, skipped=skipped)
    for kind in others:
        for height, width in sizes(run).maps:
            layer = sizes(run).layer(kind, [(1, height, width)], run.device)
            forward(run, "other kinds", layer, f"{height}x{width}", images=1, skipped=("torch.compile",))


def merging(run: Run) -> None:
    """Greedy merging: one image and class, many, and many objects; beside the CPU's loop, transfers included."""
    cases = {f"{n} boxes": (*boxes_of_one_class(n), None) for n in ((12,) if run.dry else (1575,))}
    groups, each = (2, 8) if run.dry else (640, 1575)
    of_groups = [boxes_of_one_class(each, seed) for seed in range(groups)]
    boxes, scores = (torch.cat(tensors) for tensors in zip(*of_groups, strict=True))
    cases[f"{groups} groups of {each}"] = boxes, scores, torch.arange(groups).repeat_interleave(each)
    cases |= {
        f"{n} boxes of many objects": (*boxes_of_many_objects(n), None) for n in ((10,) if run.dry else (4000, 33337))
    }
    for shape, inputs in cases.items():
        inputs = [t if t is None else t.to(run.device) for t in inputs]
        for name, backend in (("compiled loop on the CPU", "torch"), (FAST, None)):
            with ops.backend(backend) if backend else nullcontext():
                run.row("merging", MERGING, shape, "float32", name, lambda x=inputs: ops.merge_boxes(*x))


def tuning(run: Run) -> None:
    """Six scales with one tile after another, for the tables in kernels/launch.py."""
    for kind in sizes(run).kinds[:2]:
        if not has_kernels(kind, run.device):
            continue
        for images in sizes(run).batches:
            layer, rows = layer_of(run, kind, images), []
            for tile in candidates(run, kind):
                launched = forced(layer.ours, tile=tile, pool="separate")
                row = timed(run, "tuning", layer, SIX, f"{FAST}, forced", launched, images=images, tile=str(tile))
                rows += [row] if row else []
            rows.sort(key=lambda row: row["median"])
            order = [{"tile": row["tile"], "ms": row["median"], "tflops": row["tflops"]} for row in rows]
            run.results.setdefault("tiles, fastest first", {})[f"{kind.name}, batch {images}"] = order
            for row in order[:3]:
                print(f"   {kind.name}, batch {images}: {row['ms']:.3f} ms with {row['tile']}", flush=True)


def candidates(run: Run, kind: Kind) -> Iterator[object]:
    from overfeat.kernels.launch import Tile

    if run.dry:
        yield from (Tile(16, 16, 16, warps=4, stages=1), Tile(16, 32, 16, warps=4, stages=1, group_m=2))
        return
    deep = 64 if kind.dtype.itemsize == 2 else 32  # channels per step: 128 bytes per row
    for m, n, warps, stages in (
        (128, 256, 8, 3), (128, 256, 8, 4), (256, 128, 8, 3), (256, 128, 8, 4), (128, 128, 8, 3), (128, 128, 8, 4),
        (128, 128, 4, 3), (128, 128, 4, 4), (64, 256, 4, 4), (64, 256, 8, 4), (128, 64, 4, 4),
    ):  # fmt: skip
        yield Tile(m, n, deep, warps, stages)
    for group in (4, 16):
        yield Tile(128, 256, deep, 8, 3, group)
        yield Tile(128, 128, deep, 8, 4, group)
    yield Tile(128, 128, 2 * deep, 8, 2)


def classification(run: Run) -> None:
    """Six scales with horizontal flips, from pixels on the device to class scores; features and scores alone."""
    net = untrained(sizes(run), main(run).dtype, run.device)
    a, image = net.architecture, sizes(run).image
    counts = [stage_macs(a, *size, net.num_classes, "fine") for size in six_scales(a.geometry, *image)]
    flop = 2 * 2 * sum(count[part] for count in counts for part in ("features", "first", "rest"))
    for images in sizes(run).batches:
        pixels = torch.randint(0, 256, (images, 3, *image), dtype=torch.uint8, device=run.device)
        memory = MEMORY_LIMIT * 8 * images

        def whole(pixels: Tensor = pixels, memory: int = memory) -> Tensor:
            return overfeat.classify(net, pixels, flip=True, memory_limit=memory)

        def features(pixels: Tensor = pixels) -> None:
            with torch.no_grad():
                for grid in grids(net, image, DenseConfig(flip=True)):
                    scaled = resize(pixels, grid.scaled)
                    net.features(scaled.flip(-1) if grid.flipped else scaled)

        def eager_whole(whole=whole) -> Tensor:
            with overfeat.backend("torch"):
                return whole()

        variants = [(EAGER, eager_whole), (FAST, whole),
                        (f"{FAST}, default memory", lambda whole=whole: whole(memory=MEMORY_LIMIT))]  # fmt: skip
        shape = f"{image[0]}x{image[1]}"
        for name, function in variants:
            row = run.row("classification", "classification", shape, main(run).name, name, function,
                          flop=images * flop, images=images)  # fmt: skip
            if row:
                row["images_per_s"] = 1e3 * images / row.get("wall", row["median"])
                print(f"   {'':40} {row['images_per_s']:.1f} images/s", flush=True)
        run.row("classification", "features alone", shape, main(run).name, "cuDNN", features,
                flop=4 * images * sum(count["features"] for count in counts), images=images)  # fmt: skip
        runs = [count["positions"] for count in counts for _ in range(2 * images)]
        logits = torch.randn(sum(runs), net.num_classes, device=run.device).to(main(run).dtype)
        bytes_moved = logits.numel() * 2 + len(runs) * net.num_classes * 4

        def plain(logits: Tensor = logits, runs: Sequence[int] = runs) -> Tensor:
            return torch.stack([run.amax(dim=0) for run in logits.softmax(dim=1, dtype=torch.float32).split(runs)])

        for name, function in ((EAGER, plain), (FAST, lambda x=logits, r=runs: ops.class_scores(x, r))):
            run.row("classification", SCORES, str(list(logits.shape)), main(run).name, name, function,
                    bytes_moved=bytes_moved, images=images)  # fmt: skip


def naive(run: Run) -> None:
    """The whole net on the largest scale, beside every window of it on its own."""
    net = untrained(sizes(run), main(run).dtype, run.device)
    size = six_scales(net.geometry, *sizes(run).image)[-1]
    pixels = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, device=run.device)

    def windows() -> Tensor:
        with torch.no_grad():
            return naive_windows(net, pixels, NAIVE_BATCH)

    def whole() -> Tensor:
        with torch.no_grad():
            return net(pixels, "fine")

    for name, function in (("single windows", windows), (FAST, whole)):
        run.row("naive windows", "net over scale 6", f"{size[0]}x{size[1]}", main(run).name, name, function)


def main(run: Run) -> Kind:
    """The kind of arithmetic of most timings: bfloat16, except in a dry run."""
    return sizes(run).kinds[0]


def layer_of(run: Run, kind: Kind, images: int, flip: bool = False) -> Layer:
    """The first full layer on all scales at once; `flip`: with a second feature map per scale."""
    return sizes(run).layer(kind, [(images, h, w) for h, w in sizes(run).maps for _ in range(1 + flip)], run.device)


def forward(run: Run, section: str, layer: Layer, shape: str = SIX, *, skipped: Sequence[str] = (),
            pools: bool = False, singly: bool = False, **more: object) -> None:  # fmt: skip
    """A row for every implementation of the layer."""
    for name, implementation in implementations(layer, run.dry, pools, singly).items():
        if name not in skipped:
            timed(run, section, layer, shape, name, implementation, **more)


def both(run: Run, section: str, layer: Layer, *, compare: bool, skipped: Sequence[str] = (), **more: object) -> None:
    """Forward and backward rows of COMMON implementations; `compare`: check their gradients."""
    for name, implementation in implementations(layer, run.dry).items():
        if name in COMMON and name not in skipped:
            timed(run, section, layer, SIX, name, implementation, backward=True, verify=compare, **more)


def timed(run: Run, section: str, layer: Layer, shape: str, name: str, implementation, *, backward: bool = False,
          verify: bool = True, **more: object) -> dict | None:  # fmt: skip
    """Check an implementation of the layer, forward or (`backward`) its gradients, then time it."""
    kind = layer.kind.name
    what = f"{section}: {name}, {shape}, {kind}, {', '.join(f'{k} {v}' for k, v in more.items())}"
    correct = True
    if verify:
        check = layer.check_gradients if backward else layer.check
        poison = name.startswith(FAST)  # others would recompile, or search for an algorithm again
        correct = run.check(
            f"gradients, {what}" if backward else what, LAYER, name, kind, lambda: check(implementation, poison)
        )
    passes = 3 if backward else 1
    try:
        step = layer.training(implementation) if backward else lambda: layer.run(implementation)
    except Exception as error:  # recorded in the row
        step = _raising(error)
    runs = None
    if name.startswith(FAST) and layer.pool > 1:  # with one position per map the op is a linear layer
        runs = ops.select_backend("skip_classifier_flat", layer.maps[0].device, layer.maps[0].dtype).name
    return run.row(section, LAYER, shape, kind, name, step, correct=correct, flop=passes * layer.flop,
                   bytes_moved=(1 + backward) * layer.bytes_moved, runs=runs,
                   **{"pass": "forward and backward" if backward else "forward"}, **more)  # fmt: skip


def _raising(error: Exception):
    def step() -> None:
        raise error

    return step
