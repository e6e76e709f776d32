"""What the accuracy experiments found, for BENCHMARKS.md; the notes below the tables are the .md files beside this."""

import math
import statistics

from bench.common import ROOT
from bench.pages.tables import table, where

# The paper's table 2: top-1, top-5 error in percent on ImageNet's validation images.
PAPER = {
    "10 views": ("35.60", "14.71", "accurate"),
    "1 scale, coarse": ("39.28", "17.12", "fast"),
    "1 scale, fine": ("39.01", "16.97", "fast"),
    "4 scales, fine": ("38.57", "16.39", "fast"),
    "6 scales, fine": ("38.12", "16.27", "fast"),
}
PAPER_COMMITTEE = {"4 scales, fine": ("35.10", "13.86", "7 fast")}

# Top-5 localization error in percent: figure 9 and section 4.4.
PAPER_LOCALIZATION = {"centre crop": "40", "2 scales": "31.5", "3 scales": "30.0 (3 to 4)", "4 scales": "30.0 (3 to 4)"}
# Mean average precision on ILSVRC 2013's test set, in percent: figure 11 and section 5.
PAPER_DETECTION = "19.4 % in the competition (third), 24.3 % after longer training and with context; UvA's 22.6 % won"


def classification(results: dict) -> str:
    """The ways of voting, beside the paper's table 2."""
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


def localization(results: dict) -> str:
    """The variants of the paper's figure 9, what merges the boxes, and what was tried."""
    test, chosen, images = results["test"]["errors"], results["chosen"], results["test"]["scenes"]

    def cell(way: str, k: str = "top5") -> str:
        return f"{test[way][k]:.2f} ± {error([test[way][k]], images):.2f}"

    nets = {"scr-l2": ("fine", "coarse"), "pcr-l2": ("fine", "coarse"), "scr-iou": ("fine", "coarse")}
    scales = [
        way.split(", ", 1)[1].removesuffix(", fine") for way in test if way.startswith("scr-l2, ") and "fine" in way
    ]
    head = ["top-5 error %", *(f"{name}, {stride}" for name, strides in nets.items() for stride in strides), "paper"]
    rows = [["centre crop", cell("centre crop"), *[""] * 5, PAPER_LOCALIZATION["centre crop"]]]
    rows += [
        [scale, *(cell(f"{name}, {scale}, {stride}") for name, strides in nets.items() for stride in strides),
         PAPER_LOCALIZATION.get(scale, "")]
        for scale in scales
    ]  # fmt: skip
    rules = [
        [name, f"{chosen[rule]:g}" if rule else "", cell(way, "top1"), cell(way)]
        for name, rule, way in (
            ("merged, normalised score (the default)", "scr-l2: normalised", "scr-l2, 6 scales, fine"),
            (
                "merged, normalised score, weighted by counts",
                "scr-l2: normalised, counts",
                "scr-l2: normalised, counts",
            ),
            ("merged, gated distance of the centres", "scr-l2: centres", "scr-l2: centres"),
            ("merged, the paper's words read literally", "scr-l2: sum", "scr-l2: sum"),
            ("non-maximum suppression", "scr-l2: NMS", "scr-l2: NMS"),
            ("best single box", None, "best single box"),
        )
    ]
    tried = {0.7: results["validation"]["errors"]["scr-l2: normalised"]}
    for rule, rates in results["validation"]["errors"].items():
        if "share" in rule:
            tried[float(rule.rsplit(" ", 1)[1])] = rates
    thresholds = list(tried[0.7])
    shares = [
        [f"{share:g}", *(f"{rates[t]['top1']:.1f} / {rates[t]['top5']:.1f}" if t in rates else "" for t in thresholds)]
        for share, rates in sorted(tried.items())
    ]
    note = (ROOT / "bench" / "accuracy" / "localization.md").read_text().strip()
    return f"""## Localization: scales, regressors, merging

{where(results)}

The small net that ships, with the regressors of `make regressors` (scr-iou ships): one box for all classes (SCR) or
one a class (PCR), by the squared difference (L2) or 1 - IoU. {images} made-up test scenes with one digit each; a
scene is right if one of five guesses names the digit and overlaps its box by half, as in ILSVRC; ± is the standard
error from the number of scenes. The paper's column is its figure 9 and section 4.4, on ImageNet's validation images:
for the order of the rows, not for the values.

{table(head, rows)}

![Localization error against the number of scales](bench/results/localization.png)

What becomes of the boxes of six scales at fine stride (scr-l2); each threshold is the best of those tried on
{results["validation"]["scenes"]} validation scenes:

{table(["", "threshold", "top-1 error %", "top-5 error %"], rules)}

Top-1 and top-5 error on the validation scenes by `share` (the least score of a place whose box counts, as a part of
its class's best in the image; 0 leaves out nothing, as the paper has it) and the threshold of the normalised score:

{table(["share", *thresholds], shares)}

{note}
"""


def detection(results: dict) -> str:
    """Merging, negatives, context, strides and sizes; the thresholds; true boxes and false ones."""
    test, chosen = results["test"], results["chosen"]

    def row(name: str, way: str) -> list[str]:
        found = [test["map"].get(f"{way}: {rule}") for rule in ("greedy", "NMS")]
        return [name, *(f"{100 * f['voc']:.1f}" for f in found), *(f"{100 * f['coco']:.1f}" for f in found)]

    rules = []
    for rule, (threshold, least) in chosen.items():
        found = test["map"][f"detector: {rule}"]
        figures = [f"{100 * found[key]:.1f}" for key in ("voc", "voc2007", "ilsvrc", "coco50", "coco")]
        rules.append([rule, f"{threshold:g}", f"{least:g}", *figures, f"{found['boxes']:.1f}"])
    variants = [row("long training (the net that ships)", "detector")]
    names = {"mixed": "short training: half hard negatives, half random", "hard": "hard negatives alone",
             "random": "random negatives alone", "none": "no negatives", "no-context": "without context"}  # fmt: skip
    variants += [row(text, name) for name, text in names.items()]
    variants.append(row("the net that ships, coarse stride", "detector, coarse"))
    for stride in ("fine", "coarse"):
        variants += [row(f"{n} size{'s' * (n > 1)}, {stride} stride", f"{n} sizes, {stride}") for n in (1, 3, 6)]
    gaps = [
        [name, f"{g['true']:.2f}", f"{g['false']:.2f}", f"{g['false 90 %']:.2f}", f"{g['true'] / g['false']:.1f}",
         f"{100 * g['above']:.1f}"]
        for name, g in results["gap"].items()
    ]  # fmt: skip
    tried = []
    for rule, ways in results["validation"]["map"].items():
        best = {}
        for threshold, least, value in ways:
            best.setdefault(threshold, {})[least] = value
        leasts = sorted({least for _, least, _ in ways})
        tried += [
            [rule, f"{threshold:g}", *(f"{100 * values[least]:.1f}" for least in leasts)]
            for threshold, values in best.items()
        ]
    note = (ROOT / "bench" / "accuracy" / "detection.md").read_text().strip()
    return f"""## Detection: merging, negatives, context, sizes

{where(results)}

{test["scenes"]} made-up test scenes with none to eight digits, {test["objects"]} in all, of 24 to 100 px. Mean average
precision in percent at an IoU of 0.5 (VOC, all points; "COCO" is the mean over IoUs of 0.5 to 0.95). Its standard error
is {100 * test["error"]:.1f} points; that of the difference between greedy merging and NMS, on the same scenes, is
{100 * test["error of the difference to NMS"]:.1f}. Target: 85, and greedy no worse than NMS. The paper's figure 11, on
ImageNet: {PAPER_DETECTION}.

What becomes of the boxes of the net that ships (5 sizes, fine stride). Thresholds, and the score that a place needs for
its box to count (`least`), are the best of those tried on {results["validation"]["scenes"]} validation scenes:

{table(["", "threshold", "least", "VOC", "VOC 2007", "ILSVRC", "COCO at 0.5", "COCO", "boxes an image"], rules)}

{table(["", "VOC, greedy", "VOC, NMS", "COCO, greedy", "COCO, NMS"], variants)}

![Precision against recall](bench/results/detection.png)

Confidences of right and wrong boxes before and after accumulation (medians; the wrong ones' upper tenth; the ratio of
the medians; how often, in percent, a right one is above a wrong one). The paper's slides show one object's go from
1 to about 10 by accumulation, and to about 75 with fine stride:

{table(["", "right", "wrong", "wrong, upper tenth", "right / wrong", "right above wrong"], gaps)}

VOC's average precision on the validation scenes by threshold and `least`:

{table(["", "threshold", *(f"least {least:g}" for least in leasts)], tried)}

{note}
"""


def error(rates: list[float], images: int) -> float:
    """Standard error, in percent, of a mean rate in percent over `images` images."""
    rate = statistics.mean(rates) / 100
    return 100 * math.sqrt(rate * (1 - rate) / images)
