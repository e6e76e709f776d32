"""Write BENCHMARKS.md, the pages and charts in bench/results, and the tables between markers: python -m bench.report

The prose is in the templates of bench/pages; every number comes from bench/results/*.json, is computed, or is a
paper's, and the last two are marked as such. A table of README or docs is between two markers:

<!-- NAME: written by python -m bench.report -->
<!-- end of NAME -->

tests/bench/test_report.py fails if a page is out of date.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench import tables
from bench.common import RESULTS, ROOT
from bench.gpu_figures import figures
from bench.kernel_report import rooflines, summary
from bench.suite import charts
from overfeat.files import atomic_write
from overfeat.profiling.table import table as profile_table

TEMPLATES = ROOT / "bench" / "pages"
MARKED = re.compile(r"(<!-- ([\w-]+): written by python -m bench.report -->\n).*?(<!-- end of \2 -->\n)", re.DOTALL)
CPU = "cpu"


def read() -> dict[str, dict]:
    """All results by their path below bench/results, without its ending; dry runs are left out."""
    files = sorted(RESULTS.rglob("*.json"))
    results = {str(path.relative_to(RESULTS).with_suffix("")): json.loads(path.read_text()) for path in files}
    return {name: result for name, result in results.items() if not result.get("dry run")}


def page_of(name: str, result: dict) -> str:
    """The page that shows results: of accuracy and of the compiler their own, else that of their machine."""
    if name == "kernel-report" or name.startswith("accuracy-"):
        return name
    on_cpu = result["machine"]["gpu"] == "none" or result.get("device") == CPU
    return CPU if on_cpu else Path(name).name


def pages() -> dict[Path, str]:
    """The text of every generated file, and of those that have tables between markers."""
    results = read()
    of_pages: dict[str, dict[str, dict]] = {}
    for name, result in results.items():
        of_pages.setdefault(page_of(name, result), {})[name] = result
    texts = {ROOT / "BENCHMARKS.md": render("benchmarks", results=results, pages=sorted(of_pages))}
    texts[RESULTS / "README.md"] = render("results", results=results)
    for page, of_page in of_pages.items():
        own = page in of_page
        shown = of_page[page] if own else of_page
        texts[RESULTS / f"{page}.md"] = render(page if own else "machine", name=page, results=shown)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if MARKED.search(before := path.read_text()):
            texts[path] = MARKED.sub(lambda m: f"{m[1]}\n{render(m[2], False, results=results)}\n{m[3]}", before)
    return texts


def render(template: str, whole: bool = True, **context: object) -> str:
    """A template with its context; whole: a page, with a note below its title that it is generated."""
    title, rest = tables.wrapped(environment().get_template(f"{template}.md").render(context)).split("\n", 1)
    note = f"\n<!-- Written by python -m bench.report from bench/pages/{template}.md; do not edit. -->\n"
    return "\n".join([title, note, rest.lstrip("\n")] if whole else [title, rest])


@cache
def environment() -> Environment:
    """With what the templates are written in: tables and formats, and summaries of results."""
    blanks = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    made = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, **blanks)
    functions = (tables.table, tables.cases, tables.compared, tables.detections, page_of, figures)
    made.globals |= {function.__name__: function for function in functions}
    made.globals |= {"profile_table": profile_table, "rooflines": rooflines, "kernel_summary": summary}
    formats = (tables.fixed, tables.number, tables.percent, tables.ms, tables.spread, tables.with_error)
    made.filters |= {function.__name__: function for function in (*formats, tables.measured, tables.device)}
    return made


def drawings() -> dict[Path, tuple[Callable[[dict, Path], None], dict]]:
    """Every chart of the suite: its file -> the function that draws it, and the results."""
    drawn = {}
    for name, results in read().items():
        if name.startswith("suite/") and charts.has_headline(results):
            drawn[RESULTS / f"{name}-headline.svg"] = charts.headline, results
        if name.startswith("suite/") and results["growth"]:
            drawn[RESULTS / f"{name}-growth.svg"] = charts.growth, results
    return drawn


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
