"""Detection: merging, negatives, context, scales; the thresholds tried; confidences of right and wrong boxes."""

from bench.pages.tables import measured_on, notes, percent, table

# Mean average precision on ILSVRC 2013's test set, in percent: figure 11 and section 5.
PAPER = "19.4 % in the competition (third), 24.3 % after longer training and with context; UvA's 22.6 % won"
SHORT = {
    "defaults": "short training: the defaults of `overfeat train detector`, with the small net",
    "half-hard": "short training: half hard negatives, half random", "hard": "hard negatives only",
    "random": "random negatives only", "none": "no negatives", "no-context": "without context features",
}  # fmt: skip
METRICS = {"voc": "VOC", "voc2007": "VOC 2007", "ilsvrc": "ILSVRC", "coco50": "COCO at 0.5", "coco": "COCO"}


def summary(results: dict) -> str:
    """Average precision of the shipped detector and its variants, merged and by NMS."""
    rows = [
        _variant(results, "long training (the shipped net)", "detector"),
        *(_variant(results, text, name) for name, text in SHORT.items() if f"{name}: greedy" in results["test"]["map"]),
        _variant(results, "the shipped net, coarse stride", "detector, coarse"),
    ]
    for stride in ("fine", "coarse"):
        rows += [
            _variant(results, f"{n} scale{'s' * (n > 1)}, {stride} stride", f"{n} scales, {stride}") for n in (1, 3, 6)
        ]
    return table(["", "VOC, merged", "VOC, NMS", "COCO, merged", "COCO, NMS"], rows)


def page(results: dict) -> str:
    test, images = results["test"], results["validation"]["images"]
    return f"""# Detection: merging, negatives, context, scales

{measured_on(results)}

{test["images"]} synthetic test images with none to eight digits, {test["objects"]} in all, of 24 to 100 px. Mean
average precision in percent at an IoU of 0.5 (VOC, all points; "COCO" is the mean over IoUs of 0.5 to 0.95). Its
standard error is {percent(test["standard error"])} points; that of the difference between greedy merging and NMS, on
the same images, is {percent(test["standard error of the difference to NMS"])}. Target: 85, and greedy merging no
worse than NMS. The paper's figure 11, on ImageNet: {PAPER}.

## Merging

The boxes of the shipped net (5 scales, fine stride). Match and score thresholds are the best of those tried on {images}
validation images:

{_rules(results)}

## Training and scales

{summary(results)}

![Precision against recall](detection.png)

## Confidences

Confidences of right and wrong boxes before and after accumulation: medians, the upper tenth of the wrong ones, the
ratio of the medians, and how often, in percent, a right box ranks above a wrong one. In the paper's slides the
confidence of one object grows from 1 to about 10 by accumulation, and to about 75 with fine stride:

{_confidences(results)}

## Thresholds

VOC's average precision on the validation images by match threshold and score threshold:

{_thresholds(results)}

{notes("detection")}
"""


def _variant(results: dict, title: str, name: str) -> list[str]:
    both = [results["test"]["map"][f"{name}: {rule}"] for rule in ("greedy", "NMS")]
    return [title, *(percent(values[key]) for key in ("voc", "coco") for values in both)]


def _rules(results: dict) -> str:
    rows = []
    for rule, (match_threshold, score_threshold) in results["chosen"].items():
        values = results["test"]["map"][f"detector: {rule}"]
        rows.append([rule, f"{match_threshold:g}", f"{score_threshold:g}", *(percent(values[key]) for key in METRICS),
                     f"{values['boxes']:.1f}"])  # fmt: skip
    return table(["", "match threshold", "score threshold", *METRICS.values(), "boxes per image"], rows)


def _confidences(results: dict) -> str:
    rows = [
        [name, f"{g['true']:.2f}", f"{g['false']:.2f}", f"{g['false 90 %']:.2f}", f"{g['true'] / g['false']:.1f}",
         percent(g["above"])]
        for name, g in results["gap"].items()
    ]  # fmt: skip
    return table(["", "right", "wrong", "wrong, upper tenth", "right / wrong", "right above wrong"], rows)


def _thresholds(results: dict) -> str:
    rows, score_thresholds = [], []
    for rule, tried in results["validation"]["map"].items():
        by_match: dict[float, dict[float, float]] = {}
        for match_threshold, score_threshold, value in tried:
            by_match.setdefault(match_threshold, {})[score_threshold] = value
        score_thresholds = sorted({score_threshold for _, score_threshold, _ in tried})
        rows += [
            [rule, f"{match_threshold:g}", *(percent(values[threshold]) for threshold in score_thresholds)]
            for match_threshold, values in by_match.items()
        ]
    head = ["", "match threshold", *(f"score threshold {threshold:g}" for threshold in score_thresholds)]
    return table(head, rows)
