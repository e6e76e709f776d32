"""Localization error over annotated images."""

import re
import sys
from collections.abc import Collection

import torch
from tqdm import tqdm

from overfeat.data.annotated import Annotated
from overfeat.data.images import MAX_PIXELS
from overfeat.data.walk import subsample
from overfeat.errors import InputError, with_path
from overfeat.localization.predict import localize
from overfeat.metrics.localization import localization_errors
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.overfeat import OverFeat


def evaluate_localization(
    net: OverFeat,
    regressor: BoxRegressor,
    data: Annotated,
    ignore_list: Collection[int] = (),
    max_pixels: int = MAX_PIXELS,
    limit: int | None = None,
    **options: object,
) -> dict:
    """Localization error over annotated images; options: those of `localize`.

    ignore_list: numbers of images that are not counted, as in ILSVRC's list: by their file's name, or
    their place in the data, from 1. Images without boxes are not counted either. limit: only so many of the
    rest, evenly spaced. Gives {"images":
    count, "errors": {"top1": percent, "top5": percent}, "unreadable": [messages]}. Raises InputError
    where no image can be used.
    """
    guesses, truths, unreadable, samples = [], [], [], []
    for place, sample in enumerate(data.samples, 1):
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})", sample.path.stem)
        if len(sample.labels) and (int(number[1]) if number else place) not in ignore_list:
            samples.append(sample)
    for sample in tqdm(subsample(samples, limit), unit="image", file=sys.stderr, disable=None):
        try:
            found = localize(net, regressor, sample.read(max_pixels), **options)
        except InputError as error:
            unreadable.append(with_path(sample.path, error))
            continue
        guesses.append((found.labels.cpu(), found.boxes.cpu()))
        truths.append((torch.from_numpy(sample.labels), torch.from_numpy(sample.boxes)))
    if not truths:
        raise InputError(f"none of the {len(data)} images can be used; the first: {(unreadable or ['no boxes'])[0]}")
    return {"images": len(truths), "errors": localization_errors(guesses, truths), "unreadable": unreadable}
