"""A pytest plugin for tests on a GPU: several processes share the tests and record each outcome at once.

    pytest -p bench.checks --record FILE --shard I/N TESTS

FILE has a line of JSON per event: {"test", "shard", "outcome", "message"}; the outcome is "started", "passed",
"skipped" or "failed". Tests that have another outcome than "started" there are not run again. The first tests are those
whose results matter most, and those that may take the device down come last.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from bench.common import LOST_STATUS

FIRST, LAST = "test_full_size", "test_fragile"
MAX_MESSAGE = 2000


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path)
    parser.addoption("--shard", default="0/1")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config.getoption("record"), config.getoption("shard")))


def events(record: Path) -> Iterator[dict]:
    """The events of a record, without what was cut off, as on a full disk."""
    for line in record.read_text().splitlines() if record.exists() else ():
        with suppress(ValueError):
            yield json.loads(line)


def outcomes(record: Path) -> dict[str, dict]:
    """The last event of every test in a record."""
    return {event["test"]: event for event in events(record) if "test" in event}


class Recorder:
    """Runs every N-th test and appends its events to the record, each in one write."""

    def __init__(self, record: Path, shard: str):
        self.record, self.shard = record, shard

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if torch.cuda.is_available():  # the CPU's tests run elsewhere
            items[:] = [item for item in items if _device(item) != "cpu"]
        items.sort(key=lambda item: 2 * (LAST in item.nodeid) + (FIRST not in item.nodeid))
        index, shards = map(int, self.shard.split("/"))
        self._write({"collected": len(items), "shard": self.shard})
        done = {test for test, event in outcomes(self.record).items() if event["outcome"] != "started"}
        items[:] = [item for item in items[index::shards] if item.nodeid not in done]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._event(report.nodeid, "failed", str(report.longrepr).strip().splitlines()[-1])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._event(nodeid, "started")
        self.outcome, self.message = "passed", ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or (report.skipped and self.outcome == "passed"):
            crash = getattr(report.longrepr, "reprcrash", None)
            self.outcome = "failed" if report.failed else "skipped"
            self.message = crash.message if crash else report.longrepr[-1] if report.skipped else str(report.longrepr)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        error = _device_error()
        if error and self.outcome != "failed":
            self.outcome, self.message = "failed", error
        self._event(nodeid, self.outcome, self.message)
        if error:
            pytest.exit("the device no longer responds", returncode=LOST_STATUS)

    def _event(self, test: str, outcome: str, message: str = "") -> None:
        self._write({"test": test, "shard": self.shard, "outcome": outcome, "message": message[:MAX_MESSAGE]})

    def _write(self, event: dict) -> None:
        with self.record.open("a") as file:
            file.write(json.dumps(event) + "\n")


def _device(item: pytest.Item) -> object:
    """The parameter `device` of a test, if it has one."""
    return item.callspec.params.get("device") if hasattr(item, "callspec") else None


def _device_error() -> str:
    """Why the device no longer responds, or an empty text; leaves its free memory to the other processes."""
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            return str(error)
    return ""
