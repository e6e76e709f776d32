"""One run of the suite: the implementations of every case, each checked before it is timed, timed in turns."""

import importlib.metadata
import json
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.common import measure_peak_memory, measured_state
from bench.suite.timing import ColdTimer, arithmetic, dtype_name, torch_dtype
from bench.tolerance import Tensors, assert_matches
from overfeat.errors import InputError
from overfeat.fast import status
from overfeat.files import atomic_write
from overfeat.profiling.measure import machine, summary, synchronize
from overfeat.profiling.peaks import measured_peaks

try:
    from overfeat.ops.backends.winograd import count_saved
except ImportError:  # `bench --compare` with a commit before it

    def count_saved() -> AbstractContextManager[list[int]]:
        return nullcontext([])


MAX_REPEATS = 15
SINGLE_RUN_SECONDS = 10.0  # an implementation that takes longer is timed once
PACKAGES = ("numpy", "numba", "monai", "ensemble-boxes", "onnx", "onnxruntime", "openvino")


class DeviceLost(InputError):
    """The device no longer responds, as after an illegal address: nothing else can run in this process."""


@dataclass(frozen=True)
class Implementation:
    """One implementation of a case.

    Args:
        run: computes the result.
        baseline: not part of the library; the library's rows report their speed-up over it.
        compare_with: name of the implementation whose result this one must equal; None for the case's reference,
            "" where results differ by design.
        warmup: runs before timing; peak memory is measured in the last of them.
        cold: nothing is cached between runs, so a first run that takes long is also the timed one.
        remark: note for the report, or a function that makes it from the result.
        flop: counts its floating-point operations, where they are not those of the case.
        portion: of the work that `run` does; times are divided by it.
        result: makes of the result what is compared; it is not timed.
        forced: a launch that the library did not choose, so that it need not fit the chip.
    """

    run: Callable[[], Tensors]
    baseline: bool = False
    compare_with: str | None = None
    warmup: int = 2
    cold: bool = False
    remark: str | Callable[[Tensors], str] = ""
    flop: Callable[[], float] | None = None
    portion: float = 1.0
    result: Callable[[Tensors], Tensors] | None = None
    forced: bool = False


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Args:
        reference: name of the implementation whose result is correct.
        inputs: creates what all implementations take, so that this is not timed.
        dtype: of the arithmetic; "tf32": float32 with 10-bit mantissas in GEMMs and convolutions.
        flop: floating-point operations of direct convolutions and matmuls.
        bytes_moved: lower bound: weights, inputs and outputs once each.
        images: images per call, for a rate in images/s.
        on_device: a GPU's own time counts, from a cold L2 cache, without the host's ("wall" of the row has both).
    """

    suite: str
    op: str
    shape: str
    reference: str
    implementations: dict[str, Implementation]
    inputs: Callable[[], object]
    dtype: torch.dtype | str = torch.float32
    flop: float = 0.0
    bytes_moved: float = 0.0
    images: int = 0
    on_device: bool = False

    def reference_for(self, name: str) -> str:
        """The implementation whose result that of `name` must equal; `name` itself if there is none."""
        other = self.implementations[name].compare_with
        return self.reference if other is None else other or name

    def flop_of(self, name: str) -> float:
        """Floating-point operations of an implementation."""
        count = self.implementations[name].flop
        return count() if count else self.flop

    @property
    def title(self) -> str:
        return f"{self.suite}, {self.op}, {self.shape}, {dtype_name(self.dtype)}"


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a straight line fitted to the logarithms."""
    x, y = ([math.log(value) for value in numbers] for numbers in (sizes, values))
    return statistics.linear_regression(x, y).slope


class Run:
    """Rows of a run, saved after every case, so that an interrupted run keeps them.

    Args:
        out: file of results, or None.
        selected: names of implementations to measure; None for all.
        command: the command line, for the results.
        quick: time each implementation for about 0.25 s instead of 3 s, and at least once instead of three times.
        peaks: measure the device's peaks and report each row's fraction of them.
        resume: keep the rows in `out` if they are of these sources and this device, and do not run their cases again.
    """

    def __init__(
        self, out: Path | None, device: torch.device, selected: Collection[str] | None, command: str,
        quick: bool = False, peaks: bool = True, *, resume: bool = False,
    ):  # fmt: skip
        self.out, self.device, self.selected, self.quick, self.peaks = out, device, selected, quick, peaks
        self.time_budget, self.min_repeats = (0.25, 1) if quick else (3.0, 3)
        self.start = time.monotonic()
        self.results: dict = {
            "command": command, "machine": machine(), "packages": _versions(), "device": str(device),
            "overfeat.fast": [str(row) for row in status()], "measured": measured_state(device), "peaks": {},
            "rows": [], "growth": [], "skipped": [], "failed": [], "cases": {}, "running": None, "complete": False,
        }  # fmt: skip
        self._cold = ColdTimer(device) if device.type == "cuda" else None
        if resume:
            self._resume()
        self._earlier = frozenset(self.results["cases"])

    @property
    def rows(self) -> list[dict]:
        return self.results["rows"]

    @property
    def failed(self) -> list[dict]:
        """{"what", "why"} of every implementation of the library whose result was wrong or that raised."""
        return self.results["failed"]

    def _resume(self) -> None:
        """Keep earlier results of the same sources and device; a case that ended its process counts as failed."""
        earlier = json.loads(self.out.read_text()) if self.out and self.out.is_file() else {}
        if earlier.get("measured") != self.results["measured"]:
            return
        kept = ("peaks", "rows", "growth", "skipped", "failed", "cases")
        self.results |= {key: earlier[key] for key in kept}
        if title := earlier["running"]:
            self._fail(title, "the process ended while it ran")
            self.results["cases"][title] = None

    def skip(self, what: str, why: str | Exception) -> None:
        """Record what is not measured, and the reason."""
        if isinstance(why, Exception):
            first = (str(why).strip().splitlines() or [type(why).__name__])[0]
            why = f"its result differs: {first}" if isinstance(why, AssertionError) else first
        entry = {"what": what, "why": why}
        if entry not in self.results["skipped"]:
            self.results["skipped"].append(entry)
            print(f"skipped: {what}: {why}", file=sys.stderr, flush=True)

    def measure(self, case: Case) -> None:
        """Time the implementations of a case whose results are correct."""
        implementations = {
            name: each for name, each in case.implementations.items() if self.selected is None or name in self.selected
        }
        if not implementations or case.title in self._earlier:
            return
        start, self.results["running"] = time.monotonic(), case.title
        self.save()
        try:
            with arithmetic(case.dtype):
                self._measure(case, implementations)
            self.results["cases"][case.title] = round(time.monotonic() - start, 1)
        except InputError:
            raise
        except Exception as error:  # of the case itself, as where its inputs find no room
            traceback.print_exc()
            self._fail(case.title, f"{type(error).__name__}: {error}"[:2000])
            self.results["cases"][case.title] = None
        finally:  # not where the process is killed
            self.results["running"] = None
            self.save()

    def _measure(self, case: Case, implementations: dict[str, Implementation]) -> None:
        torch.compiler.reset()  # it compiles a function for a limited number of shapes
        dtype = dtype_name(case.dtype)
        if self.peaks and dtype not in self.results["peaks"]:
            self.measure_peaks(dtype)
        case.inputs()
        rows = {
            name: {
                "suite": case.suite, "op": case.op, "shape": case.shape, "dtype": dtype, "backend": name,
                "baseline": implementations[name].baseline, "flop": case.flop_of(name), "bytes_moved": case.bytes_moved,
                "images": case.images, **first_run,
            }
            for name, first_run in self._check(case, implementations).items()
        }  # fmt: skip
        self._time_in_turns(
            {name: implementations[name] for name in rows}, rows, {name: f"{case.title}, {name}" for name in rows},
            self._cold if case.on_device else None,
        )  # fmt: skip
        baselines = {name: row["median"] for name, row in rows.items() if row["baseline"]}
        for name, row in rows.items():
            row["speedups"] = {other: median / row["median"] for other, median in baselines.items() if other != name}
            self.rows.append(row)
        self._update_rates()
        for row in rows.values():
            _print_row(row)

    def measure_growth(self, what: str, unit: str, points: Sequence[tuple[float, Callable[[], object]]]) -> None:
        """Time and peak memory at each size, and their exponents: slopes of lines fitted to the logarithms."""
        if any((entry["what"], entry["unit"]) == (what, unit) for entry in self.results["growth"]):
            return  # of the run that is resumed
        rows = []
        for size, run in points:
            implementation, title = Implementation(run, warmup=3), f"{what}, {unit} {size:g}"
            try:
                row = {"size": size, **self._first_run(implementation)[0]}
            except Exception as error:
                self._record_failure(title, error, implementation)
                continue
            timed = {"": row}
            self._time_in_turns({"": implementation}, timed, {"": title})
            rows += [{key: row[key] for key in row if key != "remark"} for row in timed.values()]
        if len(rows) < 2:
            return
        sizes = [row["size"] for row in rows]
        entry = {"what": what, "unit": unit, "points": rows}
        entry["time exponent"] = exponent(sizes, [row["median"] for row in rows])
        if all(row["peak_bytes"] for row in rows):
            entry["memory exponent"] = exponent(sizes, [row["peak_bytes"] for row in rows])
        self.results["growth"].append(entry)
        memory = f", memory exponent {entry['memory exponent']:.2f}" if "memory exponent" in entry else ""
        print(f"{what}, by {unit}: time exponent {entry['time exponent']:.2f}{memory}", flush=True)
        self.save()

    def finish(self) -> None:
        """Measure the peaks once more unless the run is quick, and mark the results complete."""
        for dtype in list(self.results["peaks"]) if not self.quick else ():
            self.measure_peaks(dtype)
        self._update_rates()
        self.results |= {"complete": True, "seconds": time.monotonic() - self.start}
        self.save()

    def save(self) -> None:
        if self.out:
            with atomic_write(self.out) as part:
                part.write_text(json.dumps(self.results, indent=1) + "\n")

    def _check(self, case: Case, selected: dict[str, Implementation]) -> dict[str, dict]:
        """Compare each selected result with its reference; give the first-run measurements of the correct ones."""
        results: dict[str, Tensors] = {}
        correct: dict[str, dict] = {}
        references = {case.reference_for(name) for name in selected}
        for name in dict.fromkeys([*(n for n in case.implementations if n in references), *selected]):
            try:
                first_run, results[name] = self._first_run(case.implementations[name])
                reference = case.reference_for(name)
                if reference not in results:
                    raise InputError(f"{reference}, its reference, has no result")
                if reference != name:
                    assert_matches(results[name], results[reference], case.dtype)
            except Exception as error:
                self._record_failure(f"{case.title}, {name}", error, case.implementations[name])
            else:
                if name in selected:
                    correct[name] = first_run
        return correct

    def _first_run(self, implementation: Implementation) -> tuple[dict, Tensors]:
        """Warm up; {"seconds", "peak_bytes", "saved_flop", "remark"} of the last warm-up run, and its result."""
        for _ in range(0 if implementation.cold else implementation.warmup - 1):
            implementation.run()
        synchronize(self.device)
        start = time.perf_counter()
        with count_saved() as saved:
            result, peak = measure_peak_memory(implementation.run, self.device)
        elapsed = time.perf_counter() - start
        remark = implementation.remark(result) if callable(implementation.remark) else implementation.remark
        result = implementation.result(result) if implementation.result else result
        return {"seconds": elapsed, "peak_bytes": peak, "saved_flop": 2 * sum(saved), "remark": remark}, result

    def _time_in_turns(
        self, implementations: dict[str, Implementation], rows: dict[str, dict], titles: dict[str, str],
        cold: ColdTimer | None = None,
    ) -> None:  # fmt: skip
        """Time the implementations in round-robin order and add the summary of the times to each row.

        cold: the timer of a GPU alone, whose times count; the wall's are added as "wall".
        """
        elapsed: dict[str, list[float]] = {name: [] for name in implementations}
        alone: dict[str, list[float]] = {name: [] for name in implementations}
        first = {name: row.pop("seconds") for name, row in rows.items()}
        repeats = {}
        for name, implementation in implementations.items():
            once = first[name]
            needed = math.ceil(self.time_budget / max(once, 1e-9))
            repeats[name] = 1 if once > SINGLE_RUN_SECONDS else max(self.min_repeats, min(MAX_REPEATS, needed))
            if once > SINGLE_RUN_SECONDS and implementation.cold and not cold:
                elapsed[name].append(once)
        while pending := [name for name in rows if len(elapsed[name]) < repeats[name]]:
            for name in pending:
                start = time.perf_counter()
                try:
                    implementations[name].run()
                    synchronize(self.device)
                    elapsed[name].append(time.perf_counter() - start)
                    if cold:
                        alone[name].append(cold(implementations[name].run, first[name]))
                except Exception as error:
                    self._record_failure(titles[name], error, implementations[name])
                    del rows[name]
        for name, row in rows.items():
            times = alone if cold else elapsed
            row |= summary([seconds / implementations[name].portion for seconds in times[name]])
            if cold:
                row["wall"] = statistics.median(elapsed[name])

    def _fail(self, what: str, why: str) -> None:
        self.failed.append({"what": what, "why": why})
        print(f"FAILED: {what}: {why.splitlines()[0]}", file=sys.stderr, flush=True)

    def _record_failure(self, what: str, error: Exception, implementation: Implementation) -> None:
        """Skip what failed, a failure if the library is to blame; raise DeviceLost if the device is gone."""
        self.skip(what, error)
        too_small = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        too_small |= implementation.forced and type(error).__name__ == "OutOfResources"
        if not (implementation.baseline or too_small or isinstance(error, (ImportError, InputError))):
            self._fail(what, f"{type(error).__name__}: {error}"[:2000])
        try:
            synchronize(self.device)
        except RuntimeError as lost:
            if title := self.results["running"]:  # a resumed run goes on with the next case
                self.results["cases"][title] = None
            self.save()
            raise DeviceLost(f"the device no longer responds after {what}; earlier results are kept") from lost

    def _update_rates(self) -> None:
        """Rates of all rows, and their fraction of the highest peak measured so far."""
        for row in self.rows:
            peaks, median = self.results["peaks"].get(row["dtype"]), row["median"]
            if row["images"]:
                row["images_per_s"] = row["images"] / row.get("wall", median)
            if row["flop"]:
                row["operations"] = row["flop"] - row["saved_flop"]
                row["gflops"] = row["operations"] / median / 1e9
            if row["flop"] and peaks:
                row["peak_gflops"] = max(peaks["gemm"], peaks["convolution"]) / 1e9
                row["fraction"] = row["gflops"] / row["peak_gflops"]
            if row["bytes_moved"]:
                row["gbs"] = row["bytes_moved"] / median / 1e9
            if row["bytes_moved"] and peaks:
                row["peak_gbs"] = peaks["copy"] / 1e9

    def measure_peaks(self, dtype: str) -> None:
        """Measure the device's peaks; the highest of the run is kept."""
        with arithmetic(dtype):
            rates = measured_peaks(self.device, torch_dtype(dtype))
        highest = self.results["peaks"].setdefault(dtype, rates)
        highest |= {name: max(rate, highest[name]) for name, rate in rates.items()}
        print(
            f"measured peaks, {dtype}: GEMM {rates['gemm'] / 1e9:.0f} GFLOP/s, "
            f"convolution {rates['convolution'] / 1e9:.0f} GFLOP/s, copy {rates['copy'] / 1e9:.1f} GB/s", flush=True
        )  # fmt: skip


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _print_row(row: dict) -> None:
    rate = f"{row['gflops']:8.1f} GFLOP/s" if "gflops" in row else ""
    fraction = f"{100 * row['fraction']:4.0f} %" if "fraction" in row else ""
    speedups = ", ".join(f"{ratio:.3g}x {name}" for name, ratio in row["speedups"].items())
    title = f"{row['suite']}: {row['op']}, {row['shape']}, {row['dtype']}"
    once = "(one run)" if row["repeats"] == 1 else ""
    rates = f"{rate} {fraction}"
    print(f"{title:64} {row['backend']:20} {1000 * row['median']:10.2f} ms {once:9} {rates:24} {speedups}", flush=True)
