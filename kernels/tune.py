"""Measure tiles and variants on a GPU, for the choice of launches there: see `tune`. Nothing calls it by itself.

Peaks come first, since efficiencies are relative to them; then tiles; then variants with the best tiles. What was
measured is stored after each of them. A result that differs from the direct variant's is reported, and is not timed.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError
from triton.testing import do_bench

from overfeat.kernels import cost_model, launch, skip_classifier, skip_classifier_backward, tuned
from overfeat.kernels.cost_model import VARIANTS, Constants, unsupported_reason
from overfeat.kernels.plan import Gemm, Tile, arithmetic
from overfeat.kernels.problem import Problem, Shape

Timer = Callable[[Callable[[], object]], float]  # the seconds of a call

SIX_SCALES = ((17, 17), (20, 23), (23, 29), (29, 35), (32, 38), (35, 44))  # the accurate net's last maps
KINDS = ((torch.bfloat16, "high"), (torch.float32, "high"))  # measured: dtype, float32 precision
MAX_ERROR = 0.02  # RMS, relative: rounding stays below, wrong code does not
NEVER = 1e-9  # the efficiency of what does not run or is wrong
REPEAT_MS = 60  # of a measurement


@dataclass(frozen=True)
class Layer:
    """What is measured: the classifier's first layer, the accurate net's by default, on several lists of maps.

    Attributes:
        channels, outputs, kernel, pool: of the layer.
        tiled: lists of (images, height, width) that choose tiles: one for each maximum number of rows.
        others: more lists, for the efficiency of variants.
        peaks: the side of the GEMMs and the bytes of the copy whose rates are peaks.
    """

    channels: int = 1024
    outputs: int = 4096
    kernel: int = 5
    pool: int = 3
    tiled: tuple[tuple[Shape, ...], ...] = (
        tuple((8, *side) for side in SIX_SCALES), ((1, *SIX_SCALES[0]),), ((1, *SIX_SCALES[1]),),
    )  # fmt: skip
    others: tuple[tuple[Shape, ...], ...] = (
        tuple((1, *side) for side in SIX_SCALES), tuple((2, *side) for side in SIX_SCALES), ((1, *SIX_SCALES[3]),),
    )  # fmt: skip
    peaks: tuple[int, int] = (8192, 1 << 30)


def tune(
    device: torch.device, budget_s: float = 150.0, progress: Callable[[str], object] = print,
    *, layer: Layer | None = None, kinds: Sequence[tuple[torch.dtype, str]] = KINDS, timer: Timer | None = None,
) -> Path:  # fmt: skip
    """Measure on a device, and store what `launch.choose` uses there from now on.

    No measurement starts after `budget_s` seconds; what was not measured keeps its defaults.

    Args:
        device: a GPU; under Triton's interpreter the CPU, for tests.
        budget_s: seconds.
        progress: is called with a line for each measurement.
        layer, kinds, timer: what is measured, in which dtypes and precisions, and how.

    Returns:
        The file that was written. Raises WriteError.
    """
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    run = _Tuning(device, time.monotonic() + budget_s, progress, timer or _cold_seconds, layer or Layer())
    with torch.no_grad(), torch.cuda.device_of(torch.empty(0, device=device)):
        run.peaks()
        for dtype, precision in kinds:
            with _float32_precision(precision):
                run.tiles(dtype)
                run.variants(dtype)
    return tuned.path_of(device)


def candidates(tile: Tile) -> list[Tile]:
    """Tiles that may be faster than one of launch.TILES; not all fit all devices."""
    if tile.m <= 64:
        return [
            replace(tile, n=64),
            replace(tile, k=tile.k // 2, programs=tile.programs + 1),
            replace(tile, programs=1),
        ]
    sides = (128, 256, 8, 3), (128, 256, 8, 4), (256, 128, 8, 3), (128, 128, 8, 4), (128, 128, 4, 4)
    return [replace(tile, m=m, n=n, warps=warps, stages=stages) for m, n, warps, stages in sides]


@dataclass
class _Tuning:
    """A run: how to measure, and what was measured until now."""

    device: torch.device
    deadline: float
    progress: Callable[[str], object]
    timer: Timer
    layer: Layer

    def __post_init__(self) -> None:
        self.capability, known = launch.capability_and_constants(self.device)
        self.constants = cost_model.defaults(self.capability, known.multiprocessors)  # no earlier measurement

    def peaks(self) -> None:
        """The rates of large GEMMs and of a copy, and the time of a small kernel among others."""
        (side, count), flops = self.layer.peaks, {}
        for kind, dtype, precision in (("16 bit", *KINDS[0]), ("tf32", *KINDS[1]), ("ieee", torch.float32, "highest")):
            a, b = (torch.randn(side, side, dtype=dtype, device=self.device) for _ in range(2))
            with _float32_precision(precision):
                flops[kind] = 2 * side**3 / self.timer(partial(torch.mm, a, b))
        source, one = torch.ones(count, dtype=torch.uint8, device=self.device), torch.ones(1, device=self.device)
        bandwidth = 2 * count / self.timer(partial(torch.empty_like(source).copy_, source))
        gap = self.timer(lambda: [one.add_(1) for _ in range(100)]) / 100
        self._store(replace(self.constants, flops=flops, bandwidth=bandwidth, launch=gap))
        rates = ", ".join(f"{kind} {rate / 1e12:.3g} TFLOP/s" for kind, rate in flops.items())
        self.progress(f"peaks: {rates}, copy {bandwidth / 1e12:.3g} TB/s, launch {1e6 * gap:.1f} us")

    def tiles(self, dtype: torch.dtype) -> None:
        """The fastest tile of the direct variant for each maximum number of rows."""
        for shapes in self.layer.tiled:
            case = _Case("forward", self.layer, shapes, dtype, self.device)
            with launch.override(variant="direct"):
                plan = launch.choose("forward", case.problem)
            tiles = dict.fromkeys([plan.tile, *candidates(plan.tile)])
            times = {tile: self._seconds(case, variant="direct", tile=tile, pool=plan.pool) for tile in tiles}
            timed = {tile: elapsed for tile, elapsed in times.items() if elapsed is not None}
            if min(timed.values(), default=math.inf) < math.inf:
                kind = arithmetic(dtype, plan.precision) + (", fused" if plan.pool == "fused" else "")
                table = self.constants.tiles.get(kind) or launch.tiles(kind, self.capability)
                entry = next(rows for rows, _ in table if case.problem.positions <= rows)
                best = min(timed, key=timed.__getitem__)
                table = [(rows, best if rows == entry else tile) for rows, tile in table]
                self._store(replace(self.constants, tiles={**self.constants.tiles, kind: table}))

    def variants(self, dtype: torch.dtype) -> None:
        """The efficiency of every variant on every list of maps."""
        gemms: tuple[Gemm, ...] = ("forward", "weight")
        for gemm, shapes in itertools.product(gemms, (*self.layer.tiled, *self.layer.others)):
            case = _Case(gemm, self.layer, shapes, dtype, self.device)
            for variant in VARIANTS[gemm]:
                if unsupported_reason(variant, gemm, case.problem, self.capability):
                    continue
                elapsed = self._seconds(case, variant=variant)
                if elapsed is None:
                    continue
                with launch.override(variant=variant):
                    plan = launch.choose(gemm, case.problem)
                key = gemm, arithmetic(dtype, plan.precision), variant
                fraction = cost_model.roofline(gemm, case.problem, plan, self.constants) / elapsed
                known = {**self.constants.efficiency.get(key, {}), case.problem.positions: max(fraction, NEVER)}
                self._store(replace(self.constants, efficiency={**self.constants.efficiency, key: known}))

    def _seconds(self, case: "_Case", **options: Any) -> float | None:
        """The time of a case with launch options; infinite if it does not run or is wrong; None if no time is left."""
        if time.monotonic() > self.deadline:
            return None
        name = ", ".join([case.name, *(str(value) for value in options.values())])
        try:
            with launch.override(variant="direct"):
                expected = case.expected()
            with launch.override(**options):
                error = ((case.run().float() - expected).norm() / expected.norm()).item()
                elapsed = self.timer(case.run) if error <= MAX_ERROR else math.inf
        except (OutOfResources, PTXASError, torch.OutOfMemoryError) as failure:
            self.progress(f"{name}: does not run, {type(failure).__name__}")
            return math.inf
        self.progress(f"{name}: " + (f"{1e3 * elapsed:.3f} ms" if elapsed < math.inf else f"WRONG, error {error:.2g}"))
        return elapsed

    def _store(self, constants: Constants) -> None:
        self.constants = constants
        tuned.write(self.device, constants)
        launch.clear_cache()


class _Case:
    """A GEMM on operands: random, since zeros need less power."""

    def __init__(
        self, gemm: Gemm, layer: Layer, shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device
    ):  # fmt: skip
        def random(*shape: int) -> Tensor:
            values = torch.randn(shape, dtype=dtype, device=device)
            return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

        torch.manual_seed(0)
        self.gemm, self.pool, self._expected = gemm, layer.pool, torch.empty(0)
        self.maps = [random(n, layer.channels, h, w) for n, h, w in shapes]
        self.weight = random(layer.outputs, layer.channels, layer.kernel, layer.kernel)
        self.weight *= (layer.channels * layer.kernel**2) ** -0.5
        self.bias = random(layer.outputs)
        self.problem = Problem.of(self.maps, self.weight, layer.pool, layer.pool)
        self.grad = random(self.problem.positions, layer.outputs)
        self.name = f"{gemm}, {self.problem.positions} positions, {str(dtype).removeprefix('torch.')}"

    def run(self) -> Tensor:
        if self.gemm == "forward":
            return skip_classifier.forward(self.maps, self.weight, self.bias, self.pool, True, self.pool)
        return skip_classifier_backward.backward(
            self.grad, self.maps, self.weight, None, self.pool, self.pool, False, True
        )[0]

    def expected(self) -> Tensor:
        """The result of the first call, in float32."""
        if not len(self._expected):
            self._expected = self.run().float()
        return self._expected


def _cold_seconds(run: Callable[[], object]) -> float:
    """The median time of a call on a GPU; the L2 cache is emptied before each."""
    return do_bench(run, warmup=10, rep=REPEAT_MS, return_mode="median") / 1e3


@contextmanager
def _float32_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
