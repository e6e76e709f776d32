"""Random files and problems for as long as the budget lasts: python tests/fuzz --budget 1800

Each target (see harness.py) runs in a process of its own, with a limit of memory and of time for each case. A case that
failed is repeated by its target and seed: python tests/fuzz images --seed 17
"""

import argparse
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import harness
import page

CASE_SECONDS = 180  # of one case at most, unless a target sets SECONDS; others may use the processor, too
START_SECONDS = 600  # until the first case starts, at most


def run_target(name: str, seed: int, seconds: float) -> dict:
    """Cases from a seed on for some seconds: their number, outcomes, and failures with seeds and tracebacks."""
    outcomes: Counter[str] = Counter()
    failures: dict[str, dict] = {}
    start = time.monotonic()
    while (remaining := seconds - (time.monotonic() - start)) > 0:
        seed, problem = run_worker(name, seed, remaining, outcomes, failures)
        if problem:
            _add(failures, problem["failure"], seed, problem["text"])
            outcomes["failed"] += 1
            seed += 1
    result = {"tried": page.first_line(name), "cases": sum(outcomes.values())}
    result |= {"seconds": round(time.monotonic() - start), "outcomes": dict(sorted(outcomes.items()))}
    return result | {"failures": failures}


def run_worker(
    name: str, seed: int, seconds: float, outcomes: Counter[str], failures: dict[str, dict]
) -> tuple[int, dict | None]:
    """Count what one process reports until the time is over, or until it crashes or hangs in a case.

    Returns the seed of the last case, and what ended the process if the case did.
    """
    command = [sys.executable, str(harness.HERE / "worker.py"), name, str(seed)]
    deadline = time.monotonic() + seconds
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=-1, stderr=errors, env=environment, start_new_session=True) as process,
    ):
        limit = getattr(harness.target(name), "SECONDS", CASE_SECONDS)
        for entry in _entries(process, deadline, limit):
            seed = entry.get("starts", seed)
            if "failure" in entry:
                _add(failures, entry["failure"], seed, entry["traceback"])
            if "starts" not in entry:
                outcomes[entry.get("outcome", "failed")] += 1
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that a case has started
            late = time.monotonic() < deadline
            return seed, {"failure": f"over {limit} s", "text": ""} if late else None
        errors.seek(max(0, os.fstat(errors.fileno()).st_size - 2000))
        return seed, {"failure": f"exit status {process.returncode}", "text": errors.read().decode(errors="replace")}


def _entries(process: subprocess.Popen, deadline: float, limit: float) -> Iterator[dict]:
    """What a process reports, until it ends, a case takes longer than the limit, or the time is over."""
    assert process.stdout is not None
    file, rest, longest = process.stdout.fileno(), b"", START_SECONDS
    while True:
        wait = min(longest, deadline - time.monotonic())
        if wait <= 0 or not select.select([file], [], [], wait)[0]:
            return
        received = os.read(file, 1 << 16)
        if not received:
            process.wait()
            return
        longest = limit
        *lines, rest = (rest + received).split(b"\n")
        yield from map(json.loads, lines)


def _add(failures: dict[str, dict], kind: str, seed: int, text: str) -> None:
    if kind not in failures:
        failures[kind] = {"seed": seed, "count": 0, "text": text}
    failures[kind]["count"] += 1


def report(name: str, result: dict) -> str:
    """Counts and failures of a target."""
    lines = [f"{name}: {result['cases']:,} cases in {result['seconds']} s: {page.counts(result['outcomes'])}"]
    for kind, failure in result["failures"].items():
        lines.append(f"  {failure['count']} times {kind}, first: python tests/fuzz {name} --seed {failure['seed']}")
        lines += [f"    {line}" for line in failure["text"].strip().split("\n")]
    return "\n".join(lines)


def write(results: dict[str, dict], file: Path) -> None:
    """The results as JSON, and a page beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": page.machine(), "targets": results}, indent=1) + "\n")
    file.with_suffix(".md").write_text(page.page(file))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(harness.names())}")
    parser.add_argument("--budget", type=float, default=1800, metavar="SECONDS", help="of all (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="run this case alone, here")
    parser.add_argument("-o", type=Path, dest="output", metavar="FILE", help="write the counts: FILE.json and FILE.md")
    args = parser.parse_args()
    targets = args.targets or harness.names()
    if unknown := set(targets) - set(harness.names()):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(harness.names())}")
    if args.seed is not None:
        for name in targets:
            print(f"{name}: {harness.run_case(name, args.seed)}")
        return 0
    first = random.SystemRandom().randrange(10**6, 10**12)
    jobs = min(args.jobs, len(targets))
    seconds = args.budget * jobs / len(targets)
    results = {}
    with ThreadPoolExecutor(jobs) as pool:
        runs = {pool.submit(run_target, name, first, seconds): name for name in targets}
        for run in as_completed(runs):
            results[runs[run]] = run.result()
            print(report(runs[run], run.result()), flush=True)
    if args.output:
        write({name: results[name] for name in targets}, args.output)
    return int(any(result["failures"] for result in results.values()))
