"""The detector that training starts from: its net, scale factors and box regressor, and the reasons in words."""

import math
from pathlib import Path

import numpy as np

from overfeat.data.annotated import Annotated
from overfeat.data.resize import MAX_PIXELS as MAX_RESIZED
from overfeat.dense.scales import BEST_OBJECT_SIZE, choose_scales
from overfeat.densify.initial_net import FOR_OBJECTS, describe_start, new_net
from overfeat.detection.config import SAMPLES, DetectorConfig
from overfeat.detection.targets import RULE
from overfeat.errors import shorten
from overfeat.models import checkpoint
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.overfeat import OverFeat
from overfeat.models.transfer import with_background
from overfeat.training.config import BACKBONE

UNPOOLED_BELOW = 100  # pixels of a window


def build_detector(
    data: Annotated, options: DetectorConfig, *, gpu: bool = False, shipped: Path | None = None
) -> tuple[OverFeat, BoxRegressor, Path | None]:
    """A net with a background class and a box regressor for these objects, and the file they start from.

    Args:
        data: The training data.
        options: What is not None there is not chosen here.
        gpu: Whether nets for large objects can be trained.
        shipped: Weights of a small net to start from by default.

    Raises:
        InputError: Weights cannot be read, or options do not match.
    """
    init, regressor = choose_init(data, options, gpu=gpu, shipped=shipped), None
    if init:
        net, regressor = checkpoint.load(init), checkpoint.find_regressor(init)
    else:
        default = choose_net(longer_sides(data), gpu=gpu)
        net = new_net(options, default, len(data.class_names), FOR_OBJECTS)
    same_classes = net.class_names[: len(data.class_names)] == data.class_names
    net = with_background(net, data.class_names)
    net.scale_factors = options.scales or choose_scales(longer_sides(data), net.architecture.window)
    if options.context and net.context is None:
        net.add_context()
    elif not options.context:
        net.context = None
    new = _new_regressor(net, options)
    if regressor is None or regressor.to_json() != new.to_json() or (options.per_class and not same_classes):
        regressor = new
    return net, regressor, init


def choose_init(data: Annotated, options: DetectorConfig, *, gpu: bool, shipped: Path | None) -> Path | None:
    """The weights to start from: those of the options, or the shipped ones of a small net."""
    if options.init or options.from_scratch:
        return options.init
    return shipped if (options.net or choose_net(longer_sides(data), gpu=gpu)) == "small" else None


def choose_net(sides: np.ndarray, *, gpu: bool) -> str:
    """The architecture whose window suits objects with these longer sides.

    On a CPU that is the small one, whatever the objects: images are resized until they fit its window.
    """
    small, fast = (BEST_OBJECT_SIZE * ARCHITECTURES[name].window for name in ("small", "fast"))
    return "fast" if gpu and np.median(sides) > math.sqrt(small * fast) else "small"


def samples_for(images: int) -> int:
    """Tiles per image for an epoch of SAMPLES."""
    return -(-SAMPLES // images)


def longer_sides(data: Annotated) -> np.ndarray:
    """Of every box, in pixels of its image."""
    boxes = np.concatenate([sample.boxes for sample in data.samples])
    return (boxes[:, 2:] - boxes[:, :2]).max(axis=1)


def fitting(data: Annotated, net: OverFeat) -> np.ndarray:
    """Which boxes have positive windows at one of the net's scale factors, bool.

    An image that a scale factor would make smaller than the window is resized to the window.
    """
    window, fits = net.architecture.window, []
    for sample in data.samples:
        factors = np.maximum(net.scale_factors or (), window / min(sample.size))
        sides = (sample.boxes[:, 2:] - sample.boxes[:, :2]).max(axis=1, initial=0)
        fits.append(RULE.fits(sides[:, None] * factors / window).any(axis=1))
    return np.concatenate(fits)


def describe_choices(data: Annotated, net: OverFeat, options: DetectorConfig, init: Path | None) -> list[str]:
    """Lines about the data, the choices of `build_detector` and their reasons, and warnings of what will be missed."""
    sides, window = longer_sides(data), net.architecture.window
    without = sum(not len(sample.labels) for sample in data.samples)
    factors = ", ".join(f"{factor:g}" for factor in net.scale_factors or ())
    given, asked = "as given", options.window or (FOR_OBJECTS[1] if options.net == BACKBONE else window)
    why_net = "for objects of any size" if net.architecture.name == "small" else "for large objects, on a GPU"
    why_scales = f"so that nearly every object measures about {BEST_OBJECT_SIZE:g} of the window at one of them"
    samples = options.samples_per_image or samples_for(len(data))
    tiles = f"{samples} tile{'' if samples == 1 else 's'}"
    why_samples = given if options.samples_per_image else f"at least {SAMPLES} an epoch"
    return [
        f"data: {data.describe()}, {without} without a box",
        f"boxes: longer sides of {sides.min():g} to {sides.max():g} px, median {np.median(sides):g} px",
        f"net: {net.architecture.name}, window {window} px{f', the nearest to {asked}' if asked != window else ''}, "
        f"{given if options.net or options.init else why_net}; {describe_start(net, init)}",
        f"scales: images are searched at {factors} times their size, {given if options.scales else why_scales}",
        f"samples: {tiles} per image and epoch, {why_samples}",
        *(f"warning: {line}" for line in _warnings(data, net)),
    ]


def _warnings(data: Annotated, net: OverFeat) -> list[str]:
    """What the detector will miss."""
    sides, largest, stride = longer_sides(data), max(net.scale_factors or ()), net.architecture.fine_stride
    lines = []
    if misfits := int((~fitting(data, net)).sum()):
        lines.append(f"{misfits} boxes are too small or too large for these scales and hardly contribute to the loss")
    if tiny := int((sides * largest < stride).sum()):
        lines.append(f"{tiny} boxes are smaller than the stride of {stride} px, even at the largest scale")
    height, width = max((sample.size for sample in data.samples), key=math.prod)
    if height * width * largest**2 > MAX_RESIZED:
        size = f"{height}x{width} px is too large to be searched at {largest:g} times its size"
        lines.append(f"an image of {size}; split it, or give other scales")
    easy = np.concatenate([sample.labels[~sample.difficult] for sample in data.samples])
    counts = np.bincount(easy, minlength=len(data.class_names))
    if absent := [name for name, count in zip(data.class_names, counts, strict=True) if not count]:
        lines.append(f"classes without a box that is not difficult, which cannot be detected: {shorten(absent)}")
    return lines


def _new_regressor(net: OverFeat, options: DetectorConfig) -> BoxRegressor:
    classes = net.num_foreground_classes if options.per_class else None
    # Large windows have finer pooled maps, and unpooled ones would make up most of the net's weights.
    features = options.box_features or ("unpooled" if net.architecture.window < UNPOOLED_BELOW else "pooled")
    coder, hidden = options.box_coder, options.hidden
    return BoxRegressor(net.architecture, classes, box_coder=coder, hidden=hidden, box_features=features)
