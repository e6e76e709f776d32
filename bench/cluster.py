"""Work on Dask's workers: one against two of one core, the scheduler's overhead, and a model: python -m bench.cluster

Workers detect objects in JPEG files; the scheduler's overhead is measured with a function that does nothing, an item in
a group and many in a group.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from bench.common import write_results
from overfeat.cluster import dispatch
from overfeat.cluster.connect import connect

COMMAND = "python -m bench.cluster"
SIDE = 768  # pixels of the images
SCALE = 1.0
QUEUED = 40  # groups on their way, as with twenty workers
GROUPS = 1000
BANDWIDTHS = (100, 1000)  # MB/s
WORKERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def detector():
    """Detect objects in a file with the shipped detector, as the command does; returns their number."""
    import torch

    import overfeat.fast
    from overfeat.data.images import read_image
    from overfeat.files import ASSETS

    torch.set_num_threads(1)
    net = overfeat.fast.load(ASSETS / "detector.safetensors")
    regressor = overfeat.fast.load_regressor(ASSETS / "detector.safetensors")

    def function(path: str) -> int:
        return len(overfeat.fast.detect(net, regressor, read_image(Path(path)), scales=[SCALE], flip=False))

    return function


def nothing():
    """A function that does nothing."""
    return lambda item: None


def write_images(folder: Path, count: int) -> list[str]:
    from PIL import Image

    from overfeat.files import ASSETS

    scenes = [Image.open(path).convert("RGB") for path in sorted((ASSETS / "scenes").glob("*.png"))]
    for i in range(count):
        scenes[i % len(scenes)].resize((SIDE, SIDE)).save(folder / f"{i:03}.jpg")
    return [str(path) for path in sorted(folder.iterdir())]


def seconds_of(prepare: Any, items: Iterable, client: Any) -> float:
    """Seconds from the first group to the last result."""
    start, count = time.perf_counter(), 0
    for _, result in dispatch.run(prepare, items, dask=client):
        result.result()
        count += 1
    return time.perf_counter() - start


def measure_scaling(images: list[str], repeats: int) -> dict[str, float]:
    """Images in a second with one and two workers, which take turns; the best of `repeats`."""
    best: dict[int, float] = {}
    with connect("local:1") as one, connect("local:2") as two:
        two.wait_for_workers(2)
        clients = {1: one, 2: two}
        for count, client in clients.items():  # every worker loads the net and meets the size
            seconds_of(detector, images[: 8 * count], client)
        for _ in range(repeats):
            for count, client in clients.items():
                rate = len(images) / seconds_of(detector, images, client)
                best[count] = max(rate, best.get(count, 0.0))
    return {"one": best[1], "two": best[2]}


def measure_overhead(count: int) -> dict[str, float]:
    """Milliseconds of a group that does nothing, with many on their way, and seconds of many such items in groups."""
    with connect("local:1") as client:
        seconds_of(nothing, range(10), client)
        largest, queued = dispatch.MAX_GROUP, dispatch.QUEUED
        dispatch.MAX_GROUP, dispatch.QUEUED = 1, QUEUED
        try:
            own = time.process_time()
            wall = min(seconds_of(nothing, range(GROUPS), client) for _ in range(2))
            own = (time.process_time() - own) / 2
        finally:
            dispatch.MAX_GROUP, dispatch.QUEUED = largest, queued
        seconds = seconds_of(nothing, range(count), client)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    alone = {"ms a group": 1000 * wall / GROUPS, "cpu ms a group": 1000 * own / GROUPS, "queued": QUEUED}
    return {**alone, "items": count, "seconds": seconds, "group": largest, "MiB of the command": memory}


def model(item: float, group: float, megabytes: float, *, workers: int, bandwidth: float) -> float:
    """Items in a second: what workers compute, what the scheduler sends, or what the storage reads, the lowest of them.

    Args:
        item: Seconds of an item on a worker.
        group: Seconds of a group on the scheduler.
        megabytes: Read for an item; bandwidth: megabytes in a second that the storage gives to all workers together.
    """
    items = max(1.0, dispatch.GROUP_SECONDS / item)  # in a group
    return min(workers / item, items / group, bandwidth / megabytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--items", type=int, default=1_000_000, help="that do nothing, in groups")
    parser.add_argument("--repeats", type=int, default=2, help="of scaling; the best counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), args.images)
        megabytes = sum(Path(path).stat().st_size for path in images) / len(images) / 1e6
        scaling = measure_scaling(images, args.repeats)
    overhead = measure_overhead(args.items)
    results: dict[str, Any] = {
        "bandwidths": BANDWIDTHS,
        "side": SIDE,
        "images": args.images,
        "megabytes": megabytes,
        "scaling": scaling,
        "overhead": overhead,
    }
    predict = partial(model, 1 / scaling["one"], overhead["ms a group"] / 1000, megabytes)
    results["model"] = {n: [predict(workers=n, bandwidth=speed) for speed in BANDWIDTHS] for n in WORKERS}
    print(json.dumps(results, indent=1))
    write_results("cluster", COMMAND, results)


if __name__ == "__main__":
    main()
