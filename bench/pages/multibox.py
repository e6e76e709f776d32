"""What DeepMultiBox does on made-up scenes, for BENCHMARKS.md; the note below the tables is multibox.md."""

from bench.common import ROOT
from bench.pages.tables import table, where

# DeepMultiBox: boxes that are classified, and detection@5 / classification@5 in percent of its table 2.
WINDOWS = (1, 3, 5, 10, 25)
PAPER_WINDOWS = {1: "56.65 / 73.03", 3: "58.71 / 77.56", 5: "58.94 / 78.41", 10: "59.06 / 78.70", 25: "59.04 / 78.76"}
GUESSES = ("detection5", "classification5")


def multibox(results: dict) -> str:
    """DeepMultiBox: its paper's figures and tables, beside OverFeat's way."""
    rate, errors, precision = results["rate"], results["errors"], results["precision"]
    scenes, threshold, square = results["scenes"], results["chosen"]["threshold"], results["chosen"]["square"]

    def percent(value: float) -> str:
        return f"{100 * value:.1f}"

    counts = (1, 5, 10, 25, 50, 100)
    of = rate["crowds"]
    rows = [
        [f"{text}, {crops}", *(percent(of[f"{name}, {way}"][n - 1]) for n in counts)]
        for name, text in (
            ("long", "long training"),
            ("prior", "short training: prior matching"),
            ("prediction", "prediction matching"),
            ("prediction-30", "prediction matching, alpha 30"),
            ("no-priors", "no priors, prediction matching"),
            ("low", "digits 0 to 4 alone"),
            ("scenes", "scenes of one digit"),
        )
        for way, crops in (("both", "10 crops"), ("centre", "1 crop"))
    ]
    rows.append(["OverFeat detection", *(percent(of["OverFeat"][n - 1]) for n in counts)])
    found = {way: figures["map"] for way, figures in precision.items()}
    long = "long, {}, classified"
    maps = [
        [name, *(f"{percent(found[f'{way}, {n}']['voc'])} / {percent(found[f'{way}, {n}']['coco'])}" for n in WINDOWS)]
        for name, way in (
            ("10 crops", long.format("both")),
            ("1 crop", long.format("centre")),
            ("10 crops, the paper's suppression and square", "long, both, classified as in the paper"),
        )
    ]
    beside = "; ".join(
        f"{name} {percent(found[way]['voc'])} / {percent(found[way]['coco'])}"
        for name, way in (("OverFeat detection", "OverFeat"), ("the true boxes, classified,", "true boxes"))
    )
    digits = sorted(precision["OverFeat"]["classes"])
    classes = [
        [name, *(percent(precision[way]["classes"][digit]) for digit in digits)]
        for name, way in (("DeepMultiBox, 10 crops, 10 boxes", "long, both, classified, 10"), ("OverFeat", "OverFeat"))
    ]
    guesses = [
        [
            f"{name}, {n} windows",
            percent(of_way[str(n)]["detection5"]),
            percent(of_way[str(n)]["classification5"]),
            paper,
        ]
        for name, way, papers in (
            ("10 crops", long.format("both"), PAPER_WINDOWS),
            ("1 crop", long.format("centre"), {}),
            ("trained on these scenes (short), 10 crops", "scenes, both, classified", {}),
        )
        for of_way in (results["windows"][way],)
        for n in WINDOWS
        for paper in (papers.get(n, ""),)
    ]
    overfeat, truth = results["windows"]["OverFeat"], results["windows"]["true boxes"]["25"]
    guesses.append(["OverFeat localization, six scales", *(percent(overfeat[k]) for k in GUESSES), ""])
    guesses.append(["the true box, classified", *(percent(truth[k]) for k in GUESSES), "82.81 / 82.81"])
    times = [
        [way, f"{1000 * t['seconds']:.1f} ({1000 * t['p20']:.1f} to {1000 * t['p80']:.1f})", f"{t['ratio']:.2f}",
         f"{t['evaluations']:.0f}", f"{t['gmac']:.2f}"]
        for way, t in results["time"].items()
    ]  # fmt: skip
    agnostic = [
        [name, *(percent(results["agnostic"][data][way]["ap"]) if way in results["agnostic"][data] else ""
                 for data in ("crowds", "scenes", "low", "high"))]
        for name, way in (
            ("short training on crowds", "prior, both"), ("on scenes of one digit", "scenes, both"),
            ("on crowds of digits 0 to 4", "low, both"), ("OverFeat (detection; localization)", "OverFeat"),
        )
    ]  # fmt: skip
    unseen = [
        [name, *(percent(rate[data][f"{way}, both"][9]) for data in ("low", "high"))]
        for name, way in (("trained on all ten digits", "prior"), ("trained on digits 0 to 4", "low"))
    ]
    tried = {}
    for t, s, value in results["validation"]["map"]:
        tried.setdefault(t, {})[s] = value
    chosen = [[f"{t:g}", *(percent(values[s]) for s in ("maximum", "minimum"))] for t, values in tried.items()]
    note = (ROOT / "bench" / "accuracy" / "multibox.md").read_text().strip()
    difference = errors["prior - prediction, both"]
    return f"""## DeepMultiBox: boxes of anything from one crop, or ten

{where(results)}

K = 100 boxes on the feature layers of the detector, kept as they are, and three layers more, alpha = 0.3; a crop is
one evaluation of the net on a square of 143 px: 1 crop is the largest square in the middle of the scene, 10 crops
are that and 3 x 3 squares of 60 % of its size. {scenes["crowds"]} crowds (test scenes with none to eight digits,
{results["objects"]["crowds"]} in all), {scenes["scenes"]} scenes of one digit, {scenes["low"]} and {scenes["high"]}
crowds of digits 0 to 4 and of 5 to 9. Target: 80 % of the objects found by 10 boxes.

Objects of the crowds, in percent, that the surest 1 to 100 boxes of a scene overlap by half, whatever the digit (its
paper's figure 1, on VOC 2007: 45.3 % by 10 boxes with 1 crop, 48 % with 10). Standard error of the long training, 10
crops, 10 boxes: {percent(errors["long, both"])} points; of the difference between prior and prediction matching:
{percent(difference)}:

{table(["objects found, %", *(str(n) for n in counts)], rows)}

Mean average precision in percent (VOC, all points, at an IoU of 0.5 / COCO's mean over IoUs) of the long training by
how many boxes are classified. {beside}. Suppression at an IoU of {threshold:g} and the {square} square are the best of
those tried on {results["validation"]["scenes"]} validation scenes; the paper's are 0.5 and the maximum square:

{table(["boxes classified", *map(str, WINDOWS)], maps)}

{table(["VOC, %", *digits], classes)}

One box a class, five guesses, on scenes of one digit (its paper's table 2, on ILSVRC 2012: for the order of the rows):

{table(["", "detection@5, %", "classification@5, %", "paper"], guesses)}

Time an image of the crowds, all methods in turn on the same scenes (milliseconds, median with the 20th and 80th
percentile; how many times as fast as OverFeat's detection), evaluations of a net (for OverFeat: windows, which share
their layers), and the multiplications that they take (computed):

{table(["", "ms", "times as fast", "evaluations", "GMAC"], times)}

Class-agnostic average precision across data sets, in percent (its paper's figure 5):

{table(["trained on", "crowds", "one digit", "crowds of 0 to 4", "crowds of 5 to 9"], agnostic)}

![Objects found against the number of boxes; precision against recall](bench/results/multibox.png)

Objects found by 10 boxes, 10 crops, in percent, by a net whose boxes were never trained on digits 5 to 9 (standard
error of the difference on these: {percent(errors["high: prior - low"])}; the feature layers, which stay as they are,
know all ten):

{table(["", "crowds of 0 to 4", "crowds of 5 to 9"], unseen)}

VOC's mean average precision on the validation scenes by the IoU of suppression and the square that is classified:

{table(["IoU", "maximum square", "minimum square"], chosen)}

{note}
"""
