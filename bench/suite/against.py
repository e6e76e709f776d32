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
from overfeat.files import InputError, replacing

PAIRS = 3
NAMES = ("suite", "op", "shape", "dtype", "backend")  # of a row: what it is of
ALIKE = ("cpu", "gpu", "threads", "torch")  # of a machine


def compare(ref: str, arguments: list[str], line: str, out: Path | None, pairs: int = PAIRS) -> None:
    """Run the suite of REF and of this checkout alternately, and tell the ratios of REF's times to this one's.

    arguments: those of `overfeat bench`, without --against and -o; line: the whole command; out: where results go,
    after every pair, or None. The suite is each commit's own. Raises InputError where git knows no such commit,
    or a run fails.
    """
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
                    both[i] = _one(packages[i], arguments, folder / f"{pair} {i}.json")
                found.append(both)
                ratios = pairwise(found)
                if out:
                    rows = [dict(zip(NAMES, key, strict=True)) | {"ratios": values} for key, values in ratios.items()]
                    results = {"command": line, "machine": both[1]["machine"], "rows": rows, "pairs": pair + 1}
                    with replacing(out) as part:
                        part.write_text(json.dumps(results, indent=1) + "\n")
        finally:
            _git("worktree", "remove", "--force", str(checkouts[ref]))
    print(f"\ntimes as fast as {ref}: median of {pairs} pairs (least to most)")
    for key, values in ratios.items():
        print(f"{', '.join(key):100} {statistics.median(values):7.3f} ({min(values):.3f} to {max(values):.3f})")
    if out:
        print(f"written to {out}")


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
    """The search path of a checkout's code, as if it were installed: the kernels lie in the package."""
    (folder / "overfeat").mkdir(parents=True)
    for path in [*(root / "overfeat").iterdir(), root / "kernels"]:
        (folder / "overfeat" / path.name).symlink_to(path)
    return os.pathsep.join([str(folder), str(root)])


def _one(packages: str, arguments: list[str], out: Path) -> dict:
    """The results of one checkout, in a process of its own."""
    command = [sys.executable, "-P", "-m", "overfeat.cli.main", "bench", *arguments, "-o", str(out)]
    done = subprocess.run(command, cwd=out.parent, env=os.environ | {"PYTHONPATH": packages})
    if done.returncode:
        raise InputError("a run of the two did not come to its end; what it said stands above")
    return json.loads(out.read_text())


def _git(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
