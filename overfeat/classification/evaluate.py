"""Error rates of a classifier over a data set, by every voting protocol of the paper's table 2."""

from collections.abc import Sequence

import torch
from torch import Tensor

from overfeat.classification.config import DEFAULT_PROTOCOLS, DENSE_PROTOCOLS, PROTOCOLS
from overfeat.classification.predict import centre_crop, scale_scores, ten_views
from overfeat.data.image_folder import LabeledImage
from overfeat.data.images import MAX_PIXELS
from overfeat.data.map_images import map_images
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, SixScales
from overfeat.errors import ArgumentError
from overfeat.metrics.classification import error_rates
from overfeat.models.overfeat import OverFeat


def score_by_protocol(
    net: OverFeat,
    image: Tensor,
    *,
    protocols: Sequence[str] = DEFAULT_PROTOCOLS,
    flip: bool | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> dict[str, Tensor]:
    """Scores [num_classes] of one image [3, H, W] by each protocol; a scale of several protocols is evaluated once.

    `protocols` are among PROTOCOLS; for `flip` and `memory_limit` see `DenseConfig`.
    """
    scores = {}
    for stride in ("coarse", "fine"):
        dense = {k: DENSE_PROTOCOLS[k][0] for k in protocols if DENSE_PROTOCOLS.get(k, ("", ""))[1] == stride}
        numbers = sorted(set().union(*dense.values()))
        if not numbers:
            continue
        config = DenseConfig(SixScales(*numbers), flip, stride, memory_limit)
        by_scale = scale_scores(net, image, config).view(len(numbers), -1, net.num_classes)
        for name, scales in dense.items():
            scores[name] = by_scale[[numbers.index(n) for n in scales]].mean(dim=(0, 1))
    if "centre crop" in protocols:
        scores["centre crop"] = centre_crop(net, image)[0]
    if "10 views" in protocols:
        scores["10 views"] = ten_views(net, image, flip=flip)[0]
    return {name: scores[name].cpu() for name in protocols}


def evaluate_classifier(
    nets: Sequence[OverFeat],
    images: Sequence[LabeledImage],
    *,
    protocols: Sequence[str] = DEFAULT_PROTOCOLS,
    flip: bool | None = None,
    memory_limit: int = MEMORY_LIMIT,
    max_images: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
) -> dict:
    """Error rates of an ensemble of nets, whose scores are averaged, over labelled images.

    The keyword arguments are those of `score_by_protocol` and `map_images`.

    Returns:
        {"images": count, "errors": {protocol: {"top1": percent, "top5": percent}}, "unreadable": messages}.

    Raises:
        InputError: An unknown protocol, or no image can be used.
    """
    for name in protocols:
        if name not in PROTOCOLS:
            raise ArgumentError("protocols", f"must be among {'; '.join(PROTOCOLS)}, not {name!r}")

    def score(image: Tensor) -> dict[str, Tensor]:
        """The mean of the nets' `score_by_protocol`."""
        each = [score_by_protocol(n, image, protocols=protocols, flip=flip, memory_limit=memory_limit) for n in nets]
        return {name: torch.stack([scores[name] for scores in each]).mean(dim=0) for name in protocols}

    mapped = map_images(images, score, max_images=max_images, max_pixels=max_pixels, progress=progress)
    labels = torch.tensor([image.label for _, image, _ in mapped.results])
    scores = {name: torch.stack([result[name] for _, _, result in mapped.results]) for name in protocols}
    errors = {name: error_rates(scores[name], labels) for name in protocols}
    return {"images": len(labels), "errors": errors, "unreadable": mapped.unreadable}
