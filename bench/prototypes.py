"""Dense evaluation of a net and of prototypes on its features: python -m bench.prototypes

Scores of every window of a photograph at its own size, by SqueezeNet's classifier and by 1, 10 and 100 prototypes on
the features that the classifier is given; calls take turns, so that what else runs on the machine slows all alike.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

import overfeat.fast as overfeat
from bench.common import write_results
from overfeat.data.images import read_image
from overfeat.dense.config import DenseConfig
from overfeat.dense.grid import grids
from overfeat.files import ASSETS
from overfeat.models.net import Net

COMMAND = "python -m bench.prototypes"
PHOTO = ASSETS / "photos" / "coffee.jpg"
CLASSES = (1, 10, 100)
CASES = {  # name: borders and stride
    "neighbours, stride 16": ("neighbours", 16), "neighbours, stride 32": ("neighbours", 32),
    "exact, stride 32": ("exact", 32), "exact, stride 64": ("exact", 64),
}  # fmt: skip


def prototypes(net: Net, count: int) -> overfeat.Prototypes:
    """Prototypes with so many classes of random directions."""
    made = overfeat.Prototypes(net)
    made.class_names, made.counts = [f"class {i}" for i in range(count)], [1] * count
    made.sums = F.normalize(torch.rand(count, made.sums.shape[1]), dim=1)
    return made


def measure(borders: str, stride: int, rounds: int) -> list[dict[str, float | str]]:
    """Median milliseconds of a call, and billion multiplications, of the net and of prototypes on its features."""
    net, image = overfeat.squeezenet().with_borders(borders), read_image(PHOTO)
    nets: dict[str, Net] = {"classifier": net} | {f"{n} prototype{'s' * (n > 1)}": prototypes(net, n) for n in CLASSES}
    dense = {"scales": [1.0], "flip": False, "stride": stride}
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for number in range(rounds + 1):
        for name, own in nets.items():
            start = time.perf_counter()
            overfeat.score_maps(own, image, **dense)
            if number:  # the first call packs weights and compiles
                seconds[name].append(time.perf_counter() - start)
    (grid,) = grids(net, (image.shape[1], image.shape[2]), DenseConfig(**dense))
    macs = {name: sum(own.region_macs(grid.padded, grid.stride)[0].values()) for name, own in nets.items()}
    return [
        {"scores by": name, "ms": 1e3 * statistics.median(own), "billion multiplications": macs[name] / 1e9,
               "ratio": statistics.median(a / b for a, b in zip(own, seconds["classifier"], strict=True))}
        for name, own in seconds.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="calls of each (default: %(default)s)")
    args = parser.parse_args()
    rows = [{"case": name, **row} for name, case in CASES.items() for row in measure(*case, args.rounds)]
    for row in rows:
        print(f"{row['case']:24} {row['scores by']:16} {row['ms']:8.1f} ms {row['ratio']:6.2f}")
    write_results("prototypes", COMMAND, {"image": PHOTO.name, "rounds": args.rounds, "rows": rows})


if __name__ == "__main__":
    main()
