"""One run: its checks and rows, its time budget, and the file of results."""

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
FAST = "overfeat.fast"  # backend name in rows and checks of the library's own choice; variants append ", ..."
EAGER = "eager PyTorch"
RESOURCE_ERRORS = ("OutOfResources", "OutOfMemoryError")  # the chip is too small; the kernel may still be correct
DELAY_CYCLES = 4_000_000  # about 2 ms: the device waits while the host queues a whole call


class OutOfTime(Exception):
    """The time budget is used up: the rest is skipped."""


class DeviceLost(Exception):
    """The device no longer responds, as after an illegal address: nothing else can run."""


class Run:
    """Checks, rows and sections of one run. dry: tiny shapes on the CPU, for tests; its times have no meaning."""

    def __init__(self, out: Path, budget: float, dry: bool):
        self.dry, self.budget, self.start = dry, budget, time.monotonic()
        self.device = torch.device("cpu" if dry else "cuda")
        name = "dry run" if dry else torch.cuda.get_device_name()
        self.path = ensure_dir(out) / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        self.rows: list[dict] = []
        self.checks: list[dict] = []
        self.results = {
            "command": COMMAND, "dry run": dry, "device": name, "machine": machine(), "budget_s": budget,
            "sections": {}, "peaks": {}, "checks": self.checks, "rows": self.rows,
        }  # fmt: skip
        if not dry:
            cache = getattr(torch.cuda.get_device_properties(), "L2_cache_size", 0)
            self.flush_buffer = torch.empty(max(4 * cache, 1 << 28), dtype=torch.uint8, device=self.device)

    @property
    def failed(self) -> list[dict]:
        return [check for check in self.checks if check["result"] == "failed"]

    def section(self, name: str, function: Callable[["Run"], None]) -> None:
        """Run a section; record what stopped it, and save all results so far."""
        start, state = time.monotonic(), "interrupted"
        print(f"-- {name} ({start - self.start:.0f} s)", flush=True)
        try:
            self.check_budget()
            function(self)
            state = "complete"
        except OutOfTime:
            state = f"cut short: the time budget of {self.budget:.0f} s is used up"
        except DeviceLost as error:
            state = f"device lost: {error}"
            raise
        except Exception as error:
            traceback.print_exc()
            state = f"failed: {_describe(error)}"
            self._record(f"section {name}", "", "", "", "failed", _describe(error))
        finally:
            self.results["sections"][name] = {"seconds": round(time.monotonic() - start, 1), "state": state}
            if state != "complete":
                print(f"   {state}", flush=True)
            self.save()

    def check_budget(self) -> None:
        """Raise OutOfTime once the time budget is used up."""
        if time.monotonic() - self.start > self.budget:
            raise OutOfTime

    def save(self) -> None:
        """Save all results, so that a run that is killed later keeps them."""
        for row in self.rows:
            row["check"] = row["correct"] and not any(_invalidates(check, row) for check in self.failed)
        with atomic_write(self.path) as part:
            part.write_text(json.dumps(self.results, indent=1) + "\n")

    def check(
        self, name: str, op: str, backend: str, kind: str, run: Callable[[], object], forced: bool = False
    ) -> bool:
        """Whether `run` passes. A failure is recorded and invalidates the rows of this op, backend and kind.

        An exception counts as a failure of the library, and as skipped for other backends. `forced`: a launch
        configuration that the library did not select and that need not fit the chip.
        """
        self.check_budget()
        result, message = "failed", "interrupted"
        try:
            run()
            self.synchronize()
            result, message = "passed", ""
        except Exception as error:
            is_ours = backend.startswith(FAST) and not (forced and type(error).__name__ in RESOURCE_ERRORS)
            result, message = "failed" if is_ours or isinstance(error, AssertionError) else "skipped", _describe(error)
            self._raise_if_lost(error)
        finally:
            self._record(name, op, backend, kind, result, message)
        return result != "failed"

    def skip(self, name: str, why: str) -> None:
        """Record that a check is skipped."""
        self._record(name, "", "", "", "skipped", why)

    def row(self, section: str, op: str, shape: str, kind: str, backend: str, run: Callable[[], object], *,
            correct: bool = True, flop: float = 0, bytes_moved: float = 0, **more: object) -> dict | None:  # fmt: skip
        """Time `run` and record a row, with rates from `flop` and `bytes_moved`; None if it raises.

        Times are in ms. The speed-up is over the earlier row of eager PyTorch that is otherwise the same.
        """
        self.check_budget()
        row = {"section": section, "op": op, "shape": shape, "dtype": kind, "backend": backend, **more}
        try:
            times = self.time(run)
        except Exception as error:
            row |= {"error": _describe(error), "correct": False}
            if backend == FAST or (backend.startswith(FAST) and type(error).__name__ not in RESOURCE_ERRORS):
                self._record(f"timing: {op} {shape}", op, backend, kind, "failed", _describe(error))
            self.rows.append(row)
            self._raise_if_lost(error)
            print(f"   {backend:40} {op} {shape} {kind}: {_describe(error).splitlines()[0][:80]}", flush=True)
            return None
        row |= {**times, "correct": correct}
        if flop:
            row["tflops"] = flop / times["median"] / 1e9
            peak = self.results["peaks"].get(kind)
            row["fraction_of_gemm"] = row["tflops"] / peak["tflops"] if peak else None
        if bytes_moved:
            row["gbs"] = bytes_moved / times["median"] / 1e6
        keys = ("section", "op", "shape", "dtype", *more)
        same = {key: row[key] for key in keys if key not in ("tile", "runs")}
        eager = self.find(backend=EAGER, **same) if backend != EAGER else row
        row["speedup_over_eager"] = eager["median"] / row["median"] if eager else None
        self.rows.append(row)
        rate = f"{row['tflops']:7.1f} TFLOP/s" if flop else ""
        print(f"   {backend:40} {op}, {shape}, {kind}: {row['median']:9.3f} ms {rate}", flush=True)
        return row

    def find(self, **values: object) -> dict | None:
        """The last timed row with these values."""
        rows = [r for r in self.rows if "median" in r and all(r.get(key) == value for key, value in values.items())]
        return rows[-1] if rows else None

    def time(self, run: Callable[[], object]) -> dict[str, float]:
        """Device time of a call in ms from a cold L2 cache, and `wall`, with the host's time.

        Warm-up runs are not counted, and the host runs ahead of the device: a call is queued before it starts.
        """
        if self.dry:
            return {key: 1e3 * value if key != "repeats" else value for key, value in seconds(run, 1, 0).items()}
        for _ in range(3):
            run()
        once = seconds(lambda: (run(), self.synchronize()), 3)
        repeats = max(3, min(20, math.ceil(0.4 / once["median"])))
        events = []
        for _ in range(repeats):
            self.flush_buffer.zero_()
            torch.cuda._sleep(DELAY_CYCLES)
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

    def _raise_if_lost(self, error: Exception) -> None:
        """Raise DeviceLost if the device no longer responds."""
        try:
            self.synchronize()
        except Exception:
            raise DeviceLost(_describe(error)) from error

    def _record(self, name: str, op: str, backend: str, kind: str, result: str, message: str) -> None:
        self.checks.append(
            {"name": name, "op": op, "backend": backend, "dtype": kind, "result": result, "message": message}
        )
        if result != "passed":
            print(f"   {result}: {name}: {message}", flush=True)


def _invalidates(check: dict, row: dict) -> bool:
    """Whether a failed check invalidates a row. A whole classification runs every op."""
    family = row["backend"].split(",")[0]
    same = check["backend"].split(",")[0] == family and check["dtype"] == row["dtype"]
    return same and (check["op"] == row["op"] or row["op"] == "classification")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]
