"""Tiling: evaluate a large map in tiles that fit a memory limit, to the same result."""

from dataclasses import dataclass

from torch import Tensor

from overfeat.dense.grid import Grid
from overfeat.errors import InputError
from overfeat.models.architecture import Architecture, Stride
from overfeat.models.overfeat import OverFeat
from overfeat.models.receptive_field import SlidingWindow, input_size, input_span, output_size
from overfeat.ops.backends import eager

MEMORY = 1 << 30  # bytes that the maps of one evaluation may take, by default


@dataclass(frozen=True)
class Tile:
    """Part of a map: of grid number `grid`, for images `batch`, outputs [rows, columns]."""

    grid: int
    batch: slice
    rows: slice
    columns: slice


def part_features(net: OverFeat, scaled: Tensor, grid: Grid, rows: slice, columns: slice, stride: Stride) -> Tensor:
    """The last maps behind outputs [rows, columns] of a grid, from just the pixels that they need.

    scaled: [N, 3, *grid.scaled], the image at this scale, not mirrored. The maps are those of the whole
    image, cut to what these outputs need.
    """
    device = net.device
    if (rows.start, columns.start) == (0, 0) and (rows.stop, columns.stop) == grid.shape:
        tile = scaled.to(device)
        return net.features(tile.flip(-1) if grid.flipped else tile)
    steps, spans, pads = net.architecture.feature_steps, [], []
    for length, part in zip(scaled.shape[2:], (rows, columns), strict=True):
        span, pad = input_span(steps, length, *maps_span(net.architecture, part, stride))
        spans.append(span)
        pads.append(pad)
    (top, bottom), (left, right) = spans
    if grid.flipped:
        width = scaled.shape[3]
        tile = scaled[:, :, top:bottom, width - right : width - left].to(device).flip(-1)
    else:
        tile = scaled[:, :, top:bottom, left:right].to(device)
    return net.features(tile, pads)


def maps_span(architecture: Architecture, part: slice, stride: Stride) -> tuple[int, int]:
    """Which cells of the last maps the outputs `part` of one axis come from."""
    step = 1 if stride == "fine" else architecture.pool
    return part.start * step, (part.stop - 1) * step + architecture.kernel * architecture.pool


def plan_tiles(net: OverFeat, count: int, grid: Grid, stride: Stride, memory: int, outputs: int):
    """Cut N images' outputs so that no part takes more than half the memory twice over.

    Whole images together where they fit; else tiles of one image, halved along the side with more
    outputs until they fit.
    """
    height, width = grid.shape
    tile = [height, width]

    def cost(images: int) -> int:
        rows, columns = slice(0, tile[0]), slice(0, tile[1])
        features = feature_bytes(net.architecture, images, rows, columns, stride, grid)
        return max(features, classifier_bytes(net, slice(0, images), rows, columns, stride, outputs))

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


def feature_bytes(
    architecture: Architecture, images: int, rows: slice, columns: slice, stride: Stride, grid: Grid
) -> int:
    """A bound on the bytes that are held at once on the way to the last maps, as float32.

    That is a map, its padded copy where there is one, and the map made of it. The bound is of a
    tile inside the image, which needs pixels on all its sides.
    """
    steps = architecture.feature_steps
    inner = [SlidingWindow(step.kernel, step.stride) for step in steps]
    sides = []
    for length, part in zip(grid.scaled, (rows, columns), strict=True):
        start, stop = maps_span(architecture, part, stride)
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


def classifier_bytes(net: OverFeat, batch: slice, rows: slice, columns: slice, stride: Stride, outputs: int) -> int:
    """Bytes of the last maps, pooled, and of what is made of them, `outputs` numbers a place, as float32."""
    architecture = net.architecture
    sides = []
    for part in (rows, columns):
        start, stop = maps_span(architecture, part, stride)
        sides.append(stop - start)
    places = (rows.stop - rows.start) * (columns.stop - columns.start)
    channels = architecture.convs[-1].channels
    # What a place takes beside its outputs: its window's taps, or its share of a transformed tile (packed.py).
    inner = channels * (architecture.kernel**2 if places < eager.GATHER_MAX_POSITIONS else 4)
    each = inner + 4 * max((*architecture.hidden, net.num_classes)) + outputs
    return 4 * (batch.stop - batch.start) * (3 * channels * sides[0] * sides[1] + places * each)
