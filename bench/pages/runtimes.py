"""The library beside ONNX Runtime and OpenVINO: times of every case that has them, and the targets."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.pages.tables import number, table
from bench.suite.machine import EAGER, EXACT, FAST, NEIGHBOURS
from bench.suite.runtimes import ONNXRUNTIME, OPENVINO

SHOWN = (FAST, ONNXRUNTIME, OPENVINO, EAGER)
# Targets, speed-ups over the better of the two: by suite or image, of other cases, and in bfloat16.
TARGETS, TARGET, BFLOAT16_TARGET = {"end-to-end": 1.5, "1000x1000": 1.3}, 1.15, 1.0
HEAD = ["net, image", "dtype", *(f"{name}, ms" for name in SHOWN), "speed-up over the better runtime"]


@dataclass(frozen=True)
class Compared:
    """One case: median seconds of each implementation that was measured, and the borders of a converted net, or ""."""

    suite: str
    op: str
    shape: str
    dtype: str
    borders: str
    seconds: dict[str, float]

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (self.op, self.shape, self.borders)))

    @property
    def speedup(self) -> float:
        """Over the better of the runtimes."""
        return min(self.seconds[name] for name in (ONNXRUNTIME, OPENVINO) if name in self.seconds) / self.seconds[FAST]


def compared(results: dict) -> Iterator[Compared]:
    """The cases of a run that have the library and a runtime."""
    cases: dict[tuple[str, ...], dict[str, float]] = {}
    for row in results["rows"]:
        key = tuple(row[name] for name in ("suite", "op", "shape", "dtype"))
        cases.setdefault(key, {})[row["backend"]] = row["median"]
    for key, medians in cases.items():
        for borders in ("", EXACT, NEIGHBOURS):
            suffix = f"-{borders}" if borders else ""
            names = {name: name + suffix for name in SHOWN} | ({EAGER: EAGER} if borders == NEIGHBOURS else {})
            seconds = {name: medians[other] for name, other in names.items() if other in medians}
            if FAST in seconds and {ONNXRUNTIME, OPENVINO} & seconds.keys():
                yield Compared(*key, borders, seconds)


def summary(results: dict, dtype: str | None = None) -> str:
    """Every case, or those of a dtype, with its times and the speed-up; "" for a run without the runtimes."""
    rows = [
        [case.title, case.dtype,
         *(number(1e3 * case.seconds[name]) if name in case.seconds else "" for name in SHOWN),
         f"{case.speedup:.2f}"]
        for case in compared(results) if dtype in (None, case.dtype)
    ]  # fmt: skip
    return table(HEAD, rows) if rows else ""


def targets(results: dict) -> list[tuple[str, float, float, bool]]:
    """As `suite.targets`: of built-in nets, at every size."""
    return [
        (f"{case.title}, {case.dtype}, {FAST}: speed-up over the better of {ONNXRUNTIME} and {OPENVINO}",
         case.speedup, _bound(case), True)
        for case in compared(results) if not case.borders
    ]  # fmt: skip


def _bound(case: Compared) -> float:
    if case.dtype != "float32":
        return BFLOAT16_TARGET
    return next((bound for part, bound in TARGETS.items() if part in (case.suite, case.shape.split(",")[0])), TARGET)
