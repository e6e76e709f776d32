"""The suite's cases for pytest-benchmark, which stores and compares: pytest bench/ --benchmark-autosave

Every implementation is checked against its reference before it is timed, as in `python -m bench --quick`.
"""

import pytest

import overfeat.fast  # noqa: F401
from bench.suite.cases import SUITES
from bench.suite.machine import Machine
from bench.suite.measure import set_up
from bench.suite.runner import Run
from bench.suite.timing import arithmetic
from bench.tolerance import assert_matches
from overfeat.profiling.measure import synchronize

DEVICE = set_up("auto")


def cases():
    """Every implementation of every case."""
    machine = Machine(Run(None, DEVICE, None, "pytest bench/", quick=True))
    for suite in SUITES.values():
        for case in suite(machine):
            for name in case.implementations:
                yield pytest.param(case, name, id=f"{case.title}, {name}")


def pytest_generate_tests(metafunc):
    metafunc.parametrize(("case", "name"), list(cases()))


def test_speed(benchmark, case, name):
    case.inputs()
    implementation, reference = case.implementations[name], case.reference_for(name)
    with arithmetic(case.dtype):
        actual = result_of(implementation, implementation.warmup)
        if reference != name:
            assert_matches(actual, result_of(case.implementations[reference]), case.dtype)
        benchmark.group = case.title
        benchmark(lambda: (implementation.run(), synchronize(DEVICE)))


def result_of(implementation, times=1):
    result = [implementation.run() for _ in range(times)][-1]
    return implementation.result(result) if implementation.result else result
