"""How well a net does: error rates over a data set, by every way of voting."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from overfeat.classification.predict import centre_crop, scale_scores, ten_views
from overfeat.classification.protocols import DEFAULT_PROTOCOLS, DENSE_PROTOCOLS, PROTOCOLS
from overfeat.data.images import MAX_PIXELS, read_image
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, SixScales
from overfeat.errors import InputError, with_path
from overfeat.metrics.classification import error_rates
from overfeat.models.overfeat import OverFeat


def score_by_protocol(
    net: OverFeat,
    image: Tensor,
    ways: Sequence[str] = DEFAULT_PROTOCOLS,
    flip: bool | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> dict[str, Tensor]:
    """Scores [classes] of one image [3, H, W] by each way of voting; scales in common are run once."""
    found = {}
    for stride in ("coarse", "fine"):
        dense = {
            way: DENSE_PROTOCOLS[way][0] for way in ways if way in DENSE_PROTOCOLS and DENSE_PROTOCOLS[way][1] == stride
        }
        numbers = sorted(set().union(*dense.values()))
        if not numbers:
            continue
        config = DenseConfig(SixScales(*numbers), flip, stride, memory_limit)
        by_scale = scale_scores(net, image, config).view(len(numbers), -1, net.num_classes)
        for way, chosen in dense.items():
            found[way] = by_scale[[numbers.index(n) for n in chosen]].mean(dim=(0, 1))
    if "centre crop" in ways:
        found["centre crop"] = centre_crop(net, image)[0]
    if "10 views" in ways:
        found["10 views"] = ten_views(net, image, flip=flip)[0]
    return {way: found[way].cpu() for way in ways}


def evaluate_classifier(
    nets: Sequence[OverFeat],
    samples: Sequence[tuple[Path, int]],
    ways: Sequence[str] = DEFAULT_PROTOCOLS,
    flip: bool | None = None,
    memory_limit: int = MEMORY_LIMIT,
    max_pixels: int = MAX_PIXELS,
) -> dict:
    """Error rates of a net, or of a committee of nets, over (image file, label) pairs.

    Gives {"images": count, "errors": {way: {"top1": percent, "top5": percent}}, "unreadable":
    [messages]}. Images that cannot be used are passed over and listed. Raises InputError for an unknown way
    of voting, or where no image can be read.
    """
    for way in ways:
        if way not in PROTOCOLS:
            raise InputError(f"no way of voting is called {way!r}; there are: {'; '.join(PROTOCOLS)}")
    scores: dict[str, list[Tensor]] = {way: [] for way in ways}
    labels, unreadable = [], []
    for path, label in tqdm(samples, unit="image", file=sys.stderr, disable=None):
        try:
            image = read_image(path, max_pixels)
            members = [score_by_protocol(net, image, ways, flip, memory_limit) for net in nets]
        except InputError as error:
            unreadable.append(with_path(path, error))
            continue
        for way in ways:
            scores[way].append(torch.stack([member[way] for member in members]).mean(dim=0))
        labels.append(label)
    if not labels:
        raise InputError(f"none of the {len(samples)} images could be read; the first: {(unreadable or ['-'])[0]}")
    truth = torch.tensor(labels)
    errors = {way: error_rates(torch.stack(scores[way]), truth) for way in ways}
    return {"images": len(labels), "errors": errors, "unreadable": unreadable}
