"""The suite for pytest-benchmark, which stores and compares: pytest bench/ --benchmark-autosave

Every way is checked against the reference before it is timed, as in `overfeat bench --quick`, whose cases these are.
"""

import pytest

import overfeat.fast  # noqa: F401
from bench.suite.cases import SUITES, Machine
from bench.suite.command import set_up
from bench.suite.run import Run
from bench.tolerance import assert_matches
from overfeat.profiling.measure import synchronize

DEVICE = set_up("auto")


def cases():
    """Every way of every case."""
    machine = Machine(Run(None, DEVICE, None, "pytest bench/", quick=True))
    for name, suite in SUITES.items():
        for case in suite(machine):
            for way in case.ways:
                dtype = str(case.dtype).removeprefix("torch.")
                yield pytest.param(case, way, id=f"{name}, {case.op}, {case.shape}, {dtype}, {way}")


def pytest_generate_tests(metafunc):
    metafunc.parametrize(("case", "way"), list(cases()))


def test_speed(benchmark, case, way):
    case.inputs()
    how, like = case.ways[way], case.like(way)
    got = [how.run() for _ in range(how.warm)][-1]
    if like != way:
        assert_matches(got, case.ways[like].run(), case.dtype)
    benchmark.group = f"{case.suite}, {case.op}, {case.shape}, {case.dtype}"
    benchmark(lambda: (how.run(), synchronize(DEVICE)))
