"""One run: what it has found so far, the time that is left, and the file that keeps it."""

import json
import math
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from overfeat.files import atomic_write, ensure_dir
from overfeat.profiling.measure import machine, seconds, summary

COMMAND = "make gpu"
FAST = "overfeat.fast"  # what rows and checks of the library's own choice are called; variants add ", ..."
STOCK = "stock torch"
UNFIT = ("OutOfResources", "OutOfMemoryError")  # the chip is too small for it, which says nothing about the kernel
AHEAD = 4_000_000  # cycles, about 2 ms, that the device waits so that the host has queued a whole call


class OutOfTime(Exception):
    """The budget is spent: what is left is not run."""


class DeviceLost(Exception):
    """The device answers nothing any more, as after an illegal address: nothing else can run."""


class Run:
    """Checks, rows and sections of one run. dry: tiny, on the CPU, for tests; its times mean nothing."""

    def __init__(self, out: Path, budget: float, dry: bool):
        self.dry, self.budget, self.start = dry, budget, time.monotonic()
        self.device = torch.device("cpu" if dry else "cuda")
        name = "dry run" if dry else torch.cuda.get_device_name()
        self.path = ensure_dir(out) / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        self.rows: list[dict] = []
        self.checks: list[dict] = []
        self.results = {
            "command": COMMAND, "dry run": dry, "device": name, "machine": machine(), "budget_s": budget,
            "sections": {}, "ceilings": {}, "checks": self.checks, "rows": self.rows,
        }  # fmt: skip
        if not dry:
            cache = getattr(torch.cuda.get_device_properties(), "L2_cache_size", 0)
            self.flushed = torch.empty(max(4 * cache, 1 << 28), dtype=torch.uint8, device=self.device)

    @property
    def failed(self) -> list[dict]:
        return [check for check in self.checks if check["result"] == "failed"]

    def section(self, name: str, function: Callable[["Run"], None]) -> None:
        """Run a part; what stops it is noted, and all that was found until then is written."""
        start, state = time.monotonic(), "interrupted"
        print(f"-- {name} ({start - self.start:.0f} s)", flush=True)
        try:
            self.spend()
            function(self)
            state = "complete"
        except OutOfTime:
            state = f"cut short: the budget of {self.budget:.0f} s is spent"
        except DeviceLost as error:
            state = f"device lost: {error}"
            raise
        except Exception as error:
            traceback.print_exc()
            state = f"failed: {_told(error)}"
            self._note(f"section {name}", "", "", "", "failed", _told(error))
        finally:
            self.results["sections"][name] = {"seconds": round(time.monotonic() - start, 1), "state": state}
            if state != "complete":
                print(f"   {state}", flush=True)
            self.save()

    def spend(self) -> None:
        """Raises OutOfTime once the budget is spent."""
        if time.monotonic() - self.start > self.budget:
            raise OutOfTime

    def save(self) -> None:
        """Write everything, so that a run that is killed later keeps it."""
        for row in self.rows:
            row["check"] = row["correct"] and not any(_spoils(check, row) for check in self.failed)
        with atomic_write(self.path) as part:
            part.write_text(json.dumps(self.results, indent=1) + "\n")

    def check(
        self, name: str, op: str, backend: str, kind: str, run: Callable[[], object], forced: bool = False
    ) -> bool:
        """Whether `run` passes. Its failure is noted, and makes the rows of this op, backend and kind void.

        What does not run at all fails where it is ours, and is skipped where it is not. `forced`: a way to
        launch that the library does not choose, and that need not fit the chip.
        """
        self.spend()
        result, message = "failed", "interrupted"
        try:
            run()
            self.synchronize()
            result, message = "passed", ""
        except Exception as error:
            ours = backend.startswith(FAST) and not (forced and type(error).__name__ in UNFIT)
            result, message = "failed" if ours or isinstance(error, AssertionError) else "skipped", _told(error)
            self._survive(error)
        finally:
            self._note(name, op, backend, kind, result, message)
        return result != "failed"

    def skip(self, name: str, why: str) -> None:
        """Note that a check is not run."""
        self._note(name, "", "", "", "skipped", why)

    def row(self, section: str, op: str, shape: str, kind: str, backend: str, run: Callable[[], object], *,
            correct: bool = True, flop: float = 0, moved: float = 0, **more: object) -> dict | None:  # fmt: skip
        """Time `run` and keep it as a row; flop and bytes `moved` give its rates. None where it does not run.

        Times are in ms. The ratio to stock is to the row of stock torch that was timed before it, all
        else alike.
        """
        self.spend()
        row = {"section": section, "op": op, "shape": shape, "dtype": kind, "backend": backend, **more}
        try:
            times = self.time(run)
        except Exception as error:
            row |= {"error": _told(error), "correct": False}
            if backend == FAST or (backend.startswith(FAST) and type(error).__name__ not in UNFIT):
                self._note(f"timing: {op} {shape}", op, backend, kind, "failed", _told(error))
            self.rows.append(row)
            self._survive(error)
            print(f"   {backend:40} {op} {shape} {kind}: {_told(error).splitlines()[0][:80]}", flush=True)
            return None
        row |= {**times, "correct": correct}
        if flop:
            row["tflops"] = flop / times["median"] / 1e9
            ceiling = self.results["ceilings"].get(kind)
            row["of_gemm"] = row["tflops"] / ceiling["tflops"] if ceiling else None
        if moved:
            row["gbs"] = moved / times["median"] / 1e6
        shared = ("section", "op", "shape", "dtype", *more)
        alike = {key: row[key] for key in shared if key not in ("tile", "runs")}
        stock = self.find(backend=STOCK, **alike) if backend != STOCK else row
        row["times_stock"] = stock["median"] / row["median"] if stock else None
        self.rows.append(row)
        rate = f"{row['tflops']:7.1f} TFLOP/s" if flop else ""
        print(f"   {backend:40} {op}, {shape}, {kind}: {row['median']:9.3f} ms {rate}", flush=True)
        return row

    def find(self, **wanted: object) -> dict | None:
        """The last timed row with these values."""
        rows = [r for r in self.rows if "median" in r and all(r.get(key) == value for key, value in wanted.items())]
        return rows[-1] if rows else None

    def time(self, run: Callable[[], object]) -> dict[str, float]:
        """Device time of a call in ms, from a cold second-level cache, and `wall`: with the host's part.

        Warm-up does not count, and the host is ahead of the device: a call is queued whole before it starts.
        """
        if self.dry:
            return {key: 1e3 * value if key != "repeats" else value for key, value in seconds(run, 1, 0).items()}
        for _ in range(3):
            run()
        once = seconds(lambda: (run(), self.synchronize()), 3)
        repeats = max(3, min(20, math.ceil(0.4 / once["median"])))
        events = []
        for _ in range(repeats):
            self.flushed.zero_()
            torch.cuda._sleep(AHEAD)
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            run()
            pair[1].record()
            events.append(pair)
        self.synchronize()
        return summary([first.elapsed_time(last) for first, last in events]) | {"wall": 1e3 * once["median"]}

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def _survive(self, error: Exception) -> None:
        """Raises DeviceLost where an error has taken the device with it."""
        try:
            self.synchronize()
        except Exception:
            raise DeviceLost(_told(error)) from error

    def _note(self, name: str, op: str, backend: str, kind: str, result: str, message: str) -> None:
        self.checks.append(
            {"name": name, "op": op, "backend": backend, "dtype": kind, "result": result, "message": message}
        )
        if result != "passed":
            print(f"   {result}: {name}: {message}", flush=True)


def _spoils(check: dict, row: dict) -> bool:
    """Whether a failed check makes a row worthless. A whole classification runs every op."""
    family = row["backend"].split(",")[0]
    same = check["backend"].split(",")[0] == family and check["dtype"] == row["dtype"]
    return same and (check["op"] == row["op"] or row["op"] == "classification")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]
