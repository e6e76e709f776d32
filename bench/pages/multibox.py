"""DeepMultiBox: its paper's figures and tables on synthetic images, beside OverFeat."""

from bench.pages.tables import measured_on, notes, percent, table

# Boxes that are classified, and detection@5 / classification@5 in percent of the paper's table 2.
WINDOWS = (1, 3, 5, 10, 25)
PAPER_WINDOWS = {1: "56.65 / 73.03", 3: "58.71 / 77.56", 5: "58.94 / 78.41", 10: "59.06 / 78.70", 25: "59.04 / 78.76"}
TOP_5 = ("detection5", "classification5")
COUNTS = (1, 5, 10, 25, 50, 100)
CROPS = {"both": "10 crops", "centre": "1 crop"}
MODELS = {
    "long": "long training",
    "prior": "short training: prior matching",
    "prediction": "prediction matching",
    "prediction-30": "prediction matching, alpha 30",
    "no-priors": "no priors, prediction matching",
    "digits-0-4": "digits 0 to 4 only",
    "single": "images of one digit",
}
SETS = {"multi": "multi-object", "single": "one digit", "digits-0-4": "digits 0 to 4", "digits-5-9": "digits 5 to 9"}
LONG = "long, {}, classified"


def summary(results: dict, models: int = len(MODELS)) -> str:
    """Recall of the multi-object set by number of boxes; models: how many are shown."""
    recall = results["recall"]["multi"]
    rows = [
        [f"{text}, {crops}", *(percent(recall[f"{name}, {key}"][n - 1]) for n in COUNTS)]
        for name, text in list(MODELS.items())[:models]
        for key, crops in CROPS.items()
    ]
    rows.append(["OverFeat detection", *(percent(recall["OverFeat"][n - 1]) for n in COUNTS)])
    return table(["recall, %, by boxes per image", *map(str, COUNTS)], rows)


def precision_summary(results: dict) -> str:
    """Average precision by the number of boxes that are classified."""
    maps = {name: values["map"] for name, values in results["precision"].items()}
    rows = [
        [title, *(_voc_and_coco(maps[f"{name}, {n}"]) for n in WINDOWS)]
        for title, name in (
            ("10 crops", LONG.format("both")),
            ("1 crop", LONG.format("centre")),
            ("10 crops, the paper's NMS threshold and square", "long, both, classified as in the paper"),
        )
    ]
    return table(["boxes classified", *map(str, WINDOWS)], rows)


def time_summary(results: dict) -> str:
    rows = [
        [title, f"{1000 * t['seconds']:.1f} ({1000 * t['p20']:.1f} to {1000 * t['p80']:.1f})", f"{t['ratio']:.2f}",
         f"{t['evaluations']:.0f}", f"{t['gmac']:.2f}"]
        for title, t in (
            ("OverFeat", results["time"]["OverFeat"]),
            *((f"DeepMultiBox, {crops}", results["time"][f"DeepMultiBox, {key}"]) for key, crops in CROPS.items()),
        )
    ]  # fmt: skip
    return table(["", "ms per image", "speed-up over OverFeat", "network evaluations", "GMAC"], rows)


def page(results: dict) -> str:
    errors, maps = results["standard errors"], {name: p["map"] for name, p in results["precision"].items()}
    images, chosen = results["images"], results["chosen"]
    return f"""# DeepMultiBox: class-agnostic boxes from one crop or ten

{measured_on(results)}

K = 100 boxes on the frozen feature layers of the detector, with three more layers, alpha = 0.3. A crop is a square of
143 px: 1 crop is the largest centred square of the image, 10 crops are that and 3 x 3 squares of 60 % of its size.
Test sets: {images["multi"]} images with none to eight digits ({results["objects"]["multi"]} in all),
{images["single"]} images of one digit, {images["digits-0-4"]} and {images["digits-5-9"]} multi-object images of the
digits 0 to 4 and 5 to 9. Target: a recall of 80 % with 10 boxes.

## Recall

Class-agnostic recall at an IoU of 0.5 with the 1 to 100 highest-confidence boxes of an image, in percent, on the
multi-object set (the paper's figure 1, on VOC 2007: 45.3 % with 10 boxes and 1 crop, 48 % with 10 crops). Standard
error of the long training with 10 crops and 10 boxes: {percent(errors["long, both"])} points; of the difference
between prior and prediction matching: {percent(errors["prior - prediction, both"])}.

{summary(results)}

![Recall against the number of boxes; precision against recall](multibox.png)

## Average precision

Mean average precision in percent (VOC, all points, at an IoU of 0.5 / COCO's mean over IoUs) of the long training, by
the number of boxes that are classified. OverFeat detection {_voc_and_coco(maps["OverFeat"])}; the true boxes,
classified, {_voc_and_coco(maps["true boxes"])}. An NMS threshold of {chosen["threshold"]:g} and the {chosen["square"]}
square are the best of those tried on {results["validation"]["images"]} validation images; the paper's are 0.5 and the
maximum square.

{precision_summary(results)}

{_classes(results)}

## One object per image

Top-5 predictions with one box per class, on images of one digit (the paper's table 2, on ILSVRC 2012: to compare the
order of the rows):

{_top_5(results)}

## Time

Images of the multi-object set, all methods in turns on the same images: median with the 20th and 80th percentile.
Network evaluations are windows for OverFeat, which share their layers; multiplications are computed.

{time_summary(results)}

## Across data sets

Class-agnostic average precision in percent (the paper's figure 5):

{_across_sets(results)}

Recall in percent with 10 boxes and 10 crops of a network whose boxes were never trained on the digits 5 to 9
(standard error of the difference on these: {percent(errors["digits-5-9: prior - digits-0-4"])}; the frozen feature
layers know all ten):

{_unseen_digits(results)}

## Thresholds

VOC's mean average precision on the validation images by NMS threshold and by the square that is classified:

{_thresholds(results)}

{notes("multibox")}
"""


def _voc_and_coco(values: dict) -> str:
    return f"{percent(values['voc'])} / {percent(values['coco'])}"


def _classes(results: dict) -> str:
    precision = results["precision"]
    digits = sorted(precision["OverFeat"]["classes"])
    rows = [
        [title, *(percent(precision[name]["classes"][digit]) for digit in digits)]
        for title, name in (
            ("DeepMultiBox, 10 crops, 10 boxes", LONG.format("both") + ", 10"),
            ("OverFeat", "OverFeat"),
        )
    ]
    return table(["VOC, %", *digits], rows)


def _top_5(results: dict) -> str:
    windows = results["windows"]
    rows = [
        [f"{title}, {n} windows", *(percent(windows[name][str(n)][key]) for key in TOP_5), papers.get(n, "")]
        for title, name, papers in (
            ("10 crops", LONG.format("both"), PAPER_WINDOWS),
            ("1 crop", LONG.format("centre"), {}),
            ("trained on these images (short), 10 crops", "single, both, classified", {}),
        )
        for n in WINDOWS
    ]
    rows.append(["OverFeat localization, six scales", *(percent(windows["OverFeat"][key]) for key in TOP_5), ""])
    truth = windows["true boxes"]["25"]
    rows.append(["the true box, classified", *(percent(truth[key]) for key in TOP_5), "82.81 / 82.81"])
    return table(["", "detection@5, %", "classification@5, %", "paper"], rows)


def _across_sets(results: dict) -> str:
    curves = results["class-agnostic"]
    rows = [
        [title, *(percent(curves[name][key]["ap"]) if key in curves[name] else "" for name in SETS)]
        for title, key in (
            ("multi-object (short)", "prior, both"),
            ("one digit", "single, both"),
            ("digits 0 to 4", "digits-0-4, both"),
            ("OverFeat (detection; localization)", "OverFeat"),
        )
    ]
    return table(["trained on", *SETS.values()], rows)


def _unseen_digits(results: dict) -> str:
    rows = [
        [title, *(percent(results["recall"][name][f"{key}, both"][9]) for name in ("digits-0-4", "digits-5-9"))]
        for title, key in (("trained on all ten digits", "prior"), ("trained on digits 0 to 4", "digits-0-4"))
    ]
    return table(["", SETS["digits-0-4"], SETS["digits-5-9"]], rows)


def _thresholds(results: dict) -> str:
    tried: dict[float, dict[str, float]] = {}
    for threshold, square, value in results["validation"]["map"]:
        tried.setdefault(threshold, {})[square] = value
    rows = [[f"{t:g}", *(percent(values[s]) for s in ("maximum", "minimum"))] for t, values in tried.items()]
    return table(["NMS threshold", "maximum square", "minimum square"], rows)
