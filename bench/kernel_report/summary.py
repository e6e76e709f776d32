"""Summaries of the rows of a kernel report, for its page."""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace

from bench.kernel_report import sass
from bench.kernel_report.bounds import BOUNDS, MEASURES, Bound


def maxima(kernels: Iterable[dict]) -> list[tuple[str, dict[str, dict]]]:
    """(kernel and arithmetic, {chip: most registers, spilled and shared bytes, and the matrix instructions})."""
    with_matrix = {row["kernel"] for row in kernels if _matrix(row)}
    groups: dict[str, dict[str, list[dict]]] = {}
    for row in kernels:
        kind = "16 bit" if row["kind"] in ("float16", "bfloat16") else row["kind"]
        name = f"{row['kernel']}, {kind}" if row["kernel"] in with_matrix else row["kernel"]
        groups.setdefault(name, {}).setdefault(row["chip"], []).append(row)
    return [
        (name, {chip: _maximum(rows) for chip, rows in of_chips.items()}) for name, of_chips in sorted(groups.items())
    ]


def worst(kernels: Iterable[dict]) -> Iterator[tuple[Bound, list, list[str], list[int]]]:
    """(bound, the kernels that it is for, its limits in words, their worst value of each limit)."""
    rows = [SimpleNamespace(**row | {"code": _code(row["code"])}) for row in kernels if row["code"]]
    for bound in BOUNDS:
        matching = [row for row in rows if bound.matches(row)]
        limits = [(name, "≤", limit, max) for name, limit in bound.at_most.items()]
        limits += [(name, "≥", limit, min) for name, limit in bound.at_least.items()]
        words = [f"{name} {sign} {limit}" for name, sign, limit, _ in limits]
        values = [pick(map(MEASURES[name], matching)) for name, _, _, pick in limits if matching]
        yield bound, matching, words, values


def _maximum(rows: list[dict]) -> dict:
    values = {key: max(row[key] for row in rows) for key in ("registers", "spills", "shared")}
    words = {word for row in rows for word in _matrix(row).split() if not word.startswith("x")}
    return {**values, "matrix": " ".join(sorted(words))}


def _matrix(row: dict) -> str:
    return row["code"]["matrix"] if row["code"] else ""


def _code(code: dict) -> sass.Code:
    return sass.Code(**code | {"step": sass.Loop(**code["step"])})
