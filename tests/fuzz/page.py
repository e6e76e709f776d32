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

What overfeat was exposed to beside ordinary tests, and what held.

## Fuzzed

Random files, values and problems are given to the library; a case may take {memory} GiB of memory and three minutes.
What may be refused is refused by one `InputError`, whose message is one printable line that names the file or value.
Crashes, other exceptions, wrong results and lost results are failures.

`make test` runs the first cases of every target, with fixed seeds. `make fuzz` runs new ones for half an hour, or for
`FUZZ_BUDGET` seconds, and prints the seed of each failure; `make fuzz FUZZ_OUT=docs/reliability.json` writes this page.
"""
TAIL = """
## Killed

`make test` kills processes without warning (SIGKILL), fills disks, and checks what is left. Files are replaced as a
whole, so that nobody reads half of one, and every run goes on with the same command, or `--resume`:

| killed | what holds | tests |
| --- | --- | --- |
| training | the net of the last epoch works; a resumed run ends with the weights of one run | `tests/training` |
| `evaluate`, folders | images that are done are not evaluated again; results equal those of one run | `tests/cli` |
| a large image | blocks that are done are not evaluated again; the result is that of one run | `tests/large` |
| a worker of a cluster | no image is lost; one at which workers die is named | `tests/cluster` |
| two runs in one folder | the second is refused while the first is alive | `tests/cluster/test_lock.py` |
| a full disk | one line reports it; what was written before is whole | `tests/training`, `tests/cli`, `tests/large` |

## Loaded

- **The server**: [64 clients at once](../bench/results/cpu.md#the-server), some of which leave early, send junk or more
  than is allowed (`python -m bench.serve`): every request is answered or refused, and memory stays bounded. Slow
  clients, full queues and late answers are in `tests/serve`.
- **Large images**: [memory](../bench/results/cpu.md#large-images) from 10,000 to 100,000 px a side, each run killed on
  the way and continued (`python -m bench.large_memory`).
- **Many items**: [a million](../bench/results/cpu.md#work-on-dasks-workers) on a scheduler (`python -m bench.cluster`).

Not tried: a GPU that fails or runs out of memory on the way; network storage that loses its connection; clusters of
more than one machine.
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
    lines += ["", f"{cases:,} cases in {seconds / 60:.0f} minutes of one process, {held}. {versions}.", TAIL]
    return "\n".join(lines)
