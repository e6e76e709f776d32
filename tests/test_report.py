"""BENCHMARKS.md says what bench/results say."""

from bench.report import PAGE, page
from overfeat.architectures import ARCHITECTURES
from overfeat.measuring import work


def test_the_page_is_what_the_results_give():
    assert PAGE.read_text() == page(), "BENCHMARKS.md is stale: make report"


def test_work_is_that_of_the_paper():
    accurate, fast = ARCHITECTURES["accurate"], ARCHITECTURES["fast"]
    for architecture, millions in ((fast, 2801), (accurate, 5355)):
        window = architecture.window
        count = work(architecture, window, window, 1000, "coarse")
        assert count["places"] == 1
        assert round(sum(count[part] for part in ("features", "first", "rest")) / 1e6) == millions
    six = [work(accurate, *size, 1000, "fine") for size in accurate.six_scales(300, 400)]
    assert sum(count["places"] for count in six) == 1575
    assert [round(sum(count[part] for count in six) / 1e9) for part in ("features", "first", "rest")] == [
        120,
        165,
        33,
    ]
