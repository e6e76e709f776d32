"""One net over every place of an image at several sizes: scales, flips, strides and tiles (section 3.3)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from overfeat import ops, stages, stock
from overfeat.architectures import Architecture, Stride
from overfeat.boxes import decode, mirrored
from overfeat.files import InputError
from overfeat.geometry import Grid, Step, input_size, output_size, slab
from overfeat.heads import Regressor
from overfeat.nets import Around, OverFeat
from overfeat.resize import resize

# A scale: a number 1..6 of the net's six scales, a factor of the image's own size, a (height, width),
# or "native", the image's own size.
Scale = int | float | tuple[int, int] | str
ELONGATED = 50  # sides of more than this ratio are not enlarged to the six scales
MEMORY = 1 << 30  # bytes that the maps of one evaluation may take, by default


@dataclass(frozen=True)
class ScoreMap:
    """What one scale of an image, mirrored or not, says of each of its windows.

    scores: [N, classes, h, w], softmax over the classes. grid: which window of the image each
    place is (geometry.Grid).
    """

    scores: Tensor
    grid: Grid


@dataclass(frozen=True)
class Part:
    """Part of a map: of grid number `grid`, for images `batch`, outputs [rows, columns]."""

    grid: int
    batch: slice
    rows: slice
    columns: slice


def scale_sizes(
    architecture: Architecture, height: int, width: int, scales: Sequence[Scale] | None = None
) -> list[tuple[int, int]]:
    """The (height, width) of each scale for an image of height x width.

    scales: numbers 1..6 of the architecture's six scales (ints), factors of the image's own size
    (floats; to the nearest size of which fine stride leaves nothing over), (height, width), or
    "native" (the size the image has); None: all six. A given size is turned so that its longer side lies
    along the image's. Raises InputError for a size below the net's window.
    """
    numbered = scales is None or any(isinstance(scale, int) for scale in scales)
    if numbered and min(height, width) * ELONGATED < max(height, width) and min(height, width) < architecture.window:
        raise InputError(
            f"{width}x{height} px is too narrow to be enlarged to the {architecture.name} net's scales; crop it, or "
            "give scales as HEIGHTxWIDTH"
        )
    six = architecture.six_scales(height, width)
    sizes = []
    for scale in scales if scales is not None else range(1, 7):
        if scale == "native":
            size = (height, width)
        elif isinstance(scale, int) and 1 <= scale <= 6:
            size = six[scale - 1]
        elif isinstance(scale, float) and 0 < scale < math.inf:
            size = tuple(whole_size(architecture, scale * side) for side in (height, width))
        elif isinstance(scale, (tuple, list)) and len(scale) == 2:
            size = tuple(sorted(scale, reverse=height > width))
        else:
            raise InputError(f"scale {scale!r} is none of 1..6, a factor such as 0.5, (height, width) and 'native'")
        if min(size) < architecture.window:
            raise InputError(
                f"at {size[0]}x{size[1]} the image is smaller than the {architecture.name} net's window of "
                f"{architecture.window}x{architecture.window}; choose a larger scale"
            )
        sizes.append(size)
    if not sizes:
        raise InputError("no scales given; choose from 1..6, (height, width) and 'native'")
    return sizes


def whole_size(architecture: Architecture, side: float) -> int:
    """The side nearest to the one given of which fine stride leaves no pixels over."""
    return architecture.window + architecture.fine_stride * round(
        (side - architecture.window) / architecture.fine_stride
    )


def grids(
    net: OverFeat,
    image: tuple[int, int],
    scales: Sequence[Scale] | None = None,
    flip: bool | None = None,
    stride: Stride = "fine",
) -> list[Grid]:
    """The grids of an evaluation: for every scale the image and, with `flip`, its mirror image.

    flip None: as the net was trained (net.flip).
    """
    architecture = net.architecture
    flips = (False, True) if (net.flip if flip is None else flip) else (False,)
    return [
        Grid(architecture.window, architecture.stride(stride), size, image, flipped)
        for size in scale_sizes(architecture, *image, scales)
        for flipped in flips
    ]


def score_maps(
    net: OverFeat,
    images: Tensor,
    scales: Sequence[Scale] | None = None,
    flip: bool | None = None,
    stride: Stride = "fine",
    memory: int = MEMORY,
) -> list[ScoreMap]:
    """The scores of every window at every scale, with the windows' places in the image.

    images: float or uint8 [N, 3, H, W] (or [3, H, W]), RGB in 0..255. scales: see `scale_sizes`.
    memory: bytes for the maps in between; what needs more is evaluated in tiles, to the same
    result up to rounding. Raises InputError for sizes below the window or too little memory.
    """
    images = batch_of(images)
    found = grids(net, tuple(images.shape[2:]), scales, flip, stride)
    device = net.convs[0].weight.device
    maps = [torch.empty(len(images), net.classes, *grid.shape, dtype=torch.float32, device=device) for grid in found]
    for part, scores in score_parts(net, images, found, stride, memory):
        maps[part.grid][part.batch, :, part.rows, part.columns] = scores
    return [ScoreMap(scores, grid) for scores, grid in zip(maps, found, strict=True)]


def score_parts(
    net: OverFeat, images: Tensor, found: Sequence[Grid], stride: Stride, memory: int = MEMORY
) -> Iterator[tuple[Part, Tensor]]:
    """The same scores in parts, each of one map [n, classes, h, w], as they are computed; nothing is held."""
    for parts, logits, shapes, _ in _evaluated(net, images, found, stride, memory):
        rows = logits.float().softmax(dim=1).split([n * height * width for n, height, width in shapes])
        for part, shape, scores in zip(parts, shapes, rows, strict=True):
            yield part, scores.view(*shape, net.classes).permute(0, 3, 1, 2)


@torch.no_grad()
def box_parts(
    net: OverFeat,
    regressor: Regressor,
    images: Tensor,
    found: Sequence[Grid],
    stride: Stride,
    memory: int,
    choose: Callable[[Part, Tensor], Tensor],
) -> Iterator[tuple[Part, Tensor, Tensor, Tensor]]:
    """The scores of each part [places, classes] with the boxes of some of its places.

    choose(part, scores): which, bool [places], counted image by image, line by line. Gives the part, scores
    and what was chosen, and the boxes [chosen, classes or 1, 4] in pixels of the images as given.
    """
    for parts, logits, shapes, maps in _evaluated(net, images, found, stride, memory, [regressor]):
        scores = logits.float().softmax(dim=1).split([n * height * width for n, height, width in shapes])
        chosen = [choose(part, s) for part, s in zip(parts, scores, strict=True)]
        if not any(mask.any() for mask in chosen):
            continue
        places = [mask.nonzero()[:, 0] for mask in chosen]
        with evaluating(regressor):
            values = regressor.rows(maps, stride, places)[0].float().split([len(p) for p in places])
        for part, shape, s, mask, p, v in zip(parts, shapes, scores, chosen, places, values, strict=True):
            grid = found[part.grid]
            windows = torch.from_numpy(grid.boxes(part.rows, part.columns)).to(v).view(-1, 1, 4)
            if grid.flipped:
                v = mirrored(v, regressor.form)
            yield part, s, mask, decode(v, windows[p % (shape[1] * shape[2])], regressor.form)


def best_scores(net: OverFeat, images: Tensor, found: Sequence[Grid], stride: Stride, memory: int = MEMORY) -> Tensor:
    """The largest score of each class over the places of each grid: [grids, N, classes] (section 3.3, i)."""
    best = torch.zeros(len(found), len(images), net.classes, dtype=torch.float32, device=net.convs[0].weight.device)
    for parts, logits, shapes, _ in _evaluated(net, images, found, stride, memory):
        counts = [height * width for n, height, width in shapes for _ in range(n)]
        scores = stages.run("scores", ops.best_scores, logits, counts).split([n for n, _, _ in shapes])
        for part, of_images in zip(parts, scores, strict=True):
            so_far = best[part.grid, part.batch]
            torch.maximum(so_far, of_images, out=so_far)
    return best


@torch.no_grad()
def _evaluated(
    net: OverFeat, images: Tensor, found: Sequence[Grid], stride: Stride, memory: int, heads: Sequence[Regressor] = ()
) -> Iterator[tuple[list[Part], Tensor, list[tuple[int, int, int]], list[Tensor]]]:
    """Parts, the class scores of all their places before the softmax, (n, h, w) of each part, and its last maps.

    Maps of several scales and flips pass through the classifier together, as many as fit. heads: for whose
    outputs, too, there must be memory.
    """
    waiting: list[tuple[Part, Tensor, Around]] = []
    taken = 0
    # A place's box is written, decoded and scaled before the next part comes.
    outputs = 3 * net.classes + sum(16 * head.fulls[-1].out_channels for head in heads)
    outputs += 3 * net.fulls[0].out_channels if net.context is not None else 0

    def flush():
        with evaluating(net):
            parts, maps, seen = (list(values) for values in zip(*waiting, strict=True))
            logits, shapes = net.classifier_rows(maps, stride, seen if net.context is not None else ())
        waiting.clear()
        return parts, logits, shapes, maps

    scaled, size = images, None
    for number, grid in enumerate(found):
        if grid.scaled != size:
            size, scaled, half = grid.scaled, None, None  # the last size makes room first
            scaled = stages.run("resize", resize, images, size)
            half = stages.run("resize", half_resolution, net, images, size)
        for batch, rows, columns in _parts(net, len(images), grid, stride, memory, outputs):
            cost = _classifier_bytes(net, batch, rows, columns, stride, outputs)
            if waiting and taken + cost > memory // 2:
                yield flush()
                taken = 0
            part = Part(number, batch, rows, columns)
            tile = scaled[batch]
            seen = around(net, None if half is None else half[batch], len(tile), grid, rows, columns, stride)
            waiting.append((part, part_features(net, tile, grid, rows, columns, stride), seen))
            taken += cost
    if waiting:
        yield flush()


def part_features(net: OverFeat, scaled: Tensor, grid: Grid, rows: slice, columns: slice, stride: Stride) -> Tensor:
    """The last maps behind outputs [rows, columns] of a grid, from just the pixels that they need.

    scaled: [N, 3, *grid.scaled], the image at this scale, not mirrored. The maps are those of the whole
    image, cut to what these outputs need.
    """
    device = net.convs[0].weight.device
    if (rows.start, columns.start) == (0, 0) and (rows.stop, columns.stop) == grid.shape:
        tile = scaled.to(device)
        return net.features(tile.flip(-1) if grid.flipped else tile)
    steps, spans, pads = net.architecture.feature_steps, [], []
    for length, part in zip(scaled.shape[2:], (rows, columns), strict=True):
        span, pad = slab(steps, length, *_maps_span(net.architecture, part, stride))
        spans.append(span)
        pads.append(pad)
    (top, bottom), (left, right) = spans
    if grid.flipped:
        width = scaled.shape[3]
        tile = scaled[:, :, top:bottom, width - right : width - left].to(device).flip(-1)
    else:
        tile = scaled[:, :, top:bottom, left:right].to(device)
    return net.features(tile, pads)


def half_resolution(net: OverFeat, images: Tensor, size: tuple[int, int]) -> Tensor | None:
    """What a net with context sees around the places of images at this size: the images at half of it.

    None for a net without context, and where that is less than a window.
    """
    sides = tuple(whole_size(net.architecture, side / 2) for side in size)
    return None if net.context is None or min(sides) < net.architecture.window else resize(images, sides)


def around(
    net: OverFeat, half: Tensor | None, images: int, grid: Grid, rows: slice, columns: slice, stride: Stride
) -> Around:
    """What outputs [rows, columns] of a grid of so many images see of their surroundings.

    half: see `half_resolution`, not mirrored.
    """
    device = net.convs[0].weight.device
    if half is None:
        places = images * (rows.stop - rows.start) * (columns.stop - columns.start)
        return Around(None, torch.full((places,), -1, device=device))
    there = Grid(grid.window, grid.stride, tuple(half.shape[2:]), grid.image, grid.flipped)
    spans, places = [], []
    for part, scaled, halved, last in zip((rows, columns), grid.scaled, there.scaled, there.shape, strict=True):
        centres = (torch.arange(part.start, part.stop) * grid.stride + grid.window / 2) * (halved / scaled)
        nearest = ((centres - grid.window / 2) / grid.stride).round().long().clamp(0, last - 1)
        spans.append(slice(int(nearest[0]), int(nearest[-1]) + 1))
        places.append(nearest - nearest[0])
    height, width = (span.stop - span.start for span in spans)
    places = (places[0][:, None] * width + places[1]).flatten()
    places = (torch.arange(len(half))[:, None] * height * width + places).flatten()
    return Around(part_features(net, half, there, *spans, stride), places.to(device))


def _maps_span(architecture: Architecture, part: slice, stride: Stride) -> tuple[int, int]:
    """Which cells of the last maps the outputs `part` of one axis come from."""
    step = 1 if stride == "fine" else architecture.pool
    return part.start * step, (part.stop - 1) * step + architecture.kernel * architecture.pool


def _parts(net: OverFeat, count: int, grid: Grid, stride: Stride, memory: int, outputs: int):
    """Cut N images' outputs so that no part takes more than half the memory twice over.

    Whole images together where they fit; else tiles of one image, halved along the side with more
    outputs until they fit.
    """
    height, width = grid.shape
    tile = [height, width]

    def cost(images: int) -> int:
        rows, columns = slice(0, tile[0]), slice(0, tile[1])
        features = _feature_bytes(net.architecture, images, rows, columns, stride, grid)
        return max(features, _classifier_bytes(net, slice(0, images), rows, columns, stride, outputs))

    while cost(1) > memory // 2 and tile != [1, 1]:
        longer = 0 if tile[0] >= tile[1] else 1
        tile[longer] = (tile[longer] + 1) // 2
    if cost(1) > memory // 2:
        raise InputError(
            f"a memory limit of {memory / 2**20:.3g} MiB is too little for one window of the "
            f"{net.architecture.name} net; it needs {-(-2 * cost(1) >> 20)} MiB"
        )
    images = max(1, min(count, (memory // 2) // cost(1))) if tile == [height, width] else 1
    for n in range(0, count, images):
        for row in range(0, height, tile[0]):
            for column in range(0, width, tile[1]):
                yield (
                    slice(n, min(n + images, count)),
                    slice(row, min(row + tile[0], height)),
                    slice(column, min(column + tile[1], width)),
                )


def _feature_bytes(
    architecture: Architecture, images: int, rows: slice, columns: slice, stride: Stride, grid: Grid
) -> int:
    """A bound on the bytes that are held at once on the way to the last maps, as float32.

    That is a map, its padded copy where there is one, and the map made of it. The bound is of a
    tile inside the image, which needs pixels on all its sides.
    """
    steps = architecture.feature_steps
    inner = [Step(step.kernel, step.stride) for step in steps]
    sides = []
    for length, part in zip(grid.scaled, (rows, columns), strict=True):
        start, stop = _maps_span(architecture, part, stride)
        sides.append(min(length, input_size(inner, stop - start)))
    channels, step = 3, 0
    before = channels * sides[0] * sides[1]
    most = 3 * before  # the image, less the mean, over the deviation
    for conv in architecture.convs:
        channels = conv.channels
        for _ in range(2 if conv.pool > 1 and conv is not architecture.convs[-1] else 1):
            copies = 2 if steps[step].pad else 1
            sides = [output_size([steps[step]], side) for side in sides]
            after = channels * sides[0] * sides[1]
            most, before, step = max(most, copies * before + after), after, step + 1
    return 4 * images * most


def _classifier_bytes(net: OverFeat, batch: slice, rows: slice, columns: slice, stride: Stride, outputs: int) -> int:
    """Bytes of the last maps, pooled, and of what is made of them, `outputs` numbers a place, as float32."""
    architecture = net.architecture
    sides = []
    for part in (rows, columns):
        start, stop = _maps_span(architecture, part, stride)
        sides.append(stop - start)
    places = (rows.stop - rows.start) * (columns.stop - columns.start)
    channels = architecture.convs[-1].channels
    # What a place takes beside its outputs: its window's taps, or its share of a transformed tile (packed.py).
    inner = channels * (architecture.kernel**2 if places < stock.FEW_PLACES else 4)
    each = inner + 4 * max((*architecture.hidden, net.classes)) + outputs
    return 4 * (batch.stop - batch.start) * (3 * channels * sides[0] * sides[1] + places * each)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block: no dropout."""
    training = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.train(mode)


def batch_of(images: Tensor) -> Tensor:
    """[3, H, W] as a batch of one; checks the shape of either."""
    if not isinstance(images, Tensor) or not (images.is_floating_point() or images.dtype == torch.uint8):
        what = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a tensor of uint8 or floating point in 0..255, not {what}")
    if images.dim() == 3:
        images = images[None]
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images must be [N, 3, H, W] or [3, H, W]; these have shape {tuple(images.shape)}")
    return images
