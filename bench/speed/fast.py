"""`overfeat.fast` on the CPU against stock torch, in one run: python -m bench.speed.fast

The accurate net with random weights, batch 1. Stock eager is what one writes in torch alone: scale by
scale, max pooling at stride 1, the dilated convolution and the ReLU, channels-last. The ceiling is the
better of a large matrix product and a 3 x 3 convolution with packed weights, of the same dtype, in the
same run. The transformed convolutions of float32 do fewer multiplications than a plain sum does; their
rates count those of the plain sum, so that they can pass the ceiling.
"""

import argparse
import json
import resource
import subprocess
import sys

import torch
import torch.nn.functional as F

from bench.common import write_results
from bench.speed.dense import IMAGE
from overfeat import ops, packed
from overfeat.classify import classify
from overfeat.measuring import seconds, work
from overfeat.nets import OverFeat, build
from overfeat.resize import resize

COMMAND = "python -m bench.speed.fast"


def eager(net: OverFeat, image: torch.Tensor) -> torch.Tensor:
    """Six scales, without the mirror image, in stock torch alone: [1, classes]."""
    scores = []
    for size in net.architecture.six_scales(*IMAGE):
        maps = net.normalise(resize(image, size))
        for conv, spec in zip(net.convs, net.architecture.convs, strict=True):
            maps = conv(maps).relu_()
            if spec.pool > 1 and conv is not net.convs[-1]:
                maps = F.max_pool2d(maps, spec.pool)
        maps = first_layer(net, maps)
        for layer in net.fulls[1:]:
            maps = layer(maps)
            if layer is not net.fulls[-1]:
                maps = maps.relu_()
        scores.append(maps.float().softmax(dim=1).amax(dim=(2, 3)))
    return torch.stack(scores).mean(dim=0)


def first_layer(net: OverFeat, maps: torch.Tensor) -> torch.Tensor:
    """Fine stride in stock torch: pooling at every offset and the skip-kernel convolution."""
    size, first = net.architecture.pool, net.fulls[0]
    return F.conv2d(F.max_pool2d(maps, size, 1), first.weight, first.bias, dilation=size).relu_()


def ceiling(dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """GFLOP/s of a large matrix product, and of a 3 x 3 convolution with packed weights."""
    a, b = (torch.randn(4096, 4096).to(dtype) for _ in range(2))
    maps = torch.randn(1, 512, 64, 64).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(512, 512, 3, 3).to(dtype)
    known = packed._prepared(weight) or packed._prepared(weight)
    convolution = seconds(lambda: packed._packed(maps, known, weight, None, 1, 1, 1, False), repeats)
    product = seconds(lambda: a @ b, repeats)
    return {
        "matrix_product": 2 * 4096**3 / product["median"] / 1e9,
        "convolution": 2 * 64 * 64 * 512 * 512 * 9 / convolution["median"] / 1e9,
    }


def measure(dtype: torch.dtype, repeats: int) -> dict:
    torch.manual_seed(0)
    net = build("accurate").eval()
    net.reset(None)
    net.to(dtype)
    image = torch.randint(0, 256, (1, 3, *IMAGE), dtype=torch.uint8)
    sizes = net.architecture.six_scales(*IMAGE)
    counts = [work(net.architecture, *size, net.classes, "fine") for size in sizes]
    before = ceiling(dtype, repeats)
    features = [net.features(resize(image, size)) for size in sizes]
    first = net.fulls[0]

    def rows(maps: list[torch.Tensor]) -> torch.Tensor:
        return ops.skip_classifier_rows(maps, first.weight, first.bias, net.architecture.pool)

    layers = []
    for number, (maps, count) in enumerate(zip(features, counts, strict=True), 1):
        want = first_layer(net, maps).permute(0, 2, 3, 1).flatten(0, 2).float()
        rows([maps])
        got = rows([maps]).float()
        flops = 2 * count["first"]
        layers.append(
            {
                "scale": number,
                "places": count["places"],
                "gflop": flops / 1e9,
                "stock": seconds(lambda maps=maps: first_layer(net, maps), repeats),
                "fast": seconds(lambda maps=maps: rows([maps]), repeats),
                "rms_difference": ((got - want).square().mean() / want.square().mean()).sqrt().item(),
            }
        )
    together = seconds(lambda: rows(features), repeats)
    classify(net, image, flip=False)
    # In turns, so that what else the machine does meets both.
    times = {"stock": [], "backend_torch": [], "fast": []}
    for _ in range(repeats):
        times["stock"].append(seconds(lambda: eager(net, image), 1, warm=0)["median"])
        with ops.backend("torch"):
            times["backend_torch"].append(seconds(lambda: classify(net, image, flip=False), 1, warm=0)["median"])
        times["fast"].append(seconds(lambda: classify(net, image, flip=False), 1, warm=0)["median"])
    difference = (eager(net, image) - classify(net, image, flip=False)).abs().max().item()
    total = 2 * sum(count[part] for count in counts for part in ("features", "first", "rest"))
    ordered = {name: sorted(values) for name, values in times.items()}
    return {
        "ceiling_gflops": [before, ceiling(dtype, repeats)],
        "layers": layers,
        "together": together,
        "six_scales": {name: {"median": v[len(v) // 2], "p20": v[int(0.2 * (len(v) - 1))],
                              "p80": v[-1 - int(0.2 * (len(v) - 1))], "repeats": len(v)}
                       for name, v in ordered.items()},
        "gflop": total / 1e9,
        "largest_difference": difference,
    }  # fmt: skip


def peak_memory() -> dict[str, float]:
    """MiB at the peak of a process that classifies one image three times with overfeat.fast, and of its weights."""
    import overfeat.fast  # noqa: F401

    net = build("accurate").eval()
    image = torch.randint(0, 256, (3, *IMAGE), dtype=torch.uint8)
    for _ in range(3):
        classify(net, image)
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "weights": weights / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-memory", action="store_true", help="print peak memory as JSON, and nothing else")
    args = parser.parse_args()
    if args.peak_memory:
        print(json.dumps(peak_memory()))
        return
    import overfeat.fast  # noqa: F401

    results = {}
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            reason = packed.why_not(dtype)
            if reason:
                print(f"{dtype} left out: {reason}")
                continue
            results[str(dtype).removeprefix("torch.")] = measure(dtype, args.repeats)
            packed.forget()
    alone = subprocess.run([sys.executable, "-m", "bench.speed.fast", "--peak-memory"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    write_results("speed-fast", COMMAND, {"image": IMAGE, "dtypes": results, "memory": json.loads(alone.stdout)})
    for name, found in results.items():
        times = found["six_scales"]
        print(f"{name}: six scales, {times['stock']['median'] / times['fast']['median']:.2f}x stock eager")
        for layer in found["layers"]:
            rates = [layer["gflop"] / layer[way]["median"] for way in ("stock", "fast")]
            print(f"  scale {layer['scale']}: first full layer, {rates[0]:.0f} -> {rates[1]:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
