"""`overfeat bench --against REF`: two commits in turn on this machine, pair by pair."""

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
NAMES = ("suite", "op", "shape", "dtype", "backend")  # of a row: what it is of
ALIKE = ("cpu", "gpu", "threads", "torch")  # of a machine


def compare(ref: str, options: dict[str, object], line: str, out: Path, pairs: int = PAIRS) -> None:
    """Measure REF and this checkout alternately, and tell the ratios of REF's times to this one's.

    The suite and overfeat.profiling are this checkout's, run on the library of either. options: of command.measure;
    line: the whole command; out: where results go, after every pair. Raises InputError where git knows no such
    commit, or a run fails, as on a library that is too old for this suite.
    """
    _git("worktree", "prune")
    with tempfile.TemporaryDirectory(prefix="overfeat-against-") as temporary:
        folder = Path(temporary)
        checkouts = {ref: folder / "checkout", "this checkout": ROOT}
        added = _git("worktree", "add", "--detach", str(checkouts[ref]), ref)
        if added.returncode:
            raise InputError(f"--against {ref}: {(added.stderr.strip().splitlines() or ['git failed'])[-1]}")
        try:
            packages = [_package(root, folder / f"packages {i}") for i, root in enumerate(checkouts.values())]
            found: list[list[dict]] = []
            for pair in range(pairs):
                both = [{}, {}]
                # Which is first changes, so that a machine that slows down does not favour either.
                for i in (0, 1) if pair % 2 == 0 else (1, 0):
                    print(f"pair {pair + 1} of {pairs}: {list(checkouts)[i]}", flush=True)
                    root = list(checkouts.values())[i]
                    both[i] = _one(root, packages[i], options | {"line": line, "out": str(folder / f"{pair} {i}.json")})
                found.append(both)
                ratios = pairwise(found)
                rows = [dict(zip(NAMES, key, strict=True)) | {"ratios": values} for key, values in ratios.items()]
                results = {
                    "command": line, "machine": both[1]["machine"], "against": both[0]["machine"]["commit"],
                    "pairs": pair + 1, "rows": rows,
                }  # fmt: skip
                with atomic_write(out) as part:
                    part.write_text(json.dumps(results, indent=1) + "\n")
        finally:
            _git("worktree", "remove", "--force", str(checkouts[ref]))
    print(f"\ntimes as fast as {ref}: median of {pairs} pairs (least to most)")
    for key, values in ratios.items():
        print(f"{', '.join(key):100} {statistics.median(values):7.3f} ({min(values):.3f} to {max(values):.3f})")


def pairwise(pairs: Sequence[Sequence[dict]]) -> dict[tuple[str, ...], list[float]]:
    """For every row that both runs of a pair have: the earlier commit's time over the later one's.

    Raises InputError for results of different machines, which are never divided by each other.
    """
    ratios: dict[tuple[str, ...], list[float]] = {}
    for before, now in pairs:
        for key in ALIKE:
            old, new = before["machine"].get(key), now["machine"].get(key)
            if old != new:
                raise InputError(f"the two runs differ in {key}: {old} and {new}")
        times = {tuple(row[name] for name in NAMES): row["median"] for row in before["rows"]}
        for row in now["rows"]:
            key = tuple(row[name] for name in NAMES)
            if key in times:
                ratios.setdefault(key, []).append(times[key] / row["median"])
    return ratios


def _package(root: Path, folder: Path) -> str:
    """The search path of a checkout's library, as if it were installed, and of what measures it here."""
    (folder / "overfeat").mkdir(parents=True)
    for path in [*(root / "overfeat").iterdir(), root / "kernels"]:
        own = ROOT / "overfeat" / path.name
        (folder / "overfeat" / path.name).symlink_to(own if path.name == "measuring.py" else path)
    return os.pathsep.join([str(folder), str(ROOT)])


def _one(root: Path, packages: str, options: dict[str, object]) -> dict:
    """The results of one checkout, in a process of its own."""
    command = [sys.executable, "-P", "-m", "bench.suite.command", json.dumps(options)]
    commit = _git("-C", str(root), "describe", "--always", "--dirty").stdout.strip()
    environment = os.environ | {"PYTHONPATH": packages, "OVERFEAT_COMMIT": commit}
    done = subprocess.run(command, env=environment, start_new_session=True)  # Ctrl-C is for us, who then stop it
    if done.returncode:
        raise InputError("one of the two runs did not come to its end; what it said stands above")
    return json.loads(Path(str(options["out"])).read_text())


def _git(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
