"""Detection on a CPU, from the file to the boxes: rates, time by stage, peak memory: python -m bench.detect

Test images with none to eight digits, and large images composed of them, with hundreds of digits of 24 to 100 px. The
eager backend, overfeat.fast and, where installed, `detect` with its net in ONNX Runtime and in OpenVINO run in turns on
the same images; the peaks are measured before and after.
"""

import argparse
import importlib
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.common import ROOT, measure_peak_memory, write_results
from bench.suite.names import ONNXRUNTIME, OPENVINO
from bench.suite.runtimes import EXPORTER, detector_in
from overfeat import backend, visualize
from overfeat.cli.assets import SHIPPED_DETECTOR
from overfeat.data.annotated import Annotated
from overfeat.data.images import read_image
from overfeat.data.readers.coco import read_coco
from overfeat.dense.detections import Detections
from overfeat.dense.grid import grids
from overfeat.dense.layer_output import layer_output
from overfeat.detection.predict import detect
from overfeat.models.checkpoint import load, load_regressor
from overfeat.models.flops import stage_macs
from overfeat.models.layers import BuiltInLayer
from overfeat.ops.backends.winograd import count_saved
from overfeat.ops.boxes import iou
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


def implementations(net, regressor) -> dict[str, Callable[[torch.Tensor], Detections]]:
    """`detect` by each backend, and with the net in other runtimes, as far as they are installed."""

    def eagerly(image: torch.Tensor) -> Detections:
        with backend("torch"):
            return detect(net, regressor, image)

    runs = {"eager": eagerly, "fast": partial(detect, net, regressor)}
    for name in (ONNXRUNTIME, OPENVINO):
        missing = [package for package in (EXPORTER, name) if find_spec(package) is None]
        if missing:
            print(f"skipped: {name}: {', '.join(missing)} is not installed; it is in the extra bench")
        else:
            runs[name] = partial(detect, *detector_in(name, net, regressor))
    return runs


def equal(detections: Detections, expected: Detections) -> bool:
    """Whether two evaluations detect the same objects, but for rounding."""
    if len(detections) != len(expected):
        return False
    same = detections.labels[:, None] == expected.labels
    same &= (iou(detections.boxes, expected.boxes) > 0.99) & (
        (detections.scores[:, None] - expected.scores).abs() < 1e-3
    )
    return bool(same.any(dim=1).all() and same.any(dim=0).all())


def time_in_turns(runs: dict[str, Callable], paths: list[Path], repeats: int) -> tuple[dict[str, list[float]], int]:
    """Seconds per image of each implementation whose detections equal the first one's, and the number of objects."""
    times: dict[str, list[float]] = {}
    images = [read_image(path) for path in paths]
    expected = [next(iter(runs.values()))(image) for image in images]
    for name, run in runs.items():
        if all(equal(run(image), of_image) for image, of_image in zip(images, expected, strict=True)):
            times[name] = []
        else:
            print(f"skipped: {name}: its detections differ")
    for _ in range(repeats):
        for name, elapsed in times.items():
            start = time.perf_counter()
            for path in paths:
                runs[name](read_image(path))
            elapsed.append((time.perf_counter() - start) / len(paths))
    return times, sum(len(of_image) for of_image in expected)


def measure(net, regressor, paths: list[Path], repeats: int, runs: dict[str, Callable]) -> dict:
    """Seconds per image by each implementation; fractions of the time by stage; positions; GFLOP/s as done."""
    times, objects = time_in_turns(runs, paths, repeats)
    start = time.perf_counter()
    images = [read_image(path) for path in paths]
    loading = time.perf_counter() - start
    with collect_timings(torch.device("cpu")) as timer, count_saved() as saved:
        for image in images:
            detect(net, regressor, image)
    whole = time.perf_counter() - start
    stages = {"loading": loading} | stage_seconds({"regions": {n: {"seconds": s} for n, s in timer.seconds().items()}})
    stages["other"] = whole - sum(stages.values())
    sizes = [tuple(image.shape[1:]) for image in images]
    of_images = [grids(net, size) for size in sizes]
    of_scales = [grid for of_image in of_images for grid in of_image]
    counts = [stage_macs(net.architecture, *grid.padded, net.num_classes, "fine") for grid in of_scales]
    macs = sum(count[layers] for count in counts for layers in ("features", "first", "rest")) - sum(saved)
    positions = sum(grid.shape[0] * grid.shape[1] for grid in of_scales) / len(paths)
    return {
        "images": len(paths),
        "seconds": {name: summary(elapsed) for name, elapsed in times.items()},
        "fractions": {name: seconds / whole for name, seconds in stages.items()},
        "positions": positions,
        "objects": objects / len(paths),
        "gflops": 2 * macs / len(paths) / summary(times["fast"])["median"] / 1e9,
    }


def memory(path: Path) -> dict[str, float]:
    """MiB that reading an image, `detect`, the picture of its results and `layer_output` allocate; see `_memory`."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory, (path,))


def _memory(path: Path) -> dict[str, float]:
    """Reading: with the image; the features: with their output; all but reading: beyond the net and the image."""
    importlib.import_module("overfeat.fast")
    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    layer = BuiltInLayer(net, net.architecture.feature_layer)
    small, picture = torch.zeros(3, 200, 200, dtype=torch.uint8), path.with_suffix(".drawn.png")
    for _ in range(2):  # weights are packed at the second call; fonts are read at the first
        layer_output(net, layer, small, memory_limit=LIMIT)
        visualize.detections(small, detect(net, regressor, small, memory_limit=LIMIT), net.class_names, "", picture)
    image, reading = _peak(lambda: read_image(path))
    start = time.perf_counter()
    detections, detection = _peak(lambda: detect(net, regressor, image, memory_limit=LIMIT))
    seconds = time.perf_counter() - start
    _, drawing = _peak(lambda: visualize.detections(image, detections, net.class_names, "", picture))
    output, features = _peak(lambda: layer_output(net, layer, image, memory_limit=LIMIT))
    return {
        "image": image.nbytes / 2**20,
        "reading": reading,
        "detection": detection,
        "drawing": drawing,
        "features": features,
        "output": output.nbytes / 2**20,
        "seconds": seconds,
        "objects": len(detections),
    }


def _peak(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the peak of its memory in MiB; NaN where it is unknown."""
    result, peak = measure_peak_memory(run, torch.device("cpu"))
    return result, math.nan if peak is None else peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "runs/multi")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    importlib.import_module("overfeat.fast")
    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    data = read_coco(args.data / "test.json")
    before = measured_peaks(torch.device("cpu"))
    runs = implementations(net, regressor)
    with tempfile.TemporaryDirectory() as folder:
        paths = {side: Path(folder) / f"{side}.png" for side in SIDES}
        digits = {side: write_mosaic(data, side, path) for side, path in paths.items()}
        results = {
            "scale_factors": list(net.scale_factors),
            "images": measure(net, regressor, [sample.path for sample in data.samples[:IMAGES]], args.repeats, runs),
            "large": {
                "side": LARGE,
                "digits": digits[LARGE],
                **measure(net, regressor, [paths[LARGE]], args.repeats, runs),
            },
            "memory": {"limit": LIMIT >> 20, **{str(side): memory(path) for side, path in paths.items()}},
        }
    after = measured_peaks(torch.device("cpu"))
    results["peaks"] = {name: max(rate, after[name]) for name, rate in before.items()}
    for name in ("images", "large", "memory"):
        print(name, results[name])
    write_results("speed-detect", COMMAND, results)


if __name__ == "__main__":
    main()
