"""Charts of the suite's results: SVG, with a digest of the results that each was drawn from."""

import hashlib
import html
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bench.suite.machine import COMPILED, DIRECT, EAGER, FAST, LOOP, MONAI, NAIVE, OURS
from bench.suite.runtimes import ONNXRUNTIME, OPENVINO
from overfeat.files import atomic_write

HUES = {
    FAST: "#d1495b", DIRECT: "#e88b97", OURS: "#edae49", EAGER: "#30638e", COMPILED: "#00798c", LOOP: "#8d96a3",
    NAIVE: "#5c5c5c", MONAI: "#a9a9a9", ONNXRUNTIME: "#6a4c93", OPENVINO: "#8ac926",
}  # fmt: skip


def digest(results: dict) -> str:
    """Identifies the results of a chart: their command, date and commit, and a hash of the rows."""
    machine, rows = results["machine"], repr((results["rows"], results["growth"]))
    return f"{results['command']}, {machine['date']}, {machine['commit']}, {hashlib.sha256(rows.encode()).hexdigest()}"


def embedded_digest(path: Path) -> str:
    """The digest in a chart."""
    match = re.search(r"<dc:description>\s*(.*?)\s*</dc:description>", path.read_text())
    return html.unescape(match[1]) if match else ""


def headline(results: dict, path: Path) -> None:
    """Six scales by each implementation, and the first full layer scale by scale, beside the measured peak."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    six = [r for r in results["rows"] if r["suite"] == "end-to-end" and r["dtype"] == "float32"]
    six.sort(key=lambda row: row["median"])
    left.barh([row["backend"] for row in six], [row["median"] for row in six],
              color=[HUES[row["backend"]] for row in six])  # fmt: skip
    white = {"color": "white", "pad": 0.5}
    for position, row in enumerate(six):
        left.text(row["median"], position, f" {row['median']:.3g} s", va="center", fontsize=8, zorder=3, bbox=white)
    bound = six[0]["flop"] / six[0]["peak_gflops"] / 1e9
    left.axvline(bound, color="black", linestyle="--", linewidth=1)
    left.text(bound, -0.55, " at the measured peak", fontsize=7, va="top")
    left.set(
        xscale="log", xlim=(min(bound, six[0]["median"]) / 3, 2.5 * six[-1]["median"]), ylim=(len(six) - 0.5, -0.9)
    )
    left.set_title(f"seconds an image: {six[0]['op']}, float32", fontsize=9)
    of_suite = [row for row in results["rows"] if row["suite"] == "classifier"]
    layer = [row for row in of_suite if row["op"] == "first full layer" and row["dtype"] == "float32"]
    for name in dict.fromkeys(row["backend"] for row in layer):
        selected = [row for row in layer if row["backend"] == name]
        right.plot(
            [_scale(row) for row in selected], [row["gflops"] for row in selected], "o-", label=name, color=HUES[name]
        )
    right.axhline(layer[0]["peak_gflops"], color="black", linestyle="--", linewidth=1)
    right.text(1, layer[0]["peak_gflops"], "measured peak", fontsize=7, va="bottom")
    right.set(xlabel="scale", ylabel="GFLOP/s of a direct convolution", ylim=0)
    right.set_title("first full layer, float32", fontsize=9)
    right.legend(fontsize=7)
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
