"""How well a net does: error rates over a data set, by every way of voting."""

import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from overfeat.boxes import iou
from overfeat.classify import centre_crop, scale_scores, ten_views
from overfeat.data.annotations import Annotated
from overfeat.data.images import MAX_PIXELS, read_image
from overfeat.dense import MEMORY
from overfeat.files import InputError
from overfeat.heads import Regressor
from overfeat.localize import localize
from overfeat.nets import OverFeat, Stride

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
            message = str(error)
            unreadable.append(message if str(path) in message else f"{path}: {message}")
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
            message = str(error)
            unreadable.append(message if str(sample.path) in message else f"{sample.path}: {message}")
            continue
        guesses.append((found.labels.cpu(), found.boxes.cpu()))
        truths.append((torch.from_numpy(sample.labels), torch.from_numpy(sample.boxes)))
    if not truths:
        raise InputError(f"none of the {len(data)} images can be used; the first: {(unreadable or ['no boxes'])[0]}")
    return {"images": len(truths), "errors": localization_errors(guesses, truths), "unreadable": unreadable}


def spaced(samples: Sequence, limit: int | None) -> Sequence:
    """`limit` of the samples, evenly spaced; all where there are no more, or the limit is None."""
    if not limit or limit >= len(samples):
        return samples
    return [samples[i * len(samples) // limit] for i in range(limit)]


def error_table(errors: dict[str, dict[str, float]]) -> str:
    """Error rates as aligned lines of text."""
    width = max(len(way) for way in errors)
    lines = [f"{'':{width}}  top-1 error %  top-5 error %"]
    lines += [f"{way:{width}}  {rates['top1']:13.2f}  {rates['top5']:13.2f}" for way, rates in errors.items()]
    return "\n".join(lines)
