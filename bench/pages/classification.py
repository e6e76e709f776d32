"""Classification: the protocols of the paper's table 2."""

import statistics

from bench.pages.tables import measured_on, notes, standard_error, table

# The paper's table 2: top-1 and top-5 error in percent on ImageNet's validation set, and the net.
PAPER = {
    "10 views": ("35.60", "14.71", "accurate"),
    "1 scale, coarse": ("39.28", "17.12", "fast"),
    "1 scale, fine": ("39.01", "16.97", "fast"),
    "4 scales, fine": ("38.57", "16.39", "fast"),
    "6 scales, fine": ("38.12", "16.27", "fast"),
}
PAPER_ENSEMBLE = {"4 scales, fine": ("35.10", "13.86", "7 fast")}
HEAD = ["protocol", "top-1 error %, mean", "range over the nets", "top-5 error %", "paper: top-1", "top-5", "net"]
SUMMARIZED = ("centre crop", *PAPER)


def summary(results: dict) -> str:
    """The rows that the paper has, and the ensemble."""
    rows = [_single(results, name) for name in results["single"] if name in SUMMARIZED]
    return table(HEAD, rows + [_ensemble(results, name) for name in results["ensemble"]])


def page(results: dict) -> str:
    rows = [_single(results, name) for name in results["single"]]
    rows += [_ensemble(results, name) for name in results["ensemble"]]
    return f"""# Classification: protocols

{measured_on(results)}

{results["nets"]} small nets (`bench/accuracy/classifiers.sh`) with different seeds, on {results["images"]} synthetic
test images with one digit each; ± is the standard error from the number of images. The paper's columns are its table
2, on ImageNet: to compare the order of the rows, not the values.

{table(HEAD, rows)}

{notes("classification")}
"""


def _single(results: dict, name: str) -> list[str]:
    """The mean over the nets, one at a time."""
    rates = results["single"][name]
    top1, top5 = ([rate[key] for rate in rates] for key in ("top1", "top5"))
    title = "5 views (no horizontal flip)" if name == "10 views" and not results["flip"] else name
    return [title, f"{statistics.mean(top1):.2f} ± {standard_error(top1, results['images']):.2f}",
            f"{min(top1):.2f} to {max(top1):.2f}", f"{statistics.mean(top5):.2f}",
            *PAPER.get(name, ("", "", ""))]  # fmt: skip


def _ensemble(results: dict, name: str) -> list[str]:
    """All nets together."""
    rates = results["ensemble"][name]
    error = standard_error([rates["top1"]], results["images"])
    return [f"ensemble of {results['nets']}, {name}", f"{rates['top1']:.2f} ± {error:.2f}", "", f"{rates['top5']:.2f}",
            *PAPER_ENSEMBLE.get(name, ("", "", ""))]  # fmt: skip
