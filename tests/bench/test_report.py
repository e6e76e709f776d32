"""README, BENCHMARKS.md and the pages and charts in bench/results are those that bench/results/*.json give."""

import json

import pytest

from bench.common import RESULTS, ROOT
from bench.report import README, drawings, pages
from bench.suite.charts import digest, embedded_digest
from overfeat.dense.scales import six_scales
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.flops import stage_macs

RESULT_FILES = sorted(RESULTS.rglob("*.json"))


@pytest.fixture(scope="module")
def texts():
    return pages()


def test_every_page_is_up_to_date(texts):
    for path, text in texts.items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)} is out of date: python -m bench.report"
    expected = {path.with_suffix(".md") for path in RESULT_FILES} | {ROOT / "BENCHMARKS.md", README}
    assert texts.keys() == expected and {*RESULTS.rglob("*.md")} <= expected


def test_benchmarks_is_short_and_its_links_exist(texts):
    for path, text in texts.items():
        for link in (part.split(")")[0] for part in text.split("](")[1:]):
            assert link.startswith("http") or (path.parent / link.split("#")[0]).exists(), f"{path.name}: {link}"
    assert len(texts[ROOT / "BENCHMARKS.md"].splitlines()) <= 250


def test_charts_are_up_to_date():
    charts = drawings()
    assert charts
    for path, (_, results) in charts.items():
        assert embedded_digest(path) == digest(results), f"{path.name} is out of date: python -m bench.report"


@pytest.mark.parametrize("path", RESULT_FILES, ids=lambda path: path.name)
def test_results_record_their_origin(path, texts):
    results = json.loads(path.read_text())
    assert results["command"] and results["machine"]["date"] and results["machine"]["commit"] != "unknown"
    assert f"[{path.relative_to(RESULTS)}]" in texts[ROOT / "BENCHMARKS.md"]


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
