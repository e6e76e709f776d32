"""What ten minutes on a GPU can decide, in order of worth: python -m bench.gpu_run, which is `make gpu`

The parts: checks (the kernels' tests, in several processes), peaks (measured rates of GEMM, convolution and copy),
suite (timings), tune, profile. Each runs in processes of its own under a time limit and is saved as it ends, the suite
after every case and the checks after every test. A second run goes on where the first one stopped, if the sources, the
device and the versions are the same. Exit status: 0; 1 if a check or a part failed; 2 if nothing can run, as without a
GPU; 3 if nothing failed but time ran out: run it again.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

try:
    import torch
    import triton  # noqa: F401  the kernels' tests need it

    from bench.checks import events, outcomes
    from bench.common import LOST_STATUS, RESULTS, ROOT, UNFINISHED_STATUS, measured_state
    from bench.gpu_figures import figures
    from bench.suite.kernels import GPU_SUITES
    from overfeat.errors import WriteError
    from overfeat.files import atomic_write, ensure_dir
    from overfeat.profiling.measure import machine
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] in ("bench", "overfeat"):
        raise
    print(f"{sys.executable} has no {error.name}; name a Python that has it: make gpu GPU_PYTHON=/path/to/python3")
    sys.exit(2)

# Parts, and how much of the remaining time each may use, relative to those after it.
SHARES = {"checks": 36, "peaks": 6, "suite": 34, "tune": 20, "profile": 4}
TESTS = ("tests/kernels", "tests/ops/test_ops.py", "tests/ops/test_ops_in_torch.py", "tests/ops/test_merge_boxes.py",
         "tests/test_fast.py")  # fmt: skip
SUITES = (*GPU_SUITES, "train", "dense", "classifier", "merge", "end-to-end")
TINY_TESTS, TINY_SUITES = ("tests/kernels/test_class_scores.py",), ("pooling", "first-layer")
IMAGE = "overfeat/assets/scenes/00012.png"
MAX_PROCESSES = 12  # of checks: each compiles kernels on a core of its own
PROCESS_BYTES = 7 << 30  # of GPU memory, that one may need
PROGRESS_SECONDS = 15.0
GRACE = 8.0  # seconds before its limit at which the suite ends by itself
COMPLETE, UNFINISHED, FAILED = "complete", "unfinished", "failed"


class GpuRun:
    """A run, its folder of results and its time budget. dry: the same on the CPU, tiny; its times have no meaning."""

    def __init__(self, out: Path, name: str | None, budget: float, dry: bool):
        self.out, self.dry, self.end = out, dry, time.monotonic() + budget
        self.device = torch.device("cpu" if dry else "cuda")
        self.state = measured_state(self.device)
        self.name = name or ("dry-run" if dry else re.sub("[^a-z0-9]+", "-", self.state["device"].lower()).strip("-"))
        self.path = ensure_dir(out / "gpu") / f"{self.name}.json"
        self.record = self.path.with_name(f"{self.name}-checks.jsonl")
        self.suite = ensure_dir(out / "suite") / f"{self.name}.json"
        self.logs = ensure_dir(ROOT / "build" / "gpu-logs")
        self.failed: list[dict] = []  # of the part that runs
        self._resume()
        search_path = [path for path in (os.environ.get("PYTHONPATH"), str(ROOT)) if path]
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(search_path)}
        if dry:
            self.environment |= {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}

    def _resume(self) -> None:
        """Keep earlier results of the same sources, device and versions."""
        earlier = json.loads(self.path.read_text()) if self.path.is_file() else {}
        ended: list[dict] = []
        if earlier.get("measured") == self.state:
            self.results = earlier
            ended = [event for event in outcomes(self.record).values() if event["outcome"] != "started"]
        else:
            self.results = {"command": "make gpu", "machine": machine(), "measured": self.state, "dry run": self.dry,
                            "parts": {}, "checks": {}}  # fmt: skip
        self.record.write_text("".join(json.dumps(event) + "\n" for event in ended))

    def run(self, parts: list[str]) -> int:
        """Run the parts that are not complete, print a summary, and give the exit status."""
        for part in parts:
            earlier = self.results["parts"].get(part, {}).get("state", UNFINISHED)
            if earlier != UNFINISHED:
                print(f"== {part}: {earlier} in an earlier run of the same sources on this device", flush=True)
                continue
            start, self.failed = time.monotonic(), []
            limit = (self.end - start) * SHARES[part] / sum(SHARES[name] for name in parts[parts.index(part) :])
            print(f"== {part}, {limit:.0f} s at most", flush=True)
            state = getattr(self, f"_{part}")(limit) if limit > GRACE else UNFINISHED
            spent = round(time.monotonic() - start, 1)
            self.results["parts"][part] = {"state": state, "seconds": spent, "failed": self.failed}
            with atomic_write(self.path) as temporary:
                temporary.write_text(json.dumps(self.results, indent=1) + "\n")
        return self._summary(parts)

    def _summary(self, parts: list[str]) -> int:
        """Print the parts, figures and failures, and give the exit status."""
        print("\n== summary")
        states = {part: self.results["parts"][part] for part in parts}
        for part, state in states.items():
            print(f"{part:8} {state['state']:12} {state['seconds']:6.1f} s")
        suite = self._suite_results()
        for name, measured, bound, minimum in figures(suite):
            shown = "not measured" if measured is None else f"{measured:.3g}"
            print(f"{name}: {shown} (target: {'at least' if minimum else 'at most'} {bound:g})")
        failed = [entry for state in states.values() for entry in state["failed"]]
        failed += suite.get("failed", []) if "suite" in parts else []
        for entry in failed:
            print(f"FAILED: {entry['what']}: {_first_line(entry['why'])}")
        print(f"results in {self.out}; `python -m bench.report` makes pages of those in bench/results")
        ends = {state["state"] for state in states.values()}
        return 1 if failed or FAILED in ends else UNFINISHED_STATUS if UNFINISHED in ends else 0

    def _fail(self, what: str, why: str) -> None:
        self.failed.append({"what": what, "why": why})
        print(f"FAILED: {what}: {_first_line(why)}", flush=True)

    # Checks

    def _checks(self, limit: float) -> str:
        """Run the tests in several processes; one that ends in the middle of its tests is started again."""
        end, count = time.monotonic() + limit, self._processes()
        running = {i: self._start_checks(i, count) for i in range(count)}
        try:
            shown = time.monotonic()
            while running and time.monotonic() < end:
                time.sleep(0.2)
                for i in [i for i, process in running.items() if process.poll() is not None]:
                    if self._ended_early(f"{i}/{count}", running.pop(i).returncode):
                        running[i] = self._start_checks(i, count)
                if time.monotonic() - shown > PROGRESS_SECONDS:
                    shown, states = time.monotonic(), Counter(e["outcome"] for e in outcomes(self.record).values())
                    print(f"   {states['passed']} passed, {states['failed']} failed", flush=True)
        finally:
            _stop(*running.values())
        return self._count_checks(bool(running))

    def _processes(self) -> int:
        """As many as cores and memory are for."""
        if self.dry:
            return 1
        memory = torch.cuda.get_device_properties(self.device).total_memory
        return max(1, min(MAX_PROCESSES, len(os.sched_getaffinity(0)) * 3 // 4, memory // PROCESS_BYTES))

    def _start_checks(self, index: int, count: int) -> subprocess.Popen:
        ignored = ["--ignore", "tests/kernels/test_offline_compile.py"]  # it needs no GPU, and minutes
        quiet = ["-q", "--tb=short", "-o", "addopts=", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        record = ["-p", "bench.checks", "--record", str(self.record), "--shard", f"{index}/{count}"]
        tests = TINY_TESTS if self.dry else TESTS
        command = [sys.executable, "-P", "-m", "pytest", *ignored, *quiet, *record, *tests]
        environment = self.environment | {"OMP_NUM_THREADS": "1"}
        with self._log(f"{index}/{count}").open("a") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, process_group=0, env=environment)

    def _log(self, shard: str) -> Path:
        return self.logs / f"checks-{shard.split('/')[0]}.log"

    def _ended_early(self, shard: str, status: int) -> bool:
        """Whether a process ended in the middle of its tests, so that another one must go on with the rest."""
        if status in (0, 1, 5):  # all passed, some failed, none were left
            return False
        last = outcomes(self.record).values()
        started = [event for event in last if (event["shard"], event["outcome"]) == (shard, "started")]
        for event in started:
            event |= {"outcome": "failed", "message": f"its process ended with status {status}; {self._log(shard)}"}
            with self.record.open("a") as file:
                file.write(json.dumps(event) + "\n")
        if started or status == LOST_STATUS:
            return True
        self._fail(f"checks, process {shard}", f"pytest ended with status {status}; {self._log(shard)}")
        print("\n".join(self._log(shard).read_text().splitlines()[-15:]), flush=True)
        return False

    def _count_checks(self, stopped: bool) -> str:
        """Count the outcomes so far and list the failures."""
        last = outcomes(self.record)
        counts = Counter(event["outcome"] for event in last.values())
        collected = max((event.get("collected", 0) for event in events(self.record)), default=0)
        left = max(0, collected - counts["passed"] - counts["skipped"] - counts["failed"])
        skipped = Counter(event["message"] for event in last.values() if event["outcome"] == "skipped")
        self.results["checks"] = {"passed": counts["passed"], "failed": counts["failed"], "left": left,
                                  "skipped": dict(skipped)}  # fmt: skip
        for test, event in last.items():
            if event["outcome"] == "failed":
                self._fail(test, event["message"])
            elif event["outcome"] == "started":
                print(f"   ran when the time was over: {test}")
        print(f"   {counts['passed']} passed, {counts['skipped']} skipped, {counts['failed']} failed, {left} left")
        if stopped:
            return UNFINISHED
        return FAILED if self.failed or left or not counts["passed"] else COMPLETE

    # Timings

    def _peaks(self, limit: float) -> str:
        return self._bench(["peaks"], limit)

    def _suite(self, limit: float) -> str:
        return self._bench([*(TINY_SUITES if self.dry else SUITES)], limit)

    def _bench(self, suites: list[str], limit: float) -> str:
        """Suites into one file of results; where a case ends the process, another one goes on with the next."""
        end = time.monotonic() + limit
        while (left := end - time.monotonic()) > GRACE:
            where = ["--tiny", "--device", "cpu"] if self.dry else ["--device", "cuda"]
            seconds = f"{left - GRACE + 1:.0f}"
            options = ["--quick", "--resume", "--budget", seconds, *where, "-o", str(self.suite)]
            cases = len(self._suite_results().get("cases", {}))
            status, results = self._python(["bench", *suites, *options], left), self._suite_results()
            if status in (None, UNFINISHED_STATUS):
                return UNFINISHED
            if status == 0 or (status == 1 and results.get("failed")):
                return UNFINISHED if not results.get("complete") else FAILED if status else COMPLETE
            if not results.get("running") and len(results.get("cases", {})) == cases:
                self._fail(", ".join(suites), f"ended with status {status}")
                return FAILED
        return UNFINISHED

    def _suite_results(self) -> dict:
        results = json.loads(self.suite.read_text()) if self.suite.is_file() else {}
        return results if results.get("measured") == self.state else {}

    def _tune(self, limit: float) -> str:
        """What is tuned stays in the user's cache, for the library, and is copied into the results."""
        tuned = self.logs / "tuned.json"
        tuned.unlink(missing_ok=True)
        status = self._python(["bench", "--tune", "--budget", f"{limit - GRACE + 1:.0f}", "-o", str(tuned)], limit)
        if tuned.is_file():
            self.results["tuned"] = json.loads(tuned.read_text())
        return self._ended("tune", status)

    def _profile(self, limit: float) -> str:
        folder = self.logs / "profile"
        small = ["--weights", "overfeat/assets/small.safetensors", "--scales", "0.5", "--repeats", "1"]
        net = [*(small if self.dry else ("--net", "accurate")), "--device", self.device.type]
        state = self._ended(
            "profile", self._python(["overfeat", "--fast", "profile", IMAGE, *net, "-o", str(folder)], limit)
        )
        if state == COMPLETE:
            shutil.copy(folder / "profile.json", ensure_dir(self.out / "profile") / f"{self.name}.json")
        return state

    def _python(self, command: list[str], limit: float) -> int | None:
        """The exit status of python -m COMMAND, None if it was stopped at its time limit."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *command], cwd=ROOT, process_group=0, env=self.environment
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _stop(process)

    def _ended(self, part: str, status: int | None) -> str:
        if status:
            self._fail(part, f"ended with status {status}")
        return UNFINISHED if status is None else FAILED if status else COMPLETE


def _stop(*processes: subprocess.Popen) -> None:
    """End processes and those that they started: by SIGINT, after which they save, else by SIGKILL."""
    for number in (signal.SIGINT, signal.SIGKILL):
        running = [process for process in processes if process.poll() is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        end = time.monotonic() + 5
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.gpu_run", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(SHARES)} (default: all)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: bench/results; dry: build/dry-run)")
    parser.add_argument("--name", help="of the files of results (default: the device's)")
    parser.add_argument("--budget", type=float, default=560.0, metavar="S", help="seconds for all parts")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU, kernels interpreted: for tests")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(SHARES):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(SHARES)}")
    if not args.budget > 0:
        parser.error(f"--budget {args.budget}: not a positive number of seconds")
    if not args.dry_run and not torch.cuda.is_available():
        print("no GPU that torch can use on this machine")
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the processes of a part are stopped
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    parts = [part for part in SHARES if part in args.parts] or list(SHARES)
    out = args.out or (ROOT / "build" / "dry-run" if args.dry_run else RESULTS)
    try:
        return GpuRun(out.resolve(), args.name, args.budget, args.dry_run).run(parts)
    except (WriteError, OSError) as error:
        print(f"results cannot be kept: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
