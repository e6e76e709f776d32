"""Where the time of a dense evaluation goes: by scale and by layer, beside the machine's measured peaks."""

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from overfeat.classification.predict import classify
from overfeat.data.arrays import ImageLike
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.context import half_size
from overfeat.dense.evaluate import max_scores
from overfeat.dense.grid import Grid, grids
from overfeat.dense.inputs import one_image
from overfeat.dense.scales import add_margin
from overfeat.detection.predict import detect
from overfeat.files import atomic_write
from overfeat.localization.predict import localize
from overfeat.models.geometry import Stride
from overfeat.models.net import Net, Regressor
from overfeat.models.wrappers import as_net
from overfeat.ops.backends.winograd import count_saved
from overfeat.profiling import REPEATS
from overfeat.profiling.measure import machine, seconds, synchronize
from overfeat.profiling.peaks import measured_peaks
from overfeat.profiling.table import OTHER
from overfeat.regions import REMAINING_FC, collect_timings


def profile(
    net: Net, image: ImageLike, *, scales: Scales = None, flip: bool | None = None, stride: Stride | None = None,
    memory_limit: int = MEMORY_LIMIT, regressor: Regressor | None = None, repeats: int = REPEATS,
    trace: Path | None = None,
) -> dict:  # fmt: skip
    """Times of the evaluation of an image: of each scale and flip alone, then of the whole.

    Args:
        net: A classifier or detector.
        image: A path, a PIL image, an array or a tensor, see `each_image`.
        scales, flip, stride, memory_limit: See `DenseConfig`.
        regressor: With one, the whole is `localize`, or `detect` for a net with background, including the boxes.
        repeats: Measurements, of which the medians count.
        trace: Where a Chrome trace of one whole evaluation is written.

    Returns:
        {"machine", "measured_peaks", "image", "net", "dtype", "stride", "grids": [{"scaled", "flipped", ...}],
        "whole": {...}}. The last two have "windows", "gflop" (computed; Winograd convolutions by their own
        multiplications, boxes not counted), "seconds" (median; "p20", "p80"), "gflops", "fraction" of the better
        measured peak of GEMM and convolution, and "regions": {name: {"seconds" (median), and where it multiplies
        "gflop", "gflops", "fraction"}}. Peaks are measured before and after; the better counts.
    """
    config = DenseConfig(scales, flip, stride, memory_limit)
    net = as_net(net)
    return _profile(net, one_image(net, image), config, regressor, repeats, trace)


def _profile(
    net: Net, image: Tensor, config: DenseConfig, regressor: Regressor | None, repeats: int, trace: Path | None
) -> dict:
    """`profile` of an image [C, H, W]."""
    dtype, device = net.dtype, net.device
    own_grids = grids(net, (image.shape[1], image.shape[2]), config)
    before = measured_peaks(device, dtype)
    entries = [
        _timed(partial(max_scores, net, image[None], [grid], config.memory_limit), net, [grid], repeats)
        for grid in tqdm(own_grids, "timing", unit="scale", disable=None, leave=False, file=sys.stderr)
    ]
    whole: Callable[[], object] = partial(classify, net, image, **vars(config))
    if regressor is not None:
        predict: Callable[..., object] = detect if net.background else localize
        whole = partial(predict, net, regressor, image, **vars(config))
    total = _timed(whole, net, own_grids, repeats)
    if trace is not None:
        _trace(whole, device, trace)
    after = measured_peaks(device, dtype)
    peaks = {name: max(rate, after[name]) for name, rate in before.items()}
    for entry in (*entries, total):
        _add_rates(entry, max(peaks["gemm"], peaks["convolution"]))
    for entry, grid in zip(entries, own_grids, strict=True):
        entry |= {"scaled": list(grid.scaled), "flipped": grid.flipped}
    gflops = {name: peaks[name] / 1e9 for name in ("gemm", "convolution")}
    return {
        "machine": machine(), "measured_peaks": {"gflops": gflops, "copy_gbs": peaks["copy"] / 1e9},
        "image": list(image.shape[1:]), "net": net.geometry.name, "dtype": str(dtype).removeprefix("torch."),
        "stride": own_grids[0].stride, "grids": entries, "whole": total,
    }  # fmt: skip


def evaluation_macs(net: Net, grids: Sequence[Grid]) -> tuple[dict[str, int], int]:
    """MACs of the classes at all positions of these grids, by region, and the number of positions.

    Context, at half the resolution, is counted. Boxes are not.
    """
    macs: dict[str, int] = {}
    windows = 0
    for grid in grids:
        of_grid, positions = net.region_macs(grid.padded, grid.stride)
        passes, half = [of_grid], half_size(net, grid.scaled, grid.margin)
        if half is not None:
            of_half, _ = net.region_macs(add_margin(half, grid.margin), grid.stride)
            passes.append({name: count for name, count in of_half.items() if name != REMAINING_FC})
        for of_pass in passes:
            for name, count in of_pass.items():
                macs[name] = macs.get(name, 0) + count
        windows += positions
    return macs, windows


def _timed(run: Callable[[], object], net: Net, grids: Sequence[Grid], repeats: int) -> dict:
    """Median times of the run and its regions, and its work."""
    by_run: list[dict[str, float]] = []
    saved: dict[str, int] = {}

    def run_timed() -> None:
        with count_saved() as counts, collect_timings(net.device, counts) as timer:
            run()
            synchronize(net.device)
        by_run.append(timer.seconds())
        saved.update(timer.counted)

    times = seconds(run_timed, repeats)
    by_run = by_run[-repeats:]
    elapsed = {name: statistics.median(t.get(name, 0.0) for t in by_run) for name in by_run[-1]}
    elapsed[OTHER] = max(0.0, times["median"] - sum(elapsed.values()))
    macs, windows = evaluation_macs(net, grids)
    macs = {name: count - saved.get(name, 0) for name, count in macs.items()}
    regions = {name: {"seconds": t} for name, t in elapsed.items()}
    for name in regions.keys() & macs:
        regions[name]["gflop"] = 2 * macs[name] / 1e9
    totals = {"windows": windows, "gflop": 2 * sum(macs.values()) / 1e9, "seconds": times["median"]}
    return {**totals, "p20": times["p20"], "p80": times["p80"], "regions": regions}


def _add_rates(entry: dict, peak: float) -> None:
    """Add rates, and their fractions of the measured peak, to an entry and its regions."""
    for timed in (entry, *entry["regions"].values()):
        if "gflop" in timed and timed["seconds"]:
            timed["gflops"] = timed["gflop"] / timed["seconds"]
            timed["fraction"] = 1e9 * timed["gflops"] / peak


def _trace(run: Callable[[], object], device: torch.device, path: Path) -> None:
    """Write a Chrome trace of one run, with the regions' names."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profiler, collect_timings(device):
        run()
        synchronize(device)
    with atomic_write(path) as temporary:
        profiler.export_chrome_trace(str(temporary))
