"""Dense evaluation on the CPU with stock torch: python -m bench.speed.dense

The accurate net with random weights, float32, batch 1. Compared: fine stride over the whole image
against cropping every window; the classifier stage against looping over the 9 offsets; all six
scales against a large matrix product. Every ratio is of times from this one run.
"""

import argparse
import json
import resource
import subprocess
import sys

import torch
import torch.nn.functional as F

from bench.common import matrix_product_rate, write_results
from overfeat.classify import classify
from overfeat.measuring import seconds, work
from overfeat.nets import OverFeat, build
from overfeat.resize import resize

COMMAND = "python -m bench.speed.dense"
IMAGE = (375, 500)  # height, width: the usual size of an ImageNet picture
CROPS = 16  # windows in a batch of the naive way


def naive_windows(net: OverFeat, image: torch.Tensor, batch: int = CROPS) -> torch.Tensor:
    """Every window of the fine grid cropped and run on its own, in batches: [classes, rows, columns]."""
    window, stride = net.architecture.window, net.architecture.fine_stride
    crops = image.unfold(2, window, stride).unfold(3, window, stride)[0]
    rows, columns = crops.shape[1:3]
    crops = crops.permute(1, 2, 0, 3, 4).flatten(0, 1)
    scores = torch.cat([net(part).flatten(1) for part in crops.split(batch)])
    return scores.T.view(-1, rows, columns)


def offset_loop(net: OverFeat, maps: torch.Tensor) -> torch.Tensor:
    """The classifier stage with stock torch, once for each offset of the last pooling, interleaved."""
    size, kernel = net.architecture.pool, net.architecture.kernel
    rows, columns = (side - size * kernel + 1 for side in maps.shape[2:])
    output = maps.new_empty(len(maps), net.classes, rows, columns)
    for y in range(size):
        for x in range(size):
            hidden = F.max_pool2d(maps[:, :, y:, x:], size)
            for layer in net.fulls:
                hidden = F.conv2d(hidden, layer.weight, layer.bias)
                if layer is not net.fulls[-1]:
                    hidden = hidden.relu_()
            output[:, :, y::size, x::size] = hidden
    return output


def peak_memory() -> dict[str, float]:
    """MiB at the peak of a process that evaluates one image at six scales, and of its weights."""
    net = build("accurate").eval()
    image = torch.randint(0, 256, (3, *IMAGE), dtype=torch.uint8)
    classify(net, image)
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    return {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "weights": weights / 2**20,
    }


def measure(repeats: int) -> dict:
    torch.manual_seed(0)
    net = build("accurate").eval()
    net.reset(None)  # N(0, 0.01) fades to nothing over nine layers; sizes and speed are the same
    image = torch.randint(0, 256, (1, 3, *IMAGE), dtype=torch.uint8)
    sizes = net.architecture.six_scales(*IMAGE)
    ceiling = matrix_product_rate(repeats=repeats)

    # Scale 6: the whole net over the image, against every window on its own.
    scaled = resize(image, sizes[5])
    places = work(net.architecture, *sizes[5], net.classes, "fine")["places"]
    whole = seconds(lambda: net(scaled, "fine"), repeats)
    naive = seconds(lambda: naive_windows(net, scaled), 1, warm=0)
    assert naive_windows(net, scaled[:, :, :233, :233]).shape[1:] == net(scaled[:, :, :233, :233], "fine").shape[2:]

    # The classifier stage, from the last maps on: exactly the same function, checked.
    stages = []
    features = [net.features(resize(image, size)) for size in sizes]
    for number, maps in enumerate(features, 1):
        ours, loop = net.classifier(maps, "fine"), offset_loop(net, maps)
        difference = ((ours - loop).abs().max() / loop.abs().max()).item()
        assert difference < 1e-4, difference
        stages.append(
            {
                "scale": number,
                "places": ours.shape[2] * ours.shape[3],
                "ours": seconds(lambda maps=maps: net.classifier(maps, "fine"), repeats),
                "loop": seconds(lambda maps=maps: offset_loop(net, maps), max(1, repeats // 2)),
                "difference": difference,
            }
        )
    packed = seconds(lambda: net.classifier(features, "fine"), repeats)

    # All six scales, image to scores, without the mirror image.
    counts = [work(net.architecture, *size, net.classes, "fine") for size in sizes]
    total = 2 * sum(count[part] for count in counts for part in ("features", "first", "rest"))
    six = seconds(lambda: classify(net, image, flip=False), repeats)
    ceiling_after = matrix_product_rate(repeats=repeats)
    rate = (ceiling + ceiling_after) / 2
    return {
        "image": IMAGE,
        "matrix_product_gflops": [ceiling / 1e9, ceiling_after / 1e9],
        "scale_6": {"size": sizes[5], "places": places, "whole": whole, "naive": naive,
                    "ratio": naive["median"] / whole["median"]},
        "classifier": {"scales": stages, "packed": packed,
                       "ratio": sum(s["loop"]["median"] for s in stages) / packed["median"]},
        "six_scales": {"seconds": six, "gflop": total / 1e9, "gflops": total / 1e9 / six["median"],
                       "fraction": total / six["median"] / rate, "places": sum(c["places"] for c in counts)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-memory", action="store_true", help="print peak memory as JSON, and nothing else")
    args = parser.parse_args()
    if args.peak_memory:
        print(json.dumps(peak_memory()))
        return
    with torch.no_grad():
        results = measure(args.repeats)
    alone = subprocess.run([sys.executable, "-m", "bench.speed.dense", "--peak-memory"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    results["memory"] = json.loads(alone.stdout)
    write_results("speed-dense", COMMAND, results)
    print(f"scale 6, against every window on its own: {results['scale_6']['ratio']:.1f}x")
    print(f"classifier stage, against the loop over offsets: {results['classifier']['ratio']:.1f}x")
    print(f"six scales, fraction of a large matrix product: {results['six_scales']['fraction']:.2f}")
    print(f"peak memory: weights + {results['memory']['peak'] - results['memory']['weights']:.0f} MiB")


if __name__ == "__main__":
    main()
