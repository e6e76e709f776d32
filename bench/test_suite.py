"""The suite for pytest-benchmark, which stores and compares: pytest bench/ --benchmark-autosave

Every way is checked against the reference before it is timed, as in `overfeat bench --quick`, whose cases these are.
"""

import pytest

import overfeat.fast  # noqa: F401
from bench.suite.cases import SUITES, Machine
from bench.suite.run import Run
from bench.tolerance import assert_matches
from overfeat.processes import choose_device


def cases():
    """Every way of every case; what is left out is told on stderr."""
    machine = Machine(Run(None, choose_device("auto"), None, "pytest bench/", quick=True), quick=True)
    for name, suite in SUITES.items():
        for case in suite(machine):
            for way in case.ways:
                yield pytest.param(case, way, id=f"{name}, {case.op}, {case.shape}, {way}")


def pytest_generate_tests(metafunc):
    metafunc.parametrize(("case", "way"), list(cases()))


def test_speed(benchmark, case, way):
    case.inputs()
    how, like = case.ways[way], case.like(way)
    got = [how.run() for _ in range(how.warm)][-1]
    if like != way:
        assert_matches(got, case.ways[like].run(), case.dtype)
    benchmark.group = f"{case.suite}, {case.op}, {case.shape}"
    benchmark(how.run)
