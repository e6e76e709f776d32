"""The detector that training starts from: its net, scale factors and box regressor, and the reasons in words."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from overfeat.data.annotated import Annotated
from overfeat.data.augment import allows_quarter_turns
from overfeat.data.limits import MAX_RESIZED_PIXELS as MAX_RESIZED
from overfeat.dense.scales import BEST_OBJECT_SIZE, choose_scales
from overfeat.densify.initial_net import FOR_OBJECTS, describe_start, new_net
from overfeat.detection.config import MIN_EPOCHS, SAMPLES, TILES, DetectorConfig
from overfeat.detection.targets import RULE
from overfeat.errors import shorten
from overfeat.models import checkpoint
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.overfeat import OverFeat
from overfeat.models.transfer import with_background
from overfeat.training.config import BACKBONE, TrainConfig

BACKBONE_HIDDEN = (192, 96)  # channels of the regressor's hidden layers on a backbone
REACHES = (0.0, 0.125, 0.25, 0.375, 0.5)  # of `choose_reach`
MAX_MISSED = 0.005  # fraction of the boxes that no window is centred on, beyond those that none can be


def build_detector(
    data: Annotated, options: DetectorConfig, *, shipped: Path | None = None
) -> tuple[OverFeat, BoxRegressor, Path | None]:
    """A net with a background class and a box regressor for these objects, and the file they start from, or None.

    Args:
        data: The training data.
        options: Of these, None stands for what is chosen here.
        shipped: Weights of a net to start from where it knows all the classes.

    Raises:
        InputError: Weights cannot be read, or options do not match.
    """
    init, regressor = options.init, None
    if options.start is None and shipped and _knows(shipped, data):
        init = shipped
    if init:
        net, regressor = checkpoint.load(init), checkpoint.find_regressor(init)
    else:
        default = "small" if options.from_scratch else BACKBONE
        net = new_net(options, default, len(data.class_names), FOR_OBJECTS)
    same_classes = net.class_names[: len(data.class_names)] == data.class_names
    net = with_background(net, data.class_names)
    net.scale_factors = options.scales or choose_scales(longer_sides(data), net.architecture.window, data.labels)
    net.reach = choose_reach(data, net) if options.reach is None else options.reach
    context = net.backbone is None if options.context is None else options.context
    if context and net.context is None:
        net.add_context()
    elif not context:
        net.context = None
    new = _new_regressor(net, options)
    if regressor is None or regressor.to_json() != new.to_json() or (options.per_class and not same_classes):
        regressor = new
    return net, regressor, init


def choose_options(data: Annotated, options: DetectorConfig) -> DetectorConfig:
    """The options with those chosen that depend on the data: tiles per image, and quarter turns."""
    samples, turns = options.samples_per_image, options.quarter_turns
    if turns is None:
        turns = allows_quarter_turns(data.boxes, data.labels)
    return replace(options, samples_per_image=samples or -(-SAMPLES // len(data)), quarter_turns=turns)


def choose_training(data: Annotated, options: DetectorConfig, train: TrainConfig) -> TrainConfig:
    """The options of the loop with the number of epochs: as many as give TILES tiles, and not less than MIN_EPOCHS."""
    if train.epochs is not None:
        return train
    tiles = len(data) * (choose_options(data, options).samples_per_image or 1)
    return replace(train, epochs=max(MIN_EPOCHS, round(TILES / tiles)))


def choose_reach(data: Annotated, net: OverFeat) -> float:
    """The smallest of REACHES with which windows are centred on nearly all objects, all but MAX_MISSED of them."""
    missed = {reach: 1 - fitting(data, net, reach, tolerance=0.0).mean() for reach in REACHES}
    best = min(missed.values())
    return next(reach for reach in REACHES if missed[reach] <= best + MAX_MISSED)


def _knows(weights: Path, data: Annotated) -> bool:
    """Whether the net in a file has all classes of the data."""
    return set(data.class_names) <= set(checkpoint.load(weights).class_names)


def longer_sides(data: Annotated) -> np.ndarray:
    """The longer side of every box [n], in pixels of its image."""
    return (data.boxes[:, 2:] - data.boxes[:, :2]).max(axis=1)


def fitting(
    data: Annotated, net: OverFeat, reach: float | None = None, tolerance: float = RULE.center_tolerance
) -> np.ndarray:
    """Which of the n boxes have positive windows at one of the net's scale factors: bool [n].

    An image that a scale factor would make smaller than the window is resized to the window, less what windows reach
    beyond it.

    Args:
        data: The boxes and the sizes of their images.
        net: For its window, stride and scale factors.
        reach: Of the windows; None: the net's own.
        tolerance: Largest distance of the centres of window and box, as a fraction of the window.
    """
    window, fits = net.architecture.window, []
    beyond = net.geometry.margin(net.reach if reach is None else reach)[0] / window
    for sample in data.samples:
        smallest = window * max(0.0, 1 - 2 * beyond) / min(sample.size)
        factors = np.maximum(net.scale_factors or (), smallest)
        scaled = sample.boxes[:, None] * factors[:, None] / window  # [n, factors, 4] in windows
        height, width = (side * factors / window for side in sample.size)
        sizes, centers = scaled[..., 2:] - scaled[..., :2], (scaled[..., 2:] + scaled[..., :2]) / 2
        edges = np.minimum(centers, np.stack([width, height], axis=-1) - centers).min(axis=-1, initial=math.inf)
        near = edges + beyond + tolerance >= 0.5
        fits.append((RULE.fits(sizes.max(axis=-1, initial=0)) & near).any(axis=1))
    return np.concatenate(fits)


def describe_choices(
    data: Annotated, net: OverFeat, options: DetectorConfig, train: TrainConfig, init: Path | None
) -> list[str]:
    """Lines about the data, the choices of `build_detector` and their reasons, and warnings of what will be missed."""
    sides, chosen, training = longer_sides(data), choose_options(data, options), choose_training(data, options, train)
    without = sum(not len(sample.labels) for sample in data.samples)
    gained = int(fitting(data, net).sum() - fitting(data, net, 0.0).sum())
    border = f"so that {gained} more boxes can be learnt" if net.reach else "since nearly no box needs more"
    square = "boxes are as often wide as high"
    turns = square if chosen.quarter_turns else f"not every class's {square}, or boxes are too few to tell"
    tiles = len(data) * (chosen.samples_per_image or 0)
    return [
        f"data: {data.describe()}, {without} without a box",
        f"boxes: longer sides of {sides.min():g} to {sides.max():g} px, median {np.median(sides):g} px",
        f"net: {_describe_net(net, options, init)}",
        f"scales: {_describe_scales(net, options)}",
        f"border: windows reach {net.reach:g} of their size beyond images, {_reason(options.reach, border)}",
        f"augmentation: {'with' if chosen.quarter_turns else 'without'} quarter turns, "
        f"{_reason(options.quarter_turns, turns)}; {'with' if options.flip else 'without'} mirror images",
        f"training: {training.epochs} epoch{'s' * (training.epochs != 1)} of {tiles} tiles, "
        f"{_reason(train.epochs, f'about {TILES} tiles')}; batches of {train.batch_size}, "
        f"{train.optimizer}, learning rate {train.lr:g}",
        *(f"warning: {line}" for line in _warnings(data, net)),
    ]


def _reason(option: object, reason: str) -> str:
    """Why a value is what it is: the option is given, or else this reason."""
    return reason if option is None else "as given"


def _describe_net(net: OverFeat, options: DetectorConfig, init: Path | None) -> str:
    window, on_backbone = net.architecture.window, init is None and net.backbone is not None
    asked = (options.window or FOR_OBJECTS[1]) if on_backbone else window
    nearest = "" if asked == window else f", the nearest to {asked}"
    reason = _reason(options.start, "for photographs" if on_backbone else "which knows these classes")
    return f"{net.architecture.name}, window {window} px{nearest}, {reason}; {describe_start(net, init)}"


def _describe_scales(net: OverFeat, options: DetectorConfig) -> str:
    factors = np.array(net.scale_factors or ())
    parts = 100 * factors**2 / np.sum(factors**2)
    scales = ", ".join(f"{factor:g} ({part:.0f} %)" for factor, part in zip(factors, parts, strict=True))
    reason = f"so that objects measure about {BEST_OBJECT_SIZE:g} of the window at one of them"
    return f"images are evaluated at {scales} times their size (of the cost), {_reason(options.scales, reason)}"


def _warnings(data: Annotated, net: OverFeat) -> list[str]:
    """What the detector will miss."""
    sides, largest, stride = longer_sides(data), max(net.scale_factors or ()), net.architecture.fine_stride
    lines = []
    if misfits := int((~fitting(data, net)).sum()):
        lines.append(f"boxes too small, large or near the border, which hardly contribute to the loss: {misfits}")
    if tiny := int((sides * largest < stride).sum()):
        lines.append(f"boxes smaller than the stride of {stride} px, even at the largest scale: {tiny}")
    height, width = max((sample.size for sample in data.samples), key=math.prod)
    if height * width * largest**2 > MAX_RESIZED:
        size = f"{height}x{width} px is too large to be evaluated at {largest:g} times its size"
        lines.append(f"an image of {size}; split it, or give other scales")
    counts = np.bincount(data.labels[~data.difficult], minlength=len(data.class_names))
    if absent := [name for name, count in zip(data.class_names, counts, strict=True) if not count]:
        lines.append(f"classes without a box that is not difficult, which cannot be detected: {shorten(absent)}")
    return lines


def _new_regressor(net: OverFeat, options: DetectorConfig) -> BoxRegressor:
    classes = net.num_foreground_classes if options.per_class else None
    # Unpooled maps of many channels would make up most of the net's weights.
    on_backbone = net.backbone is not None
    features = options.box_features or ("pooled" if on_backbone else "unpooled")
    coder, hidden = options.box_coder, options.hidden or (BACKBONE_HIDDEN if on_backbone else None)
    return BoxRegressor(net.architecture, classes, box_coder=coder, hidden=hidden, box_features=features)
