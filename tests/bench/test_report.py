"""README, BENCHMARKS.md and the pages and charts in bench/results are those that bench/results/*.json give."""

import json
import re

import pytest

from bench.common import RESULTS, ROOT
from bench.report import MARKED, drawings, page_of, pages, read
from bench.suite.charts import digest, embedded_digest
from overfeat.dense.scales import six_scales
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.flops import stage_macs

README, BENCHMARKS = ROOT / "README.md", ROOT / "BENCHMARKS.md"
RESULT_FILES = sorted(RESULTS.rglob("*.json"))


@pytest.fixture(scope="module")
def texts():
    return pages()


def test_every_page_is_up_to_date(texts):
    for path, text in texts.items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)} is out of date: python -m bench.report"
    expected = {RESULTS / f"{page_of(name, result)}.md" for name, result in read().items()}
    expected |= {RESULTS / "README.md", BENCHMARKS, README}
    assert expected <= texts.keys() and {*RESULTS.rglob("*.md")} <= expected


def test_tables_between_markers_are_written(texts):
    marked = [
        path for path in (README, *(ROOT / "docs").rglob("*.md")) if "written by python -m bench" in path.read_text()
    ]
    assert README in marked
    for path in marked:
        assert MARKED.search(path.read_text()) and "\n| " in MARKED.search(texts[path])[0], path


def test_benchmarks_is_short_and_its_links_exist(texts):
    for path, text in texts.items():
        for link in (part.split(")")[0] for part in text.split("](")[1:]):
            file, _, anchor = link.partition("#")
            if not link.startswith("http"):
                assert (path.parent / file).exists(), f"{path.name}: {link}"
                headings = (path.parent / file).read_text().splitlines() if anchor else []
                slugs = [re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in headings]
                assert not anchor or anchor in slugs, f"{path.name}: {link}"
    assert len(texts[BENCHMARKS].splitlines()) <= 150
    ours = " ".join(text.lower() for path, text in texts.items() if path == BENCHMARKS or RESULTS in path.parents)
    assert not [word for word in ("target", "missed") if word in ours]


def test_ratios_are_those_of_the_rows(texts):
    rows = [row for row in read()["suite/cpu"]["rows"] if (row["suite"], row["dtype"]) == ("end-to-end", "float32")]
    best = min((row for row in rows if row["baseline"] and "by design" not in row["remark"]), key=lambda r: r["median"])
    ours = next(row["median"] for row in rows if row["backend"] == "overfeat.fast")
    line = f"| {1e3 * ours:,.0f} | {best['backend']} | {1e3 * best['median']:,.0f} | {best['median'] / ours:.2f} |"
    assert line in texts[BENCHMARKS]


def test_charts_are_up_to_date():
    charts = drawings()
    assert charts
    for path, (_, results) in charts.items():
        assert embedded_digest(path) == digest(results), f"{path.name} is out of date: python -m bench.report"


@pytest.mark.parametrize("path", RESULT_FILES, ids=lambda path: path.name)
def test_results_are_shown_with_their_origin(path, texts):
    results = json.loads(path.read_text())
    assert results["command"] and results["machine"]["date"] and results["machine"]["commit"] != "unknown"
    name = str(path.relative_to(RESULTS).with_suffix(""))
    assert f"| `{name}.json` |" in texts[RESULTS / "README.md"]
    shown = " ".join(texts[RESULTS / f"{page_of(name, results)}.md"].split())
    assert f"with `{results['command']}` on {results['machine']['date']}" in shown, "bench/pages has no section for it"


def test_multiplications_are_those_of_the_paper():
    accurate, fast = ARCHITECTURES["accurate"], ARCHITECTURES["fast"]
    for architecture, millions in ((fast, 2801), (accurate, 5355)):
        window = architecture.window
        count = stage_macs(architecture, window, window, 1000, "coarse")
        assert count["positions"] == 1
        assert round(sum(count[part] for part in ("features", "first", "rest")) / 1e6) == millions
    six = [stage_macs(accurate, *size, 1000, "fine") for size in six_scales(accurate.geometry, 300, 400)]
    assert sum(count["positions"] for count in six) == 1575
    assert [round(sum(count[part] for count in six) / 1e9) for part in ("features", "first", "rest")] == [
        120,
        165,
        33,
    ]
