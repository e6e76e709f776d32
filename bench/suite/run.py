"""One run of the suite: every case by every way that the machine has, in turns, each checked before it is timed."""

import importlib.metadata
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.common import peak_beyond
from bench.tolerance import Tensors, assert_matches
from overfeat.errors import InputError
from overfeat.fast import status
from overfeat.files import atomic_write
from overfeat.profiling.measure import machine, summary, synchronize
from overfeat.profiling.peaks import ceilings

MOST = 15  # repeats
LONG = 10.0  # seconds: what takes longer is timed once
PACKAGES = ("numpy", "numba", "monai", "ensemble-boxes")


@dataclass(frozen=True)
class Way:
    """One way to do what a case asks.

    baseline: not ours, so that ratios are told to it. like: the way whose result its own is to equal; None: the
    case's reference; "": no other's, by design. warm: runs before it is timed, until all is prepared; the last of
    them tells its memory. cold: nothing is prepared, so that a first run that takes long counts. remark: a word
    about it, which may be made of the result.
    """

    run: Callable[[], Tensors]
    baseline: bool = False
    like: str | None = None
    warm: int = 2
    cold: bool = False
    remark: str | Callable[[Tensors], str] = ""


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    reference: the way whose result is right; inputs: makes what all ways take, so that it is not timed; flop: of
    plain sums; moved: bytes, at least: weights, and what goes in and out; images: a second are told.
    """

    suite: str
    op: str
    shape: str
    reference: str
    ways: dict[str, Way]
    inputs: Callable[[], object]
    dtype: torch.dtype = torch.float32
    flop: float = 0.0
    moved: float = 0.0
    images: int = 0

    def like(self, name: str) -> str:
        """The way whose result that of this one is to equal; its own name for none."""
        like = self.ways[name].like
        return self.reference if like is None else like or name


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a line through the logarithms."""
    x, y = ([math.log(value) for value in numbers] for numbers in (sizes, values))
    return statistics.linear_regression(x, y).slope


class Run:
    """Rows of a run, written after every case, so that an interrupted one keeps what it has.

    out: the file of results, or None. wanted: names of ways; None: all. quick: each way is timed for a quarter of a
    second in place of three, about, and once at least in place of three times.
    """

    def __init__(
        self, out: Path | None, device: torch.device, wanted: Collection[str] | None, command: str, quick: bool = False
    ):
        self.out, self.device, self.wanted, self.quick = out, device, wanted, quick
        self.spent, self.least = (0.25, 1) if quick else (3.0, 3)
        self.start = time.monotonic()
        self.results: dict = {
            "command": command, "machine": machine(), "packages": _versions(), "device": str(device),
            "overfeat.fast": [str(row) for row in status()], "ceilings": {}, "rows": [], "growth": [],
            "left out": [], "complete": False,
        }  # fmt: skip

    @property
    def rows(self) -> list[dict]:
        return self.results["rows"]

    def leave_out(self, what: str, why: str | Exception) -> None:
        """Note what is not measured."""
        if isinstance(why, Exception):
            first = (str(why).strip().splitlines() or [type(why).__name__])[0]
            why = f"its result differs: {first}" if isinstance(why, AssertionError) else first
        entry = {"what": what, "why": why}
        if entry not in self.results["left out"]:
            self.results["left out"].append(entry)
            print(f"left out: {what}: {why}", file=sys.stderr, flush=True)

    def measure(self, case: Case) -> None:
        """Time a case by every way whose result is right."""
        ways = {name: way for name, way in case.ways.items() if self.wanted is None or name in self.wanted}
        if not ways:
            return
        torch.compiler.reset()  # it compiles a function for so many shapes only
        dtype = str(case.dtype).removeprefix("torch.")
        if dtype not in self.results["ceilings"]:
            self._ceiling(dtype)
        case.inputs()
        titles = {name: f"{case.suite}, {case.op}, {case.shape}, {dtype}, {name}" for name in case.ways}
        results: dict[str, Tensors] = {}
        rows: dict[str, dict] = {}
        compared = [name for name in case.ways if name in {case.like(name) for name in ways}]
        for name in dict.fromkeys([*compared, *ways]):
            try:
                found, results[name] = self._first(case.ways[name])
                like = case.like(name)
                if like not in results:
                    raise InputError(f"{like}, which it is compared with, has no result")
                if like != name:
                    assert_matches(results[name], results[like], case.dtype)
            except Exception as error:
                self._survive(titles[name], error)
            else:
                if name in ways:
                    rows[name] = {
                        "suite": case.suite, "op": case.op, "shape": case.shape, "dtype": dtype, "backend": name,
                        "baseline": ways[name].baseline, "flop": case.flop, "moved": case.moved,
                        "images": case.images, **found,
                    }  # fmt: skip
        del results
        self._in_turns({name: ways[name] for name in rows}, rows, titles)
        baselines = {name: row["median"] for name, row in rows.items() if row["baseline"]}
        for name, row in rows.items():
            row["times"] = {other: median / row["median"] for other, median in baselines.items() if other != name}
            self.rows.append(row)
        self._rates()
        for row in rows.values():
            _tell(row)
        self.save()

    def grow(self, what: str, unit: str, points: Sequence[tuple[float, Callable[[], object]]]) -> None:
        """Time and peak memory at each size, and the exponents of lines through their logarithms."""
        rows = []
        for size, run in points:
            way = Way(run, warm=3)
            try:
                row = {"size": size, **self._first(way)[0]}
            except Exception as error:
                self._survive(f"{what}, {unit} {size:g}", error)
                continue
            found = {"": row}
            self._in_turns({"": way}, found, {"": f"{what}, {unit} {size:g}"})
            rows += [{key: row[key] for key in row if key != "remark"} for row in found.values()]
        if len(rows) < 2:
            return
        sizes = [row["size"] for row in rows]
        entry = {"what": what, "unit": unit, "points": rows}
        entry["time exponent"] = exponent(sizes, [row["median"] for row in rows])
        if all(row["peak_bytes"] for row in rows):
            entry["memory exponent"] = exponent(sizes, [row["peak_bytes"] for row in rows])
        self.results["growth"].append(entry)
        memory = f", memory with exponent {entry['memory exponent']:.2f}" if "memory exponent" in entry else ""
        print(f"{what} grows with the {unit}: time with exponent {entry['time exponent']:.2f}{memory}", flush=True)
        self.save()

    def _first(self, way: Way) -> tuple[dict, Tensors]:
        """Run a way until it is warm: {"seconds", "peak_bytes", "remark"} of the last time, and what it gives."""
        for _ in range(0 if way.cold else way.warm - 1):
            way.run()
        synchronize(self.device)
        start = time.perf_counter()
        got, peak = peak_beyond(way.run, self.device)
        spent = time.perf_counter() - start
        remark = way.remark(got) if callable(way.remark) else way.remark
        return {"seconds": spent, "peak_bytes": peak, "remark": remark}, got

    def _in_turns(self, ways: dict[str, Way], rows: dict[str, dict], titles: dict[str, str]) -> None:
        """Time all, one after the other and again, as often as each is worth; put what comes of it into its row."""
        taken: dict[str, list[float]] = {name: [] for name in ways}
        left = {}
        for name, way in ways.items():
            once = rows[name].pop("seconds")
            left[name] = 1 if once > LONG else max(self.least, min(MOST, math.ceil(self.spent / max(once, 1e-9))))
            if once > LONG and way.cold:
                taken[name].append(once)
        while waiting := [name for name in rows if len(taken[name]) < left[name]]:
            for name in waiting:
                start = time.perf_counter()
                try:
                    ways[name].run()
                    synchronize(self.device)
                except Exception as error:
                    self._survive(titles[name], error)
                    del rows[name]
                else:
                    taken[name].append(time.perf_counter() - start)
        for name, row in rows.items():
            row |= summary(taken[name])

    def _survive(self, what: str, error: Exception) -> None:
        """Leave out what failed, and stop where it has taken the device with it."""
        self.leave_out(what, error)
        try:
            synchronize(self.device)
        except RuntimeError as lost:
            self.save()
            raise InputError(f"the device answers no more after {what}; what was measured before is kept") from lost

    def _rates(self) -> None:
        """Rates of all rows, and their share of the best that was found up to now."""
        for row in self.rows:
            ceiling, median = self.results["ceilings"][row["dtype"]], row["median"]
            if row["images"]:
                row["images_per_s"] = row["images"] / median
            if row["flop"]:
                row["gflops"] = row["flop"] / median / 1e9
                row["ceiling_gflops"] = max(ceiling["product"], ceiling["convolution"]) / 1e9
                row["fraction"] = row["gflops"] / row["ceiling_gflops"]
            if row["moved"]:
                row["gbs"], row["ceiling_gbs"] = row["moved"] / median / 1e9, ceiling["copy"] / 1e9

    def _ceiling(self, dtype: str) -> None:
        """Measure the ceilings; the best of the run counts."""
        found = ceilings(self.device, getattr(torch, dtype))
        best = self.results["ceilings"].setdefault(dtype, found)
        best |= {name: max(rate, best[name]) for name, rate in found.items()}
        print(
            f"ceilings, {dtype}: product {found['product'] / 1e9:.0f} GFLOP/s, "
            f"convolution {found['convolution'] / 1e9:.0f} GFLOP/s, copy {found['copy'] / 1e9:.1f} GB/s", flush=True
        )  # fmt: skip

    def finish(self) -> None:
        """All cases are done: unless all is to be quick, the ceilings once more."""
        for dtype in list(self.results["ceilings"]) if not self.quick else ():
            self._ceiling(dtype)
        self._rates()
        self.results |= {"complete": True, "seconds": time.monotonic() - self.start}
        self.save()

    def save(self) -> None:
        if self.out:
            with atomic_write(self.out) as part:
                part.write_text(json.dumps(self.results, indent=1) + "\n")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _tell(row: dict) -> None:
    rate = f"{row['gflops']:8.1f} GFLOP/s {100 * row['fraction']:4.0f} %" if "gflops" in row else ""
    ratios = ", ".join(f"{ratio:.3g}x {name}" for name, ratio in row["times"].items())
    place = f"{row['suite']}: {row['op']}, {row['shape']}, {row['dtype']}"
    once = "(one run)" if row["repeats"] == 1 else ""
    print(f"{place:64} {row['backend']:20} {1000 * row['median']:10.2f} ms {once:9} {rate:24} {ratios}", flush=True)
