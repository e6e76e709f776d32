"""Detection on a CPU, from the file to the boxes: rates, shares of the time, peak memory: python -m bench.detect

Scenes, and large images that are many test scenes side by side, hundreds of digits of 24 to 100 px each.
Stock torch and overfeat.fast take turns on the same images; the ceiling is measured before and after.
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
from overfeat import backend, regions
from overfeat.cli.assets import SHIPPED_DETECTOR
from overfeat.data.annotated import Annotated
from overfeat.data.images import read_image
from overfeat.data.readers.coco import read_coco
from overfeat.dense.grid import grids
from overfeat.detection.predict import clamp_scales, detect
from overfeat.models.checkpoint import load, load_regressor
from overfeat.models.flops import work
from overfeat.profiling.measure import summary
from overfeat.profiling.peaks import ceilings
from overfeat.profiling.table import groups

COMMAND = "make crowds && python -m bench.detect"
SCENES = 64
LARGE = 2500  # pixels along a side
SIDES = (1000, 2500, 5000)
LIMIT = 256 << 20  # bytes, in the runs that show the memory


def mosaic(scenes: Annotated, side: int, path: Path) -> int:
    """Scenes in rows on a square image; gives the number of digits that lie wholly in it."""
    canvas, digits, number = np.full((side, side, 3), 118, np.uint8), 0, 0
    for top in range(0, side, 240):
        left = 0
        while left < side:
            sample = scenes.samples[number % len(scenes)]
            scene = sample.read().permute(1, 2, 0).numpy()[: side - top, : side - left]
            canvas[top : top + scene.shape[0], left : left + scene.shape[1]] = scene
            inside = (sample.boxes[:, 2] <= scene.shape[1]) & (sample.boxes[:, 3] <= scene.shape[0])
            digits, number, left = digits + int(inside.sum()), number + 1, left + sample.size[1]
    Image.fromarray(canvas).save(path)
    return digits


def measure(net, regressor, paths: list[Path], repeats: int) -> dict:
    """Seconds an image by each backend, in turns; the shares of overfeat.fast; the places that were looked at."""

    def run() -> list:
        return [detect(net, regressor, read_image(path)) for path in paths]

    times, objects = {"torch": [], "fast": []}, {}
    for turn in range(repeats + 1):
        for name, taken in times.items():
            with backend("torch") if name == "torch" else nullcontext():
                start = time.perf_counter()
                objects[name] = [len(of_image) for of_image in run()]
                if turn:  # the first does not count
                    taken.append((time.perf_counter() - start) / len(paths))
    start = time.perf_counter()
    images = [read_image(path) for path in paths]
    loading = time.perf_counter() - start
    with regions.collect_timings(torch.device("cpu")) as watch:
        for image in images:
            detect(net, regressor, image)
    whole = time.perf_counter() - start
    parts = {"loading": loading} | groups({"stages": {n: {"seconds": s} for n, s in watch.seconds().items()}})
    parts["other"] = whole - sum(parts.values())
    sizes = [tuple(image.shape[1:]) for image in images]
    of_images = [grids(net, size, clamp_scales(net.architecture, *size, net.scale_factors)) for size in sizes]
    macs = [
        sum(
            work(net.architecture, *grid.scaled, net.num_classes, "fine")[part]
            for part in ("features", "first", "rest")
        )
        for found in of_images
        for grid in found
    ]
    places = sum(grid.shape[0] * grid.shape[1] for found in of_images for grid in found) / len(paths)
    return {
        "images": len(paths),
        "seconds": {name: summary(taken) for name, taken in times.items()},
        "shares": {name: spent / whole for name, spent in parts.items()},
        "places": places,
        "objects": sum(objects["fast"]) / len(paths),
        "gflops": 2 * sum(macs) / len(paths) / summary(times["fast"])["median"] / 1e9,
    }


def memory(path: Path) -> dict[str, float]:
    """MiB that detection takes in a process of its own, beyond the net and the image as it was read."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory, (path,))


def _memory(path: Path) -> dict[str, float]:
    importlib.import_module("overfeat.fast")
    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    detect(net, regressor, torch.zeros(3, 200, 200, dtype=torch.uint8), memory=LIMIT)
    image = read_image(path)
    start = time.perf_counter()
    found, peak = measure_peak_memory(lambda: detect(net, regressor, image, memory=LIMIT), torch.device("cpu"))
    return {
        "megabytes": peak / 2**20,
        "image": image.nbytes / 2**20,
        "seconds": time.perf_counter() - start,
        "objects": len(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=Path, default=ROOT / "runs/crowds")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    importlib.import_module("overfeat.fast")
    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    scenes = read_coco(args.scenes / "test.json")
    before = ceilings(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        paths = {side: Path(folder) / f"{side}.png" for side in SIDES}
        digits = {side: mosaic(scenes, side, path) for side, path in paths.items()}
        results = {
            "scale_factors": list(net.scale_factors),
            "scenes": measure(net, regressor, [sample.path for sample in scenes.samples[:SCENES]], args.repeats),
            "large": {"side": LARGE, "digits": digits[LARGE], **measure(net, regressor, [paths[LARGE]], args.repeats)},
            "memory": {"limit": LIMIT >> 20, **{str(side): memory(path) for side, path in paths.items()}},
        }
    after = ceilings(torch.device("cpu"))
    results["ceilings"] = {name: max(rate, after[name]) for name, rate in before.items()}
    for name in ("scenes", "large", "memory"):
        print(name, results[name])
    write_results("speed-detect", COMMAND, results)


if __name__ == "__main__":
    main()
