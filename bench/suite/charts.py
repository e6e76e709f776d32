"""Charts of the suite's results: SVG, with a digest of the results that each was drawn from."""

import hashlib
import html
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bench.suite.names import COMPILED, DIRECT, EAGER, FAST, LOOP, MONAI, NAIVE, ONNXRUNTIME, OPENVINO, OURS
from overfeat.files import atomic_write

HUES = {
    FAST: "#d1495b", DIRECT: "#e88b97", OURS: "#edae49", EAGER: "#30638e", COMPILED: "#00798c", LOOP: "#8d96a3",
    NAIVE: "#5c5c5c", MONAI: "#a9a9a9", ONNXRUNTIME: "#6a4c93", OPENVINO: "#8ac926",
}  # fmt: skip
COMPARED = (OURS, EAGER, COMPILED, ONNXRUNTIME, OPENVINO)  # at each scale


def digest(results: dict) -> str:
    """Identifies the results of a chart: their command, date and commit, and a hash of the rows."""
    machine, rows = results["machine"], repr((results["rows"], results["growth"]))
    return f"{results['command']}, {machine['date']}, {machine['commit']}, {hashlib.sha256(rows.encode()).hexdigest()}"


def embedded_digest(path: Path) -> str:
    """The digest in a chart."""
    match = re.search(r"<dc:description>\s*(.*?)\s*</dc:description>", path.read_text())
    return html.unescape(match[1]) if match else ""


def has_headline(results: dict) -> bool:
    """Whether a run measured what the headline's chart shows; an interrupted one may not have."""
    measured = {(row["suite"], row["backend"]) for row in results["rows"] if row["dtype"] == "float32"}
    return {("end-to-end", FAST), ("dense", FAST)} <= measured


def headline(results: dict, path: Path) -> None:
    """Six scales of the accurate net by each implementation, and scale by scale relative to overfeat.fast."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    rows = [row for row in results["rows"] if row["dtype"] == "float32"]
    six = sorted((row for row in rows if row["suite"] == "end-to-end"), key=lambda row: row["median"])
    left.barh([row["backend"] for row in six], [row["median"] for row in six],
              color=[HUES[row["backend"]] for row in six])  # fmt: skip
    for position, row in enumerate(six):
        left.text(row["median"], position, f" {row['median']:.3g} s", va="center", fontsize=8)
    left.set(xscale="log", xlim=(six[0]["median"] / 2, 3 * six[-1]["median"]), ylim=(len(six) - 0.5, -0.5))
    left.set_title("accurate net, six scales of an image: seconds", fontsize=9)
    dense = [row for row in rows if row["suite"] == "dense"]
    fast = {_scale(row): row["median"] for row in dense if row["backend"] == FAST}
    for name in COMPARED:
        points = [(_scale(row), row["median"] / fast[_scale(row)]) for row in dense if row["backend"] == name]
        if points:
            right.plot(*zip(*points, strict=True), "o-", label=name, color=HUES[name])
    right.axhline(1, color=HUES[FAST], linewidth=2)
    right.text(6, 1, FAST, color=HUES[FAST], fontsize=8, va="bottom", ha="right")
    right.set(xlabel="scale", ylim=0)
    right.set_title("one scale: time relative to overfeat.fast", fontsize=9)
    right.legend(fontsize=7)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    _write(figure, results, path)


def growth(results: dict, path: Path) -> None:
    """Time and memory against size, with the fitted exponents."""
    entries = results["growth"]
    figure = Figure(figsize=(1.7 * len(entries), 6.5), layout="constrained")
    for axis, entry in zip(figure.subplots(2, -(-len(entries) // 2)).ravel(), entries, strict=True):
        sizes = [point["size"] for point in entry["points"]]
        axis.loglog(sizes, [1e3 * point["median"] for point in entry["points"]], "o-", color=HUES[FAST],
                    label=f"ms, exponent {entry['time exponent']:.2f}")  # fmt: skip
        if "memory exponent" in entry:
            axis.loglog(sizes, [point["peak_bytes"] / 1e6 for point in entry["points"]], "s--",
                        color=HUES[EAGER], label=f"MB, exponent {entry['memory exponent']:.2f}")  # fmt: skip
        axis.set_xticks(sizes, [f"{size:,.0f}" if size > 100 else f"{size:.3g}" for size in sizes])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_title(entry["what"], fontsize=8)
        axis.set_xlabel(entry["unit"], fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7)
    _write(figure, results, path)


def _scale(row: dict) -> int:
    """The number of the scale that a row measures."""
    return int(re.search(r"scale (\d)", row["shape"])[1])


def _write(figure: Figure, results: dict, path: Path) -> None:
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "overfeat"}), atomic_write(path) as part:
        figure.savefig(part, format="svg", metadata={"Date": None, "Description": digest(results)})
