"""How well a net does: error rates over a data set, by every way of voting."""

import math
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from overfeat.architectures import Stride
from overfeat.average_precision import PROTOCOLS, Boxes, coco, curves, mean_average_precision
from overfeat.boxes import iou
from overfeat.classify import centre_crop, scale_scores, ten_views
from overfeat.data.annotated import Annotated, Sample
from overfeat.data.images import MAX_PIXELS, read_image
from overfeat.dense import MEMORY
from overfeat.detect import detect
from overfeat.files import InputError, Journal, named
from overfeat.heads import Regressor
from overfeat.localize import Detections, localize
from overfeat.nets import OverFeat

# Name -> (numbers of the scales, stride): the rows of the paper's table 2, then what explains them.
DENSE_WAYS: dict[str, tuple[tuple[int, ...], Stride]] = {
    "1 scale, coarse": ((1,), "coarse"),
    "1 scale, fine": ((1,), "fine"),
    "4 scales, fine": ((1, 2, 4, 6), "fine"),
    "6 scales, fine": ((1, 2, 3, 4, 5, 6), "fine"),
    "scales 1-3, fine": ((1, 2, 3), "fine"),
    **{f"scale {k} alone, fine": ((k,), "fine") for k in range(2, 7)},
}
WAYS = ("centre crop", "10 views", *list(DENSE_WAYS)[:4])  # those that are compared by default
ALL_WAYS = ("centre crop", "10 views", *DENSE_WAYS)


def error_rates(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 and top-5 error in percent: scores [N, classes], labels int64 [N].

    An image is wrong at k if at least k other classes score as high as its own: ties count against,
    and so does NaN.
    """
    if len(scores) == 0:
        raise InputError("no images to take an error rate of")
    own = scores.gather(1, labels[:, None])
    ahead = (~(scores < own)).sum(dim=1) - 1
    return {f"top{k}": 100.0 * (ahead >= k).double().mean().item() for k in (1, 5)}


def votes(
    net: OverFeat,
    image: Tensor,
    ways: Sequence[str] = WAYS,
    flip: bool | None = None,
    memory: int = MEMORY,
) -> dict[str, Tensor]:
    """Scores [classes] of one image [3, H, W] by each way of voting; scales in common are run once."""
    found = {}
    for stride in ("coarse", "fine"):
        dense = {way: DENSE_WAYS[way][0] for way in ways if way in DENSE_WAYS and DENSE_WAYS[way][1] == stride}
        numbers = sorted(set().union(*dense.values()))
        if not numbers:
            continue
        by_scale = scale_scores(net, image, numbers, flip, stride, memory).view(len(numbers), -1, net.classes)
        for way, chosen in dense.items():
            found[way] = by_scale[[numbers.index(n) for n in chosen]].mean(dim=(0, 1))
    if "centre crop" in ways:
        found["centre crop"] = centre_crop(net, image)[0]
    if "10 views" in ways:
        found["10 views"] = ten_views(net, image, flip)[0]
    return {way: found[way].cpu() for way in ways}


def evaluate_classifier(
    nets: Sequence[OverFeat],
    samples: Sequence[tuple[Path, int]],
    ways: Sequence[str] = WAYS,
    flip: bool | None = None,
    memory: int = MEMORY,
    max_pixels: int = MAX_PIXELS,
) -> dict:
    """Error rates of a net, or of a committee of nets, over (image file, label) pairs.

    Gives {"images": count, "errors": {way: {"top1": percent, "top5": percent}}, "unreadable":
    [messages]}. Images that cannot be used are passed over and listed. Raises InputError for an unknown way
    of voting, or where no image can be read.
    """
    for way in ways:
        if way not in ALL_WAYS:
            raise InputError(f"no way of voting is called {way!r}; there are: {'; '.join(ALL_WAYS)}")
    scores: dict[str, list[Tensor]] = {way: [] for way in ways}
    labels, unreadable = [], []
    for path, label in tqdm(samples, unit="image", file=sys.stderr, disable=None):
        try:
            image = read_image(path, max_pixels)
            members = [votes(net, image, ways, flip, memory) for net in nets]
        except InputError as error:
            unreadable.append(named(path, error))
            continue
        for way in ways:
            scores[way].append(torch.stack([member[way] for member in members]).mean(dim=0))
        labels.append(label)
    if not labels:
        raise InputError(f"none of the {len(samples)} images could be read; the first: {(unreadable or ['-'])[0]}")
    truth = torch.tensor(labels)
    errors = {way: error_rates(torch.stack(scores[way]), truth) for way in ways}
    return {"images": len(labels), "errors": errors, "unreadable": unreadable}


def localization_errors(
    guesses: Sequence[tuple[Tensor, Tensor]], truths: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Localization error in percent, with one guess and with five (ILSVRC's localization task).

    guesses, truths: for each image labels int64 [n] and boxes [n, 4], the guesses best first. A guess
    is right if an object of its class overlaps its box by an IoU of 0.5 or more, an image if one of
    its guesses is. ILSVRC's IoU counts pixels, both edges included; that is the IoU of the half-open
    boxes that this library has everywhere, where x2 is the edge behind the last pixel.
    """
    if not truths:
        raise InputError("no images to take an error rate of")
    wrong = {1: 0, 5: 0}
    for (labels, boxes), (true_labels, true_boxes) in zip(guesses, truths, strict=True):
        right = (iou(boxes.double(), true_boxes.double()) >= 0.5) & (labels[:, None] == true_labels[None])
        for k in wrong:
            wrong[k] += not right[:k].any()
    return {f"top{k}": 100.0 * count / len(truths) for k, count in wrong.items()}


def evaluate_localization(
    net: OverFeat,
    regressor: Regressor,
    data: Annotated,
    blacklist: Collection[int] = (),
    max_pixels: int = MAX_PIXELS,
    limit: int | None = None,
    **options: object,
) -> dict:
    """Localization error over annotated images; options: those of `localize`.

    blacklist: numbers of images that are not counted, as in ILSVRC's list: by their file's name, or
    their place in the data, from 1. Images without boxes are not counted either. limit: only so many of the
    rest, evenly spaced. Gives {"images":
    count, "errors": {"top1": percent, "top5": percent}, "unreadable": [messages]}. Raises InputError
    where no image can be used.
    """
    guesses, truths, unreadable, samples = [], [], [], []
    for place, sample in enumerate(data.samples, 1):
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})", sample.path.stem)
        if len(sample.labels) and (int(number[1]) if number else place) not in blacklist:
            samples.append(sample)
    for sample in tqdm(spaced(samples, limit), unit="image", file=sys.stderr, disable=None):
        try:
            found = localize(net, regressor, sample.read(max_pixels), **options)
        except InputError as error:
            unreadable.append(named(sample.path, error))
            continue
        guesses.append((found.labels.cpu(), found.boxes.cpu()))
        truths.append((torch.from_numpy(sample.labels), torch.from_numpy(sample.boxes)))
    if not truths:
        raise InputError(f"none of the {len(data)} images can be used; the first: {(unreadable or ['no boxes'])[0]}")
    return {"images": len(truths), "errors": localization_errors(guesses, truths), "unreadable": unreadable}


def evaluate_detection(
    net: OverFeat,
    regressor: Regressor,
    data: Annotated,
    blacklist: Collection[tuple[int, str]] = (),
    max_pixels: int = MAX_PIXELS,
    limit: int | None = None,
    journal: Journal | None = None,
    **options: object,
) -> dict:
    """Average precision over annotated images by every protocol; options: those of `detect`.

    blacklist: (number of an image from 1, class) pairs that ILSVRC's protocol alone does not count. limit: only so
    many images, evenly spaced. journal: keeps what was found in each image, so that a killed run goes on. Gives
    {"images", "objects": counts, "map": {protocol: in 0..1}, "ap": {class: {"objects": count, protocol: in 0..1}},
    for those that have objects, "coco": figures by name or None, "curves": {class: {"scores", "recall", "precision",
    "right"}}, VOC's, "unreadable": [messages]}. The protocols are average_precision.PROTOCOLS and "coco", the mean
    over IoUs of 0.5 to 0.95. Raises InputError where no image can be used.
    """
    results, unreadable = each_image(
        data, lambda image: _listed(detect(net, regressor, image, **options)), max_pixels, limit, journal
    )
    found, truths, listed = [], [], set()
    for place, sample, (boxes, labels, scores) in results:
        listed |= {(len(found), name) for number, name in blacklist if number == place + 1}
        found.append(Boxes(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels).long(), torch.tensor(scores)))
        truths.append(truth_of(sample))
    return {
        "images": len(found),
        **average_precisions(found, truths, data.class_names, listed),
        "unreadable": unreadable,
    }


def each_image(
    data: Annotated,
    work: Callable[[Tensor], list],
    max_pixels: int = MAX_PIXELS,
    limit: int | None = None,
    journal: Journal | None = None,
) -> tuple[list[tuple[int, Sample, list]], list[str]]:
    """(place in data, sample, what `work` gives of the image as JSON knows it) of the images that can be used, and what
    is wrong with the others.

    limit, journal: see `evaluate_detection`. Raises InputError where no image can be used, or none with an object.
    """
    results, unreadable, done = [], [], {} if journal is None else journal.done
    chosen = spaced(list(enumerate(data.samples)), limit)
    if not any(len(sample.labels) for _, sample in chosen):
        raise InputError(f"no objects in the {len(chosen)} images, so there is nothing to find; give others")
    for place, sample in tqdm(chosen, unit="image", file=sys.stderr, disable=None):
        key = f"{place} {sample.path.name}"
        if key not in done:
            try:
                result = work(sample.read(max_pixels))
            except InputError as error:
                unreadable.append(named(sample.path, error))
                continue
            if journal is not None:
                journal.add(key, result)
            done[key] = result
        results.append((place, sample, done[key]))
    if not any(len(sample.labels) for _, sample, _ in results):
        first = (unreadable or ["no images"])[0]
        raise InputError(f"none of the {len(data)} images with objects can be used; the first: {first}")
    return results, unreadable


def truth_of(sample: Sample) -> Boxes:
    """What is in an annotated image."""
    boxes, labels, difficult = map(torch.from_numpy, (sample.boxes, sample.labels, sample.difficult))
    return Boxes(boxes, labels, difficult=difficult)


def _listed(found: Detections) -> list:
    return [values.tolist() for values in (found.boxes, found.labels, found.scores)]


def average_precisions(
    found: Sequence[Boxes], truths: Sequence[Boxes], names: list[str], blacklist: Collection[tuple[int, str]] = ()
) -> dict:
    """The figures of `evaluate_detection`, from what was found; blacklist: (place in found, class)."""
    listed = {(image, names.index(name)) for image, name in blacklist if name in names}
    of_classes = {
        protocol: curves(found, truths, len(names), protocol, listed if protocol == "ilsvrc" else ())
        for protocol in PROTOCOLS
    }
    figures, of_coco = coco(found, truths, len(names))
    counts = torch.cat([truth.labels for truth in truths]).bincount(minlength=len(names)).tolist()
    with_objects = [label for label, count in enumerate(counts) if count]
    ap = {
        names[label]: {
            "objects": counts[label],
            **{protocol: _known(of_classes[protocol][label].average) for protocol in PROTOCOLS},
            "coco": _known(of_coco[label]),
        }
        for label in with_objects
    }
    return {
        "objects": sum(counts),
        "map": {
            **{protocol: _known(mean_average_precision(found)) for protocol, found in of_classes.items()},
            "coco": _known(figures["AP"]),
        },
        "ap": ap,
        "coco": {name: _known(value) for name, value in figures.items()},
        "curves": {
            names[label]: {
                key: getattr(of_classes["voc"][label], key).tolist()
                for key in ("scores", "recall", "precision", "right")
            }
            for label in with_objects
            if of_classes["voc"][label].objects
        },
    }


def _known(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def spaced(samples: Sequence, limit: int | None) -> Sequence:
    """`limit` of the samples, evenly spaced; all where there are no more, or the limit is None."""
    if not limit or limit >= len(samples):
        return samples
    return [samples[i * len(samples) // limit] for i in range(limit)]


def precision_table(results: dict) -> str:
    """What `evaluate_detection` gives as aligned lines of text, in percent."""
    rows = [*results["ap"].items(), ("mean of all", {"objects": results["objects"], **results["map"]})]
    columns, width = (*PROTOCOLS, "coco"), max(len(name) for name, _ in rows)
    lines = [f"{'':{width}}  objects" + "".join(f"{name:>9}" for name in columns)]
    for name, row in rows:
        figures = ("" if row[c] is None else f"{100 * row[c]:.2f}" for c in columns)
        lines.append(f"{name:{width}}  {row['objects']:7}" + "".join(f"{figure:>9}" for figure in figures))
    return "\n".join(lines)


def error_table(errors: dict[str, dict[str, float]]) -> str:
    """Error rates as aligned lines of text."""
    width = max(len(way) for way in errors)
    lines = [f"{'':{width}}  top-1 error %  top-5 error %"]
    lines += [f"{way:{width}}  {rates['top1']:13.2f}  {rates['top5']:13.2f}" for way, rates in errors.items()]
    return "\n".join(lines)
