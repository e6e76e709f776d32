"""What the templates in bench/pages are written with: tables, number formats, and the cases of the suite."""

import math
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.suite.names import EXACT, FAST, NEIGHBOURS, OURS

BY_DESIGN = "by design"  # in the remark of a row whose result differs from the reference's
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
ENDINGS = ("", f"-{EXACT}", f"-{NEIGHBOURS}")


def table(head: str, rows: Iterable, caller: Callable[..., str]) -> str:
    """A Markdown table. Columns of numbers are set to the right; a column without any entry is left out.

    Args:
        head: titles of the columns, separated by |.
        rows: what each row is made from; a tuple is several arguments of `caller`.
        caller: gives the cells of a row, separated by |; in a template, a call block.
    """
    titles = _cells(head)
    lines = [_cells(caller(*row) if isinstance(row, tuple) else caller(row)) for row in rows]
    if wrong := [line for line in lines if len(line) != len(titles)]:
        raise ValueError(f"{len(titles)} columns, {head}, but {len(wrong[0])} cells: {wrong[0]}")
    columns = [column for column in zip(titles, *lines, strict=True) if any(column[1:])]
    if not columns:
        return "Not measured.\n"
    numeric = [all(re.match(r"[-+(]?\d", cell) for cell in cells if cell) for _, *cells in columns]
    rules = ["---:" if right and n else "---" for n, right in enumerate(numeric)]
    marked = zip(*([title, rule, *cells] for rule, (title, *cells) in zip(rules, columns, strict=True)), strict=True)
    return "".join(f"| {' | '.join(line)} |\n" for line in marked)


def wrapped(text: str) -> str:
    """The text with its paragraphs and list items filled; tables, code, headings and images stay as they are."""
    blocks = []
    for part in FENCED.split(text):
        fenced = part.startswith("```")
        for block in [part] if fenced else re.split(r"\n{2,}", part.strip("\n")):
            whole = fenced or block.startswith(("|", "#", "!", "<"))
            blocks.append(block if whole else "\n".join(map(_filled, re.split(r"\n(?=- )", block))))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _filled(item: str) -> str:
    indent = "  " if item.startswith("- ") else ""
    words = " ".join(item.split())
    return textwrap.fill(words, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _cells(text: str) -> list[str]:
    return [" ".join(cell.split()) for cell in text.split("|")]


# Formats. All but those of a whole measurement give "" for a value that is missing.


def fixed(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, without an exponent."""
    return fixed(value) if value is None or abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def percent(value: float | None, digits: int = 1) -> str:
    return fixed(None if value is None else 100 * value, digits)


def ms(row: dict | None) -> str:
    """The median in milliseconds."""
    return number(1e3 * row["median"]) if row else ""


def spread(row: dict | None) -> str:
    """The median in milliseconds with the 20th and 80th percentile; a single run has none."""
    if not row:
        return ""
    median, low, high = (number(1e3 * row[key], 4) for key in ("median", "p20", "p80"))
    return f"{median} (one run)" if row["repeats"] == 1 else f"{median} ({low} to {high})"


def with_error(rates: float | list[float], images: int, digits: int = 2) -> str:
    """A rate in percent, or the mean of several, with its standard error from the number of images."""
    mean = statistics.mean(rates if isinstance(rates, list) else [rates])
    error = 100 * math.sqrt(mean / 100 * (1 - mean / 100) / images)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def measured(results: dict, verb: str = "Measured") -> str:
    """Command, date and machine of a measurement."""
    m = results["machine"]
    return (
        f"{verb} with `{results['command']}` on {m['date']}: {device(results)} ({m['cpu capability']}), "
        f"Python {m['python']}, torch {m['torch']}, commit {m['commit']}."
    )


def device(results: dict) -> str:
    """The GPU of a measurement, or the CPU with the number of threads."""
    m = results["machine"]
    on_cpu = m["gpu"] == "none" or results.get("device") == "cpu"
    return f"{m['cpu']}, {m['threads']} thread{'s' * (m['threads'] != 1)}" if on_cpu else m["gpu"]


@dataclass(frozen=True)
class Case:
    """The rows of one case whose results are equal."""

    op: str
    shape: str
    dtype: str
    rows: tuple[dict, ...]

    def row(self, name: str) -> dict | None:
        """The row of an implementation, with whichever borders it was measured, or None."""
        by_name = {row["backend"]: row for row in self.rows}
        return next((by_name[name + ending] for ending in ENDINGS if name + ending in by_name), None)

    @property
    def ours(self) -> dict | None:
        """overfeat.fast, or overfeat where it is the same."""
        return self.row(FAST) or self.row(OURS)

    @property
    def best(self) -> dict | None:
        """The fastest alternative; one whose result differs by design only if there is no other."""
        others = [row for row in self.rows if row["baseline"]]
        equal = [row for row in others if BY_DESIGN not in row["remark"]]
        return min(equal or others, key=lambda row: row["median"], default=None)

    @property
    def alternative(self) -> str:
        """The name of `best`, without borders."""
        return re.sub(f"({'|'.join(ENDINGS[1:])})$", "", self.best["backend"]) if self.best else ""

    @property
    def ratio(self) -> float | None:
        """How many times as long the alternative takes."""
        return self.best["median"] / self.ours["median"] if self.best and self.ours else None

    @property
    def title(self) -> str:
        borders = next((e[1:] for e in ENDINGS[1:] if self.ours and self.ours["backend"].endswith(e)), "")
        return ", ".join(filter(None, (self.op, self.shape, borders, self.dtype * (self.dtype != "float32"))))


def cases(results: dict, suite: str) -> list[Case]:
    """The cases of a suite. Results that differ by design, as those of other borders, are a case of their own."""
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in results["rows"]:
        if row["suite"] == suite:
            groups.setdefault((row["op"], row["shape"], row["dtype"]), []).append(row)
    listed = []
    for key, rows in groups.items():
        others = [row for row in rows if BY_DESIGN in row["remark"]]
        same = [row for row in rows if row not in others]
        apart = any(not row["baseline"] for row in others)
        listed += [Case(*key, tuple(part)) for part in ((same, others) if apart else (rows,)) if part]
    return listed


def compared(results: dict, suite: str) -> list[Case]:
    """The cases of a suite with an alternative; of `densify` at a net's largest stride up to 1/4 of its window."""
    listed, largest = [case for case in cases(results, suite) if case.ratio], {}
    if suite != "densify":
        return listed
    strides = [int(re.search(r"stride (\d+)", case.shape)[1]) for case in listed]
    for case, stride in zip(listed, strides, strict=True):
        if 4 * stride <= int(case.shape.rsplit(" ", 1)[1]):
            largest[case.op] = max(stride, largest.get(case.op, 1))
    return [case for case, stride in zip(listed, strides, strict=True) if stride == largest.get(case.op)]


def detections(results: dict) -> list[Case]:
    """Detection from the file to the boxes, as cases: overfeat.fast, the eager backend, and nets in other runtimes."""
    peak = max(results["peaks"]["gemm"], results["peaks"]["convolution"]) / 1e9
    side, names, listed = results["large"]["side"], {"fast": FAST, "eager": "eager backend"}, []
    for title, entry in (("a test image", results["images"]), (f"{side}x{side}", results["large"])):
        rates = {"gflops": entry["gflops"], "fraction": entry["gflops"] / peak, "saved_flop": 0}
        rows = [
            {"backend": names.get(name, f"net in {name}"), "baseline": name != "fast", "remark": "", **times, **rates}
            for name, times in entry["seconds"].items()
        ]
        listed.append(Case("detect", f"{title}, {entry['positions']:,.0f} windows", "float32", tuple(rows)))
    return listed
