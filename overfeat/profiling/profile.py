"""Where the time of a dense evaluation goes: scale by scale and layer by layer, beside what the machine can do."""

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from overfeat import regions
from overfeat.classification.predict import classify
from overfeat.dense.evaluate import best_scores
from overfeat.dense.grid import Grid, grids
from overfeat.dense.scales import Scale, round_to_stride
from overfeat.dense.tiling import MEMORY
from overfeat.detection.predict import clamp_scales, detect
from overfeat.files import atomic_write
from overfeat.localization.predict import localize
from overfeat.models.architecture import Stride
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.flops import multiplications
from overfeat.models.overfeat import OverFeat, as_batch
from overfeat.profiling import REPEATS
from overfeat.profiling.measure import machine, seconds, synchronize
from overfeat.profiling.peaks import ceilings
from overfeat.profiling.table import OTHER


def profile(
    net: OverFeat,
    image: Tensor,
    scales: Sequence[Scale] | None = None,
    flip: bool | None = None,
    stride: Stride = "fine",
    memory: int = MEMORY,
    regressor: BoxRegressor | None = None,
    repeats: int = REPEATS,
    trace: Path | None = None,
) -> dict:
    """Times of an image's evaluation: each scale and flip on its own, then all of it as it is done.

    image, scales, flip, stride, memory: as in `classify`; scales None is net.scale_factors for a detector. regressor: all
    of it is then `localize`, or `detect` for a net with a background class, with boxes and merging. trace: where a
    Chrome trace of one whole evaluation goes. Gives {"machine", "ceilings", "image", "net", "dtype", "stride",
    "grids": [{"scaled", "flipped", ...}], "whole": {...}}; the last two have "windows", "gflop" (computed, boxes not
    counted), "seconds" (median; "p20", "p80"), "gflops", "fraction" of the better ceiling of product and convolution,
    and "stages": {name: {"seconds" (median), and where it multiplies "gflop", "gflops", "fraction"}}. Ceilings are
    measured before and after, the better counts. Raises InputError for scales and memory as `classify` does.
    """
    image = as_batch(image)
    weight = net.conv_layers[0].weight
    device, size = weight.device, tuple(image.shape[2:])
    if scales is None and net.scale_factors is not None:
        scales = clamp_scales(net.architecture, *size, net.scale_factors)
    found = grids(net, size, scales, flip, stride)
    before = ceilings(device, weight.dtype)
    timed = [
        _timed(lambda grid=grid: best_scores(net, image, [grid], stride, memory), net, [grid], stride, repeats)
        for grid in tqdm(found, "timing", unit="scale", disable=None, leave=False, file=sys.stderr)
    ]

    def whole() -> None:
        if regressor is None:
            classify(net, image, scales, flip, stride, memory)
        elif net.background:
            detect(net, regressor, image, scales, flip, stride, memory=memory)
        else:
            localize(net, regressor, image, scales, flip, stride, memory=memory)

    total = _timed(whole, net, found, stride, repeats)
    if trace is not None:
        _trace(whole, device, trace)
    after = ceilings(device, weight.dtype)
    best = {name: max(rate, after[name]) for name, rate in before.items()}
    for entry in (*timed, total):
        _against(entry, max(best["product"], best["convolution"]))
    for entry, grid in zip(timed, found, strict=True):
        entry |= {"scaled": list(grid.scaled), "flipped": grid.flipped}
    return {
        "machine": machine(),
        "ceilings": {"gflops": {k: best[k] / 1e9 for k in ("product", "convolution")}, "copy_gbs": best["copy"] / 1e9},
        "image": list(size),
        "net": net.architecture.name,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "stride": stride,
        "grids": timed,
        "whole": total,
    }


def evaluation_work(net: OverFeat, found: Sequence[Grid], stride: Stride) -> tuple[dict[str, int], int]:
    """Multiply-accumulates of the classes at all places of these grids, by stage, and the number of places.

    What a net with context sees at half the resolution is counted. Boxes are not.
    """
    work: dict[str, int] = {}
    windows = 0
    for grid in found:
        of_grid, places = multiplications(net.architecture, *grid.scaled, net.num_classes, stride)
        parts, half = [of_grid], [round_to_stride(net.architecture, side / 2) for side in grid.scaled]
        if net.context is not None and min(half) >= net.architecture.window:
            of_half, _ = multiplications(net.architecture, *half, net.num_classes, stride)
            parts.append({name: count for name, count in of_half.items() if name != "other full layers"})
        for part in parts:
            for name, count in part.items():
                work[name] = work.get(name, 0) + count
        windows += places
    return work, windows


def _timed(run: Callable[[], object], net: OverFeat, found: Sequence[Grid], stride: Stride, repeats: int) -> dict:
    """Median times of the run and its stages, and its work."""
    device, taken = net.device, []

    def run_timed() -> None:
        with regions.collect_timings(device) as watch:
            run()
            synchronize(device)
        taken.append(watch.seconds())

    times = seconds(run_timed, repeats)
    taken = taken[-repeats:]
    of_stages = {name: statistics.median(t.get(name, 0.0) for t in taken) for name in taken[-1]}
    of_stages[OTHER] = max(0.0, times["median"] - sum(of_stages.values()))
    work, windows = evaluation_work(net, found, stride)
    return {
        "windows": windows,
        "gflop": 2 * sum(work.values()) / 1e9,
        "seconds": times["median"],
        "p20": times["p20"],
        "p80": times["p80"],
        "stages": {
            name: {"seconds": spent} | ({"gflop": 2 * work[name] / 1e9} if name in work else {})
            for name, spent in of_stages.items()
        },
    }


def _against(entry: dict, ceiling: float) -> None:
    """Rates, and their fractions of the ceiling, for an entry and its stages."""
    for part in (entry, *entry["stages"].values()):
        if "gflop" in part and part["seconds"]:
            part["gflops"] = part["gflop"] / part["seconds"]
            part["fraction"] = 1e9 * part["gflops"] / ceiling


def _trace(run: Callable[[], object], device: torch.device, path: Path) -> None:
    """Write a Chrome trace of one run, in which stages have their names."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profiler, regions.collect_timings(device):
        run()
        synchronize(device)
    with atomic_write(path) as part:
        profiler.export_chrome_trace(str(part))
