"""`python -m bench --compare REF`: two commits in turns on this machine, pair by pair."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.common import ROOT
from overfeat.errors import InputError
from overfeat.files import atomic_write

PAIRS = 3
ROW_KEYS = ("suite", "op", "shape", "dtype", "backend")  # identify a row
MACHINE_KEYS = ("cpu", "gpu", "threads", "torch")  # must be equal for two runs to be compared
THIS = "this clone"


def compare(ref: str, options: dict[str, object], command: str, out: Path, pairs: int = PAIRS) -> None:
    """Measure commit `ref` and this clone alternately, and print the ratios of their times.

    The suite and the profiling code are this clone's, run on the library of either commit.

    Args:
        options: arguments of `bench.suite.measure.measure`.
        command: the command line, for the results.
        out: file of results, saved after every pair.

    Raises:
        InputError: git does not know the commit, or a run fails, as on a library too old for this suite.
    """
    _git("worktree", "prune")
    with tempfile.TemporaryDirectory(prefix="overfeat-compare-") as temporary:
        folder = Path(temporary)
        checkouts = {ref: folder / "checkout", THIS: ROOT}
        added = _git("worktree", "add", "--detach", str(checkouts[ref]), ref)
        if added.returncode:
            raise InputError(f"--compare {ref}: {(added.stderr.strip().splitlines() or ['git failed'])[-1]}")
        try:
            packages = [_search_path(root, folder / f"packages {i}") for i, root in enumerate(checkouts.values())]
            measured: list[list[dict]] = []
            for pair in range(pairs):
                both: list[dict] = [{}, {}]
                # The order alternates, so that a machine that slows down favours neither commit.
                for i in (0, 1) if pair % 2 == 0 else (1, 0):
                    print(f"pair {pair + 1} of {pairs}: {list(checkouts)[i]}", flush=True)
                    result = folder / f"{pair} {i}.json"
                    run = options | {"command": command, "out": str(result), "peaks": False}
                    both[i] = _measure_checkout(list(checkouts.values())[i], packages[i], run)
                measured.append(both)
                _save(measured, command, out)
        finally:
            _git("worktree", "remove", "--force", str(checkouts[ref]))
    print(f"\nspeed-up over {ref}: median of {pairs} pairs (minimum to maximum)")
    for key, ratios in pairwise(measured).items():
        print(f"{', '.join(key):100} {statistics.median(ratios):7.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def pairwise(pairs: Sequence[Sequence[dict]]) -> dict[tuple[str, ...], list[float]]:
    """For every row that both runs of a pair have: the earlier commit's time over the later one's.

    Raises:
        InputError: the runs are of different machines, whose times are never divided by each other.
    """
    ratios: dict[tuple[str, ...], list[float]] = {}
    for before, now in pairs:
        for key in MACHINE_KEYS:
            old, new = before["machine"].get(key), now["machine"].get(key)
            if old != new:
                raise InputError(f"the two runs differ in {key}: {old} and {new}")
        times = {tuple(row[name] for name in ROW_KEYS): row["median"] for row in before["rows"]}
        for row in now["rows"]:
            key = tuple(row[name] for name in ROW_KEYS)
            if key in times:
                ratios.setdefault(key, []).append(times[key] / row["median"])
    return ratios


def _save(measured: list[list[dict]], command: str, out: Path) -> None:
    ratios = pairwise(measured)
    results = {
        "command": command,
        "machine": measured[-1][1]["machine"],
        "compared with": measured[-1][0]["machine"]["commit"],
        "pairs": len(measured),
        "rows": [dict(zip(ROW_KEYS, key, strict=True)) | {"ratios": values} for key, values in ratios.items()],
    }
    with atomic_write(out) as part:
        part.write_text(json.dumps(results, indent=1) + "\n")


def _search_path(root: Path, folder: Path) -> str:
    """A PYTHONPATH on which a checkout's library is laid out as if installed, with this clone's profiling and bench."""
    (folder / "overfeat").mkdir(parents=True)
    for path in [*(root / "overfeat").iterdir(), root / "kernels"]:
        own = ROOT / "overfeat" / path.name
        (folder / "overfeat" / path.name).symlink_to(own if path.name == "profiling" else path)
    return os.pathsep.join([str(folder), str(ROOT)])


def _measure_checkout(root: Path, search_path: str, options: dict[str, object]) -> dict:
    """The results of one checkout, in a process of its own."""
    command = [sys.executable, "-P", "-m", "bench.suite.measure", json.dumps(options)]
    commit = _git("-C", str(root), "describe", "--always", "--dirty").stdout.strip()
    environment = os.environ | {"PYTHONPATH": search_path, "OVERFEAT_COMMIT": commit}
    done = subprocess.run(command, env=environment, start_new_session=True)  # Ctrl-C stops this process alone
    if done.returncode:
        raise InputError("one of the two runs failed; its output is above")
    return json.loads(Path(str(options["out"])).read_text())


def _git(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
