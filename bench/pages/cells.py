"""Detection of blood cells in micrographs (BCCD): starts, negatives, border, few images, merging, published figures."""

import statistics

from bench.pages.tables import measured_on, notes, percent, table

# The trainings of bench/accuracy/cells.sh.
DEFAULT, SHORT = "default", "short"
SEEDS = {name: (name, f"{name}-seed-1", f"{name}-seed-2") for name in (DEFAULT, SHORT)}
TITLES = {
    DEFAULT: "default",
    "default-seed-1": "default, seed 1",
    "default-seed-2": "default, seed 2",
    "20-images": "default, the first 20 training images alone",
    SHORT: "short training",
    "short-seed-1": "short training, seed 1",
    "short-seed-2": "short training, seed 2",
    "frozen": "SqueezeNet's features frozen",
    "digits": "start: the digit net that ships, context features",
    "scratch": "start: none (the small net, context features)",
    "random": "random negatives only",
    "hard": "hard negatives from the start",
    "half-hard": "half hard negatives, half random",
    "no-reach": "no windows beyond the border",
    "multibox": "DeepMultiBox, SqueezeNet's features frozen",
}
COARSE = (DEFAULT,)  # measured at coarse stride, too
RULED = SEEDS[DEFAULT]  # measured with every rule of post-processing
CLASSES = ("RBC", "WBC", "Platelets")
FEW = "20-images"
ACROSS, COARSE_RULES = ", across classes", ", coarse"  # endings of the names of rules
# Of BCCD, in percent at an IoU of 0.5, with splits and image sizes of their own: to compare the order of magnitude.
PUBLISHED = {
    "YOLOv8n (Yang et al.)": ("90.4", "[Yang et al., PMC13023828](https://pmc.ncbi.nlm.nih.gov/articles/PMC13023828/)"),
    "YOLOv8n (Chen et al.)": ("92.4", "[Chen et al. 2025](https://doi.org/10.1049/cvi2.12341), whose own net has 94.7"),
    "Faster R-CNN, ResNet-101 FPN": (
        "90.3", "[Inf. Technol. Control 54(3), 2025](https://doi.org/10.5755/j01.itc.54.3.39342): the best of five",
    ),
    "YOLOv5s": ("94.5", "the same: the best of 16 YOLOs"),
}  # fmt: skip
ERRORS = ("standard error", "standard error of the difference to NMS")
HEAD = ["", "mean AP, %", *CLASSES, "COCO, %", "minutes of training"]
MINUTES = 60  # targets, in percent but for times
TARGETS = {"map": 92.0, "RBC": 85.0, FEW: 84.0, "seconds": 1.5}


def summary(results: dict) -> str:
    """The figures of the default, from few images and of DeepMultiBox."""
    nets = results["nets"]
    return table(HEAD, [_figures(nets, name) for name in (DEFAULT, FEW, "multibox") if name in nets])


def targets(results: dict) -> dict[str, bool]:
    """Every target that was measured, in words, and whether it is reached."""
    nets, reached = results["nets"], {}
    if default := nets.get(DEFAULT):
        values = default["detect"]["fine"]
        merged, nms = (100 * default["rules"][rule]["map"] for rule in ("greedy", "NMS"))
        minutes, seconds = default["training"]["seconds"] / 60, default["seconds an image"]
        mean, red = 100 * values["map"], 100 * values["classes"]["RBC"]
        reached |= {
            f"mean AP {mean:.1f} %, at least {TARGETS['map']:g}": mean >= TARGETS["map"],
            f"RBC {red:.1f} %, at least {TARGETS['RBC']:g}": red >= TARGETS["RBC"],
            f"greedy merging {merged:.1f} %, no worse than NMS with {nms:.1f} %": merged >= nms,
            f"training in {minutes:.0f} minutes, at most {MINUTES}": minutes <= MINUTES,
            f"detection in {seconds:.2f} s an image, at most {TARGETS['seconds']:g}": seconds <= TARGETS["seconds"],
        }
    if FEW in nets:
        mean = 100 * nets[FEW]["detect"]["fine"]["map"]
        reached[f"from 20 images {mean:.1f} %, at least {TARGETS[FEW]:g}"] = mean >= TARGETS[FEW]
    return reached


def page(results: dict) -> str:
    test, validation, nets = results["data"]["test"], results["data"]["val"], results["nets"]
    reached = [f"- {'reached' if good else 'missed'}: {line}" for line, good in targets(results).items()]
    errors = [percent(nets[DEFAULT][key]) for key in ERRORS] if DEFAULT in nets else []
    error = (
        f"The default's standard error by the jackknife over images is {errors[0]} points, that of its difference to "
        f"NMS, on the same images, {errors[1]}."
        if errors
        else ""
    )
    return f"""# Detection of blood cells: starts, negatives, border, few images

{measured_on(results)}

{test["images"]} test images of BCCD, of 640x480 px, with {test["objects"]} red and white cells and platelets. VOC's
average precision in percent at an IoU of 0.5 (all points); COCO's is the mean over IoUs of 0.5 to 0.95. {error}

## Targets

{chr(10).join(reached) or "The default was not measured."}

## Trainings

As `overfeat detect` uses each net, with the thresholds that its weights have. The default is `overfeat train detector
--data BCCD --out DIR`, without any other option; all rows from "short training" on to "no windows beyond the border"
have the same images, tiles and number of epochs, and differ from it in one respect each. The minutes are those of the
logs, of one core or two that other work used at times.

{table(HEAD, [_figures(nets, name) for name in TITLES if name in nets])}

{_seeds(nets)}

## Merging beside NMS

"greedy" is merging, "voting" box voting. Thresholds are the best of those tried on the {validation["images"]}
validation images, for each row and column. Mean average precision; in brackets its change by NMS across classes, which
drops a box with a higher-scoring one of another class, too:

{_rules(nets)}

## Strides

{_strides(nets)}

## Published figures

Other splits, image sizes and trainings than here; none of them was run here.

{table(["", "mean AP, %", "source"], [[title, value, source] for title, (value, source) in PUBLISHED.items()])}

## Thresholds

The default's mean average precision on the validation images:

{_thresholds(nets)}

## Origin of each row

{_origins(nets)}

{notes("cells")}
"""


def _figures(nets: dict, name: str) -> list[str]:
    """A row below HEAD."""
    net = nets[name]
    values = net["detect"]["fine"]
    seconds = sum(net[key]["seconds"] for key in ("training", "training of the classifier") if key in net)
    classes = [percent(values["classes"][key]) if key in values["classes"] else "" for key in CLASSES]
    return [TITLES[name], percent(values["map"]), *classes, percent(values["coco"]), f"{seconds / 60:.0f}"]


def _seeds(nets: dict) -> str:
    """The spread over seeds."""
    lines = []
    for name, seeds in SEEDS.items():
        values = [100 * nets[seed]["detect"]["fine"]["map"] for seed in seeds if seed in nets]
        if len(values) > 1:
            lines.append(
                f"{TITLES[name].capitalize()}, {len(values)} seeds: {statistics.mean(values):.1f} % on average, "
                f"{min(values):.1f} to {max(values):.1f} %."
            )
    return " ".join(lines) or "One seed each."


def _rules(nets: dict) -> str:
    rows, names = [], _rule_names(nets)
    for name, title in TITLES.items():
        if name in nets and "rules" in nets[name]:
            values = {rule: 100 * figures["map"] for rule, figures in nets[name]["rules"].items()}
            changes = {rule: values[rule + ACROSS] - values[rule] for rule in names}
            rows.append([title, *(f"{values[rule]:.1f} ({changes[rule]:+.1f})" for rule in names)])
    return table(["", *names], rows)


def _rule_names(nets: dict) -> list[str]:
    """The rules of post-processing that were measured: greedy merging, NMS."""
    rules = next((net["rules"] for net in nets.values() if "rules" in net), {})
    return [rule for rule in rules if rule + ACROSS in rules and not rule.endswith(COARSE_RULES)]


def _strides(nets: dict) -> str:
    rows, names = [], _rule_names(nets)
    for name in COARSE:
        for stride, ending in (("fine", ""), ("coarse", COARSE_RULES)) if name in nets else ():
            rules = [percent(nets[name]["rules"][rule + ending]["map"]) for rule in names]
            rows.append([f"{TITLES[name]}, {stride}", percent(nets[name]["detect"][stride]["map"]), *rules])
    return table(["", "`overfeat detect`", *names], rows)


def _thresholds(nets: dict) -> str:
    if DEFAULT not in nets:
        return "Not measured."
    keys = ("threshold", "score_threshold", "class_iou")
    rows = [
        [one["name"], *(f"{one[key]:g}" for key in keys), percent(one["map"])] for one in nets[DEFAULT]["validation"]
    ]
    return table(["", "threshold", "score threshold", "IoU across classes", "mean AP, %"], rows)


def _origins(nets: dict) -> str:
    """Where and when each training was measured; they may come from several machines."""
    rows = []
    for name, title in TITLES.items():
        if name in nets:
            m, trained = nets[name]["machine"], nets[name]["training"]
            device = f"{m['cpu']}, {m['threads']} threads" if m["gpu"] == "none" else m["gpu"]
            own = (nets[name].get("thresholds") or {}).get("postprocess") or ""
            rows.append([title, str(trained["epochs"]), own, m["date"], device, m["torch"], m["commit"]])
    return table(["", "epochs", "post-processing of the weights", "measured", "device", "torch", "commit"], rows)
