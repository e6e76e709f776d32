"""Write BENCHMARKS.md, the pages and charts in bench/results, and README's table: python -m bench.report

Every number comes from bench/results/*.json, is computed, or is the paper's, and the last two are marked as such.
tests/bench/test_report.py fails if a page is out of date.
"""

import json
from collections.abc import Callable
from pathlib import Path

from bench.common import RESULTS, ROOT
from bench.pages import (
    cells,
    classification,
    cluster,
    detection,
    few_shot,
    gpu,
    kernels,
    large_memory,
    large_reading,
    localization,
    multibox,
    overview,
    profile,
    serve,
    six_scales,
    speed_detect,
    suite,
)
from bench.suite import charts
from overfeat.files import atomic_write

README = ROOT / "README.md"
MARKERS = "<!-- headline: written by python -m bench.report -->\n", "<!-- end of headline -->\n"
SINGLE_PAGES: dict[str, Callable[[dict], str]] = {
    "speed-detect": speed_detect.page,
    "kernel-report": kernels.page,
    "large-memory": large_memory.page,
    "cluster": cluster.page,
    "large-reading": large_reading.page,
    "serve": serve.page,
    "accuracy-classification": classification.page,
    "accuracy-localization": localization.page,
    "accuracy-detection": detection.page,
    "accuracy-cells": cells.page,
    "accuracy-multibox": multibox.page,
    "accuracy-six-scales": six_scales.page,
    "accuracy-few-shot": few_shot.page,
}


def read(folder: str) -> dict[str, dict]:
    """Results in a folder of bench/results by the name of their file, the CPU's first; dry runs are left out."""
    files = sorted((RESULTS / folder).glob("*.json"), key=lambda file: (file.stem != "cpu", file.stem))
    results = {file.stem: json.loads(file.read_text()) for file in files}
    return {name: result for name, result in results.items() if not result.get("dry run")}


def pages() -> dict[Path, str]:
    """The text of every generated file, README's included."""
    single, runs, profiles, gpus = read(""), read("suite"), read("profile"), read("gpu")
    texts = {RESULTS / f"{name}.md": SINGLE_PAGES[name](result) for name, result in single.items()}
    texts |= {RESULTS / "suite" / f"{name}.md": suite.page(name, result) for name, result in runs.items()}
    texts |= {RESULTS / "profile" / f"{name}.md": profile.page(result) for name, result in profiles.items()}
    for name, result in gpus.items():
        texts[RESULTS / "gpu" / f"{name}.md"] = gpu.page(name, result, runs.get(name, {}))
    others = single | {f"{folder}/{name}": result for folder, results in (("profile", profiles), ("gpu", gpus))
                       for name, result in results.items()}  # fmt: skip
    texts = {path: _marked(text) for path, text in texts.items()}
    texts[ROOT / "BENCHMARKS.md"] = overview.page(runs, others, list(gpus))
    texts[README] = readme(runs["cpu"])
    return texts


def drawings() -> dict[Path, tuple[Callable[[dict, Path], None], dict]]:
    """Every chart of the suite: its file -> the function that draws it, and the results."""
    drawn = {}
    for name, results in read("suite").items():
        if suite.has_headline(results):
            drawn[RESULTS / "suite" / f"{name}-headline.svg"] = charts.headline, results
        if results["growth"]:
            drawn[RESULTS / "suite" / f"{name}-growth.svg"] = charts.growth, results
    return drawn


def readme(run: dict) -> str:
    """README with its headline table from a run of the suite."""
    before, rest = README.read_text().split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    return f"{before}{MARKERS[0]}\n{suite.headline(run)}\n\n{MARKERS[1]}{after}"


def _marked(text: str) -> str:
    """A page with a note below its title that it is generated."""
    title, rest = text.split("\n", 1)
    return f"{title}\n\n<!-- Written by python -m bench.report from the JSON file beside it; do not edit. -->\n{rest}"


def main() -> None:
    for path, (draw, results) in drawings().items():
        if not path.exists() or charts.embedded_digest(path) != charts.digest(results):
            draw(results, path)
    for path, text in pages().items():
        with atomic_write(path) as part:
            part.write_text(text)
        print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
