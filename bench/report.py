"""Write BENCHMARKS.md from bench/results/*.json: python -m bench.report

Every number in BENCHMARKS.md comes from those files, or from the paper and says so.
`tests/test_report.py` fails when the page and the files differ.
"""

import json
import math
import statistics

from bench.common import RESULTS, ROOT
from overfeat.files import replacing

PAGE = ROOT / "BENCHMARKS.md"

# The paper's table 2: top-1, top-5 error in percent on ImageNet's validation images.
PAPER = {
    "10 views": ("35.60", "14.71", "accurate"),
    "1 scale, coarse": ("39.28", "17.12", "fast"),
    "1 scale, fine": ("39.01", "16.97", "fast"),
    "4 scales, fine": ("38.57", "16.39", "fast"),
    "6 scales, fine": ("38.12", "16.27", "fast"),
}
PAPER_COMMITTEE = {"4 scales, fine": ("35.10", "13.86", "7 fast")}

HOW = """## How to run it

`make bench` measures speed (about three minutes on two cores), `make scenes committee` makes the scenes and
trains the five nets (an hour or more), `make accuracy` evaluates them (ten minutes),
and `make report` writes this page. Every result file in `bench/results` holds the command, the device, the
versions, the date and the commit. Ratios are of times from one run on one machine; times from different
machines are not compared.

## Not measured

Nothing here was measured on a GPU yet. ImageNet was not at hand, so the paper's own error rates are not
repeated; they stand beside ours to compare the order of the rows.
"""


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [
        " | ".join(head),
        " | ".join(["---"] + ["---:"] * (len(head) - 1)),
        *(" | ".join(row) for row in rows),
    ]
    return "\n".join(f"| {line} |" for line in lines)


def where(results: dict) -> str:
    """The line that says on what a table was measured."""
    m = results["machine"]
    return (
        f"Measured with `{results['command']}` on {m['date']}: {m['cpu']}, {m['threads']} threads "
        f"({m['cpu capability']}), GPU {m['gpu']}, Python {m['python']}, torch {m['torch']}, commit {m['commit']}."
    )


def spread(times: dict, unit: float = 1.0, digits: int = 2) -> str:
    """Median with the 20th and 80th percentile; a single run has no spread."""
    if times["repeats"] == 1:
        return f"{times['median'] * unit:.{digits}f} (one run)"
    return f"{times['median'] * unit:.{digits}f} ({times['p20'] * unit:.{digits}f} to {times['p80'] * unit:.{digits}f})"


def speed(results: dict) -> str:
    scale, stage, six = results["scale_6"], results["classifier"], results["six_scales"]
    memory, product = results["memory"], results["matrix_product_gflops"]
    extra = memory["peak"] - memory["weights"]
    goals = table(
        ["accurate net, float32, batch 1, stock torch", "measured", "target"],
        [
            [f"scale 6 ({scale['places']} windows), fine stride: whole image against every window cropped, "
             "times faster", f"{scale['ratio']:.1f}", "20"],
            ["classifier stage, six scales: one pass against the loop over 9 offsets, times faster",
             f"{stage['ratio']:.1f}", "3"],
            ["six scales, image to scores: fraction of a large matrix product's rate", f"{six['fraction']:.2f}", "0.6"],
            ["peak memory of the process beyond the weights, six scales (GB)", f"{extra * 2**20 / 1e9:.2f}", "1.5"],
        ],
    )  # fmt: skip
    stages = table(
        ["scale", "places", "one pass, ms", "loop over offsets, ms", "times faster", "largest difference"],
        [
            [str(s["scale"]), str(s["places"]), spread(s["ours"], 1e3, 0), spread(s["loop"], 1e3, 0),
             f"{s['loop']['median'] / s['ours']['median']:.1f}", f"{s['difference']:.1e}"]
            for s in stage["scales"]
        ],
    )  # fmt: skip
    return f"""## Dense evaluation on a CPU

{where(results)}

{goals}

Scale 6 takes {spread(scale["whole"])} s over the whole image and {spread(scale["naive"])} s window by
window, in batches of 16. The padded convolutions make these two not quite the same function: inside the
image a window's border sees its real neighbours where a crop sees zeros. The classifier stage, from the
last maps on, is exactly the same function; the difference below is relative to the largest output.

All six scales, {six["places"]} places, without the mirror image, take {spread(six["seconds"])} s:
{six["gflop"]:.0f} GFLOP (computed from the net) at {six["gflops"]:.0f} GFLOP/s, where a 4096 x 4096 matrix
product reached {product[0]:.0f} GFLOP/s before and {product[1]:.0f} after in the same run. The matrix product is
not the machine's limit (a 3 x 3 convolution can pass it), so the fraction can exceed 1.

The classifier stage scale by scale, and all six in one pass over the weights: {spread(stage["packed"], 1e3, 0)} ms.

{stages}
"""


def accuracy(results: dict) -> str:
    images, nets = results["images"], results["nets"]
    rows = []
    for way, rates in results["single"].items():
        name = "5 views (10 without the mirrored)" if way == "10 views" and not results["flip"] else way
        top1, top5 = ([r[k] for r in rates] for k in ("top1", "top5"))
        paper = PAPER.get(way, ("", "", ""))
        rows.append([name, f"{statistics.mean(top1):.2f} ± {error(top1, images):.2f}",
                     f"{min(top1):.2f} to {max(top1):.2f}", f"{statistics.mean(top5):.2f}", *paper])  # fmt: skip
    for way, rates in results["committee"].items():
        rows.append([f"committee of {nets}, {way}", f"{rates['top1']:.2f} ± {error([rates['top1']], images):.2f}", "",
                     f"{rates['top5']:.2f}", *PAPER_COMMITTEE.get(way, ("", "", ""))])  # fmt: skip
    head = ["voting", "top-1 error %, mean", "over the nets", "top-5 error %", "paper: top-1", "top-5", "net"]
    note = (ROOT / "bench" / "accuracy" / "classification.md").read_text().strip()
    return f"""## Classification: ways of voting

{where(results)}

{nets} small nets (`make committee`), each with another seed, on {images} made-up test scenes with one digit each;
± is the standard error from the number of scenes. The paper's columns are its table 2, on ImageNet: for the order
of the rows, not for the values.

{table(head, rows)}

{note}
"""


def error(rates: list[float], images: int) -> float:
    """Standard error, in percent, of a mean rate in percent over `images` images."""
    rate = statistics.mean(rates) / 100
    return 100 * math.sqrt(rate * (1 - rate) / images)


def page() -> str:
    return "\n".join(
        [
            "# Benchmarks\n\n<!-- Written by python -m bench.report from bench/results; do not edit. -->\n",
            speed(read("speed-dense")),
            accuracy(read("accuracy-classification")),
            HOW,
        ]
    )


def main() -> None:
    with replacing(PAGE) as part:
        part.write_text(page())
    print(f"written to {PAGE.name}")


if __name__ == "__main__":
    main()
