"""The suite's page."""

import json

from bench.common import RESULTS
from bench.pages.suite import targets
from bench.suite.machine import MONAI, WBF


def test_targets_beside_a_baseline_that_was_not_measured():
    results = json.loads((RESULTS / "suite" / "cpu.json").read_text())
    every = [name for name, *_ in targets(results)]
    for row in results["rows"]:
        for name in (MONAI, WBF):
            row["speedups"].pop(name, None)
    left = [name for name, *_ in targets(results)]
    assert set(every) - set(left) == {
        "scale 6, overfeat.fast: speed-up over monai",
        "merging 1,575 boxes: speed-up over weighted box fusion",
    }
