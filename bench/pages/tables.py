"""Markdown tables, number formats, and the line that states the measurement behind a table."""

import math
import statistics

from bench.common import ROOT


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [
        " | ".join(head),
        " | ".join(["---"] + ["---:"] * (len(head) - 1)),
        *(" | ".join(row) for row in rows),
    ]
    return "\n".join(f"| {line} |" for line in lines)


def measured_on(results: dict, verb: str = "Measured") -> str:
    """Command, date and machine of a measurement."""
    m = results["machine"]
    return (
        f"{verb} with `{results['command']}` on {m['date']}: {m['cpu']}, {m['threads']} threads "
        f"({m['cpu capability']}), GPU {m['gpu']}, Python {m['python']}, torch {m['torch']}, commit {m['commit']}."
    )


def notes(name: str) -> str:
    """The discussion of an accuracy experiment, from bench/accuracy/NAME.md."""
    return (ROOT / "bench" / "accuracy" / f"{name}.md").read_text().strip()


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def milliseconds(row: dict) -> str:
    """Median with the 20th and 80th percentile; a single run has no spread."""
    median, low, high = (number(1e3 * row[key], 4) for key in ("median", "p20", "p80"))
    return f"{median} (one run)" if row["repeats"] == 1 else f"{median} ({low} to {high})"


def standard_error(rates: list[float], images: int) -> float:
    """Standard error, in percent, of a mean rate in percent over `images` images."""
    rate = statistics.mean(rates) / 100
    return 100 * math.sqrt(rate * (1 - rate) / images)
