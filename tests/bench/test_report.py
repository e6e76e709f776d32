"""BENCHMARKS.md and README.md say what bench/results say."""

import json

import pytest

from bench.common import RESULTS, ROOT
from bench.report import PAGE, README, claims, drawings, page, readme
from bench.suite.pictures import digest, drawn_from
from overfeat.dense.scales import six_scales
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.flops import work


def test_the_page_is_what_the_results_give():
    assert PAGE.read_text() == page(), "BENCHMARKS.md is stale: make report"


def test_readme_says_what_the_results_give():
    assert README.read_text() == readme(), "README.md's table is stale: make report"
    said = " ".join(README.read_text().split())
    for claim in claims():
        assert claim in said, f"README.md should say: {claim}"


def test_pictures_are_drawn_from_the_results():
    found = drawings()
    assert found
    for path, (_, results) in found.items():
        assert drawn_from(path) == digest(results), f"{path.name} is stale: make report"


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.name)
def test_results_say_how_they_came_about(path):
    results = json.loads(path.read_text())
    assert results["command"] and results["machine"]["date"] and results["machine"]["commit"] != "unknown"
    assert str(path.relative_to(ROOT)) in page()


def test_work_is_that_of_the_paper():
    accurate, fast = ARCHITECTURES["accurate"], ARCHITECTURES["fast"]
    for architecture, millions in ((fast, 2801), (accurate, 5355)):
        window = architecture.window
        count = work(architecture, window, window, 1000, "coarse")
        assert count["places"] == 1
        assert round(sum(count[part] for part in ("features", "first", "rest")) / 1e6) == millions
    six = [work(accurate, *size, 1000, "fine") for size in six_scales(accurate, 300, 400)]
    assert sum(count["places"] for count in six) == 1575
    assert [round(sum(count[part] for count in six) / 1e9) for part in ("features", "first", "rest")] == [
        120,
        165,
        33,
    ]
