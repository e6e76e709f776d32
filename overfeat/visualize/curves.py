"""Charts: precision and recall, DeepMultiBox's detection rate, the time of each region."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from overfeat.visualize.figures import new_figure, save


def precision_recall(results: dict, path: str | Path) -> None:
    """Draw the curves of `evaluate_detection`."""
    figure = new_figure(6, 5)
    axis = figure.subplots()
    for name, curve in results["curves"].items():
        precision = f"{name} {100 * results['ap'][name]['voc']:.1f} %"
        axis.plot(curve["recall"], curve["precision"], label=precision, linewidth=1)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    axis.set_title(f"mean average precision {100 * (results['map']['voc'] or 0):.1f} % at an IoU of 0.5 (VOC)")
    if results["curves"]:
        axis.legend(fontsize=7, loc="lower left")
    axis.grid(alpha=0.3)
    save(figure, path)


def multibox(results: dict, path: str | Path) -> None:
    """Draw the detection rate and class-agnostic precision of `evaluate_multibox` (DeepMultiBox's figures 1 and 5)."""
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    left.plot(range(1, len(results["rate"]) + 1), results["rate"], linewidth=1.2)
    left.set(xlabel="boxes per image", ylabel="detection rate", xscale="log", xlim=(1, None), ylim=(0, 1.01))
    curve = results["agnostic"]
    right.plot(curve["recall"], curve["precision"], linewidth=1.2)
    right.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    right.set_title(f"class-agnostic average precision {100 * curve['ap']:.1f} %")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save(figure, path)


def stage_times(results: dict, titles: Sequence[str], path: str | Path) -> None:
    """Draw the result of `profile`: a bar of regions and its rate for each of results["grids"] and results["whole"]."""
    entries = [*results["grids"], results["whole"]]
    figure = new_figure(10, 1.6 + 0.4 * len(entries))
    axis = figure.subplots()
    left = np.zeros(len(entries))
    for name in dict.fromkeys(name for entry in entries for name in entry["regions"]):
        elapsed = np.array([1000 * e["regions"].get(name, {"seconds": 0})["seconds"] for e in entries])
        axis.barh(list(titles), elapsed, left=left, label=name)
        left += elapsed
    for i, entry in enumerate(entries):
        axis.text(left[i], i, f" {entry['gflops']:.0f} GFLOP/s, {100 * entry['fraction']:.0f} %", va="center")
    axis.invert_yaxis()
    axis.set(xlabel="ms", xlim=(0, 1.3 * left.max()))
    peak = max(results["measured_peaks"]["gflops"].values())
    axis.set_title(f"{results['net']} net, {results['dtype']}; in percent of the measured peak, {peak:.0f} GFLOP/s")
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)
