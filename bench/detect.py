"""Detection on a CPU, from the file to the boxes: rates, time by stage, peak memory: python -m bench.detect

Test images with none to eight digits, and large images composed of them, with hundreds of digits of 24 to 100 px. The
eager backend and overfeat.fast run in turns on the same images; the peaks are measured before and after.
"""

import argparse
import importlib
import multiprocessing
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.common import ROOT, measure_peak_memory, write_results
from overfeat import backend
from overfeat.cli.assets import SHIPPED_DETECTOR
from overfeat.data.annotated import Annotated
from overfeat.data.images import read_image
from overfeat.data.readers.coco import read_coco
from overfeat.dense.grid import grids
from overfeat.detection.predict import detect
from overfeat.models.checkpoint import load, load_regressor
from overfeat.models.flops import stage_macs
from overfeat.profiling.measure import summary
from overfeat.profiling.peaks import measured_peaks
from overfeat.profiling.table import stage_seconds
from overfeat.regions import collect_timings

COMMAND = "bench/accuracy/images.sh && python -m bench.detect"
IMAGES = 64
LARGE = 2500  # pixels per side
SIDES = (1000, 2500, 5000)
LIMIT = 256 << 20  # bytes: the memory limit of the memory measurements


def write_mosaic(data: Annotated, side: int, path: Path) -> int:
    """Write a square image composed of test images; the number of digits that lie entirely in it."""
    canvas, digits, number = np.full((side, side, 3), 118, np.uint8), 0, 0
    for top in range(0, side, 240):
        left = 0
        while left < side:
            sample = data.samples[number % len(data)]
            image = sample.read().permute(1, 2, 0).numpy()[: side - top, : side - left]
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
            inside = (sample.boxes[:, 2] <= image.shape[1]) & (sample.boxes[:, 3] <= image.shape[0])
            digits, number, left = digits + int(inside.sum()), number + 1, left + sample.size[1]
    Image.fromarray(canvas).save(path)
    return digits


def measure(net, regressor, paths: list[Path], repeats: int) -> dict:
    """Seconds per image by each backend, in turns; fractions of the time by stage; positions; GFLOP/s."""

    def run() -> list:
        return [detect(net, regressor, read_image(path)) for path in paths]

    times, objects = {"eager": [], "fast": []}, {}
    for turn in range(repeats + 1):
        for name, elapsed in times.items():
            with backend("torch") if name == "eager" else nullcontext():
                start = time.perf_counter()
                objects[name] = [len(of_image) for of_image in run()]
                if turn:  # the first warms up
                    elapsed.append((time.perf_counter() - start) / len(paths))
    start = time.perf_counter()
    images = [read_image(path) for path in paths]
    loading = time.perf_counter() - start
    with collect_timings(torch.device("cpu")) as timer:
        for image in images:
            detect(net, regressor, image)
    whole = time.perf_counter() - start
    stages = {"loading": loading} | stage_seconds({"regions": {n: {"seconds": s} for n, s in timer.seconds().items()}})
    stages["other"] = whole - sum(stages.values())
    sizes = [tuple(image.shape[1:]) for image in images]
    of_images = [grids(net, size) for size in sizes]
    of_scales = [grid for of_image in of_images for grid in of_image]
    counts = [stage_macs(net.architecture, *grid.padded, net.num_classes, "fine") for grid in of_scales]
    macs = sum(count[layers] for count in counts for layers in ("features", "first", "rest"))
    positions = sum(grid.shape[0] * grid.shape[1] for grid in of_scales) / len(paths)
    return {
        "images": len(paths),
        "seconds": {name: summary(elapsed) for name, elapsed in times.items()},
        "fractions": {name: seconds / whole for name, seconds in stages.items()},
        "positions": positions,
        "objects": sum(objects["fast"]) / len(paths),
        "gflops": 2 * macs / len(paths) / summary(times["fast"])["median"] / 1e9,
    }


def memory(path: Path) -> dict[str, float]:
    """MiB that detection allocates in a process of its own, beyond the net and the decoded image."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory, (path,))


def _memory(path: Path) -> dict[str, float]:
    importlib.import_module("overfeat.fast")
    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    detect(net, regressor, torch.zeros(3, 200, 200, dtype=torch.uint8), memory_limit=LIMIT)
    image = read_image(path)
    start = time.perf_counter()
    detections, peak = measure_peak_memory(
        lambda: detect(net, regressor, image, memory_limit=LIMIT), torch.device("cpu")
    )
    return {
        "megabytes": peak / 2**20,
        "image": image.nbytes / 2**20,
        "seconds": time.perf_counter() - start,
        "objects": len(detections),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "runs/multi")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    importlib.import_module("overfeat.fast")
    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    data = read_coco(args.data / "test.json")
    before = measured_peaks(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        paths = {side: Path(folder) / f"{side}.png" for side in SIDES}
        digits = {side: write_mosaic(data, side, path) for side, path in paths.items()}
        results = {
            "scale_factors": list(net.scale_factors),
            "images": measure(net, regressor, [sample.path for sample in data.samples[:IMAGES]], args.repeats),
            "large": {"side": LARGE, "digits": digits[LARGE], **measure(net, regressor, [paths[LARGE]], args.repeats)},
            "memory": {"limit": LIMIT >> 20, **{str(side): memory(path) for side, path in paths.items()}},
        }
    after = measured_peaks(torch.device("cpu"))
    results["peaks"] = {name: max(rate, after[name]) for name, rate in before.items()}
    for name in ("images", "large", "memory"):
        print(name, results[name])
    write_results("speed-detect", COMMAND, results)


if __name__ == "__main__":
    main()
