"""Detection in images of 10,000 to 100,000 px: peak memory, and the fraction of reading: python -m bench.large_memory

Pyramids of JPEG tiles whose tiles share a few contents; the shipped detector at one scale factor (1, and 0.1 for the
largest), each image in a process of its own, which is killed after a third of its blocks and started again.
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from bench.common import RESULTS, measure_peak_memory, write_results
from bench.enormous import write_enormous

COMMAND = "python -m bench.large_memory"
SCALES = {10_000: 1.0, 30_000: 1.0, 100_000: 0.1}  # scale factor by pixels of a side
READING = ("read", "resize")  # regions
MERGED_SIDE, BLOCKS, BOXES = 100_000, 49, 20  # of the sweep: pixels and blocks along a side, boxes around an object


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def detect(path: Path, folder: Path, scale: float, limit: int, stop_after: int | None) -> dict[str, Any]:
    """Detect in an image; with `stop_after` the process is killed after so many blocks."""
    import torch

    from overfeat import fast, load, load_regressor
    from overfeat.cli.assets import SHIPPED_DETECTOR
    from overfeat.large.blocks import pending_blocks
    from overfeat.large.detect import detection_job
    from overfeat.regions import collect_timings

    warnings.simplefilter("ignore")
    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    small = torch.randint(0, 256, (3, 120, 120), dtype=torch.uint8)
    fast.detect(net, regressor, small, memory_limit=limit << 20, score_threshold=0.0)  # packages are imported, compiled
    before, start = peak_mib(), time.perf_counter()
    job = detection_job(net, regressor, path, folder, scales=[scale], memory_limit=limit << 20)
    pending, regions = pending_blocks(job.plan.blocks, folder), {name: 0.0 for name in READING}
    for number, block in enumerate(pending):
        if number == stop_after:
            os.kill(os.getpid(), signal.SIGKILL)
        with collect_timings(net.device) as timer:
            job.evaluate(block)
        for name in READING:
            regions[name] += timer.seconds().get(name, 0.0)
    evaluated = time.perf_counter()
    detections = job.finish()
    end = time.perf_counter()
    return {
        "blocks": len(job.plan.blocks), "evaluated": len(pending), "objects": len(detections), "before_mib": before,
        "peak_mib": peak_mib(), "seconds": end - start, "merge_seconds": end - evaluated, **regions,
    }  # fmt: skip


def measure(side: int, scale: float, limit: int, folder: Path) -> dict[str, Any]:
    """Both runs of an image."""
    path, blocks = folder / "image.tif", folder / "blocks"
    write_enormous(path, side, side)
    size = path.stat().st_size
    total = count_blocks(path, scale)
    context = multiprocessing.get_context("spawn")
    killed = context.Process(target=detect, args=(path, blocks, scale, limit, total // 3))
    killed.start()
    killed.join()
    finished = len(list(blocks.glob("*.safetensors")))
    with context.Pool(1) as pool:
        result = pool.apply(detect, (path, blocks, scale, limit, None))
    repeated = finished + result["evaluated"] - result["blocks"]
    reading = sum(result[name] for name in READING) / (result["seconds"] - result["merge_seconds"])
    return {
        **result,
        "scale": scale,
        "file_bytes": size,
        "repeated_blocks": repeated,
        "reading": reading,
        "exit": killed.exitcode,
    }


def write_candidates(folder: Path, count: int) -> tuple[list[Path], int]:
    """About `count` candidates around objects in the blocks of an image; returns the files and the exact number."""
    import numpy as np
    import torch

    from overfeat.dense.candidates import Candidates
    from overfeat.large.merge import save_candidates

    random, block, objects = np.random.default_rng(0), MERGED_SIDE / BLOCKS, count // BOXES // BLOCKS**2
    paths, total = [], 0
    for row in range(BLOCKS):
        for column in range(BLOCKS):
            corners = random.uniform((0, 0), (block, block), (objects, 2)) + (column * block, row * block)
            corners = np.repeat(corners, BOXES, axis=0) + random.normal(0, 3, (objects * BOXES, 2))
            boxes = torch.from_numpy(np.concatenate([corners, corners + 30], axis=1)).float()
            scores = torch.from_numpy(random.random(len(boxes))).float()
            labels = torch.zeros(len(boxes), dtype=torch.int64)
            paths.append(folder / f"{len(paths)}.safetensors")
            numbers = torch.arange(total, total := total + len(boxes))
            save_candidates(paths[-1], Candidates(boxes, scores, labels, labels.clone()), numbers)
    return paths, total


def merge(count: int) -> dict[str, float]:
    """Merge about `count` candidates in the blocks of an image of 100,000 px."""
    import torch

    from overfeat.dense.grid import Grid
    from overfeat.detection.predict import DetectionRule
    from overfeat.large.merge import merge_files

    grids = [Grid((47, 47), 4, (MERGED_SIDE, MERGED_SIDE), (MERGED_SIDE, MERGED_SIDE))]
    rule = DetectionRule("vote", 0.5, 0.35, 1.0, "counts", 0.3, None, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        paths, total = write_candidates(Path(folder), count)
        merge_files(paths[:1], grids, rule)  # packages are imported, compiled
        start = time.perf_counter()
        detections, peak = measure_peak_memory(lambda: merge_files(paths, grids, rule), torch.device("cpu"))
        seconds = time.perf_counter() - start
    all_mib = total * 44 / 2**20  # boxes, scores, labels, scales, numbers
    return {
        "candidates": total, "all_mib": all_mib, "objects": len(detections), "seconds": seconds,
        "mib": (peak or 0) / 2**20,
    }  # fmt: skip


def count_blocks(path: Path, scale: float) -> int:
    from overfeat import load
    from overfeat.cli.assets import SHIPPED_DETECTOR
    from overfeat.dense.config import DenseConfig
    from overfeat.large import open_image
    from overfeat.large.blocks import plan_blocks
    from overfeat.large.view import View

    return len(plan_blocks(load(SHIPPED_DETECTOR), View.of(open_image(path)), DenseConfig([scale])).blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    help = "pixels of a side of the images; none: those measured before are kept"
    parser.add_argument("--sides", type=int, nargs="*", default=SCALES, help=help)
    parser.add_argument("--limit", type=int, default=1024, help="memory limit in MiB")
    parser.add_argument("--candidates", type=int, default=2_000_000, help="boxes that are merged")
    args = parser.parse_args()
    results: dict[str, Any] = {"limit_mib": args.limit, "images": {}}
    if not args.sides:
        earlier = json.loads((RESULTS / "large-memory.json").read_bytes())
        results = {name: earlier[name] for name in results}
    images = results["images"]
    for side in args.sides:
        with tempfile.TemporaryDirectory() as folder:
            images[side] = measure(side, SCALES.get(side, 1.0), args.limit, Path(folder))
        print(side, json.dumps(images[side], indent=1))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        merged = pool.apply(merge, (args.candidates,))
    print(json.dumps(merged, indent=1))
    write_results("large-memory", COMMAND, results | {"merge": merged})


if __name__ == "__main__":
    main()
