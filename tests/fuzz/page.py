"""docs/reliability.md from the counts of a run."""

import datetime
import json
import platform
import subprocess
from pathlib import Path

import harness
import PIL
import torch

HEAD = """# Reliability

<!-- Written by make fuzz from the JSON file beside it; do not edit. -->

Random files, values and problems are given to the library; a case may take {memory} GiB of memory and three minutes.
What may be refused is refused by one `InputError`, whose message is one printable line that names the file or value.
Crashes, other exceptions, wrong results and lost results are failures.

`make test` runs the first cases of every target, with fixed seeds. `make fuzz` runs new ones for half an hour, or for
`FUZZ_BUDGET` seconds, and prints the seed of each failure; `make fuzz FUZZ_OUT=docs/reliability.json` writes this page.
"""


def first_line(name: str) -> str:
    """What a target tries and what holds."""
    return (harness.target(name).__doc__ or "").split("\n")[0]


def counts(outcomes: dict[str, int]) -> str:
    return "; ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())


def machine() -> dict[str, str]:
    """Where and with what a run was made."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=harness.HERE, capture_output=True, text=True
    )
    versions = {"python": platform.python_version(), "torch": torch.__version__, "pillow": PIL.__version__}
    return {"date": str(datetime.date.today()), "commit": commit.stdout.strip() or "unknown", **versions}


def page(file: Path) -> str:
    """The page of a JSON file."""
    from worker import MEMORY

    run = json.loads(file.read_text())
    lines = [HEAD.format(memory=MEMORY >> 30), "| target: what is tried, and what holds | cases | outcomes |"]
    lines.append("| --- | ---: | --- |")
    for name, result in run["targets"].items():
        lines.append(f"| `{name}`: {result['tried']} | {result['cases']:,} | {counts(result['outcomes'])} |")
    failures = [(name, kind) for name, result in run["targets"].items() for kind in result["failures"]]
    held = "no failure" if not failures else "failures: " + ", ".join(f"{kind} ({name})" for name, kind in failures)
    cases, seconds = (sum(result[key] for result in run["targets"].values()) for key in ("cases", "seconds"))
    m = run["machine"]
    versions = f"{m['date']}, commit {m['commit']}, Python {m['python']}, torch {m['torch']}, Pillow {m['pillow']}"
    lines += ["", f"{cases:,} cases in {seconds / 60:.0f} minutes of one process, {held}. {versions}.", ""]
    return "\n".join(lines)
