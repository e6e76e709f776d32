"""Localization: scales, strides and regressors as in the paper's figure 9; merging; the thresholds tried."""

from bench.pages.tables import measured_on, notes, standard_error, table

# Top-5 localization error in percent on ImageNet: figure 9 and section 4.4.
PAPER = {"centre crop": "40", "2 scales": "31.5", "3 scales": "30.0 (3 to 4)", "4 scales": "30.0 (3 to 4)"}
REGRESSORS = ("scr-l2", "pcr-l2", "scr-iou")
STRIDES = ("fine", "coarse")
# Title, the rule whose threshold was tuned, and the variant of the test set.
RULES = (
    ("merged, normalised score (the default)", "scr-l2: normalised", "scr-l2, 6 scales, fine"),
    ("merged, normalised score, weighted by counts", "scr-l2: normalised, counts", "scr-l2: normalised, counts"),
    ("merged, gated distance of the centres", "scr-l2: centres", "scr-l2: centres"),
    ("merged, the paper's formula read literally", "scr-l2: sum", "scr-l2: sum"),
    ("non-maximum suppression", "scr-l2: NMS", "scr-l2: NMS"),
    ("highest-confidence box", None, "best single box"),
)


def summary(results: dict) -> str:
    """Top-5 error by scales, regressor and stride."""
    variants = results["test"]["errors"]
    scales = [
        name.split(", ", 1)[1].removesuffix(", fine")
        for name in variants
        if name.startswith("scr-l2, ") and "fine" in name
    ]
    head = ["top-5 error %", *(f"{name}, {stride}" for name in REGRESSORS for stride in STRIDES), "paper"]
    rows = [["centre crop", _error(results, "centre crop"), *[""] * 5, PAPER["centre crop"]]]
    rows += [
        [scale, *(_error(results, f"{name}, {scale}, {stride}") for name in REGRESSORS for stride in STRIDES),
         PAPER.get(scale, "")]
        for scale in scales
    ]  # fmt: skip
    return table(head, rows)


def page(results: dict) -> str:
    chosen, validation = results["chosen"], results["validation"]
    rules = [
        [title, f"{chosen[rule]:g}" if rule else "", _error(results, name, "top1"), _error(results, name)]
        for title, rule, name in RULES
    ]
    return f"""# Localization: scales, regressors, merging

{measured_on(results)}

The shipped small net with the regressors of `bench/accuracy/regressors.sh` (scr-iou is shipped): one box for all
classes (SCR) or one per class (PCR), trained with the squared error (L2) or 1 - IoU. {results["test"]["images"]}
synthetic test images with one digit each; an image counts as correct if one of its top-5 predictions has the right
class and a box with an IoU of at least 0.5, as in ILSVRC; ± is the standard error from the number of images. The
paper's column is its figure 9 and section 4.4, on ImageNet's validation set: to compare the order of the rows, not
the values.

{summary(results)}

![Localization error against the number of scales](localization.png)

## Merging

Boxes of six scales at fine stride (scr-l2). Each threshold is the best of those tried on {validation["images"]}
validation images:

{table(["", "threshold", "top-1 error %", "top-5 error %"], rules)}

## Thresholds

Top-1 / top-5 error in percent on the validation images, by the relative score threshold (a candidate is kept if its
score is at least this fraction of its class's maximum in the image; 0 keeps all, as in the paper) and by the match
threshold of the normalised score:

{_thresholds(validation)}

{notes("localization")}
"""


def _error(results: dict, name: str, k: str = "top5") -> str:
    rate = results["test"]["errors"][name][k]
    return f"{rate:.2f} ± {standard_error([rate], results['test']['images']):.2f}"


def _thresholds(validation: dict) -> str:
    """Errors by relative score threshold and match threshold."""
    tried = {0.7: validation["errors"]["scr-l2: normalised"]}
    for rule, rates in validation["errors"].items():
        if "relative threshold" in rule:
            tried[float(rule.rsplit(" ", 1)[1])] = rates
    thresholds = list(tried[0.7])
    rows = [
        [
            f"{relative:g}",
            *(f"{rates[t]['top1']:.1f} / {rates[t]['top5']:.1f}" if t in rates else "" for t in thresholds),
        ]
        for relative, rates in sorted(tried.items())
    ]
    return table(["relative threshold", *thresholds], rows)
