"""The output of one layer for an image of any size, in tiles that fit a memory limit; and a layer by its name."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.data.arrays import ImageLike, ValueRange
from overfeat.dense.config import MEMORY_LIMIT
from overfeat.dense.inputs import one_image
from overfeat.dense.tiling import fit_tile, tiles_of
from overfeat.densify.layer import ConvertedLayer
from overfeat.densify.net import DensifiedNet
from overfeat.errors import ArgumentError, is_whole
from overfeat.models.geometry import Size, Stride
from overfeat.models.layers import BuiltInLayer, NetLayer
from overfeat.models.net import InputSpan, Net, eval_mode
from overfeat.models.overfeat import OverFeat


@torch.no_grad()
def layer_output(
    net: Net, layer: NetLayer, image: ImageLike, *, memory_limit: int = MEMORY_LIMIT,
    value_range: ValueRange | None = None,
) -> Tensor:  # fmt: skip
    """The output of a layer [channels, h, w] on the CPU, equal to that of the whole image up to rounding.

    Args:
        net: In evaluation mode or not; its output is that of evaluation.
        layer: Of this net.
        image, value_range: See `dense.inputs`; at least the window.
        memory_limit: Bytes for intermediate maps, beside image and output.
    """
    images = one_image(net, image, value_range)[None]
    size = (images.shape[2], images.shape[3])
    shape = layer.num_outputs(0, size[0]), layer.num_outputs(1, size[1])
    cells, output = (slice(0, shape[0]), slice(0, shape[1])), torch.empty(0)
    for rows, columns, tile in layer_tiles(net, layer, size, cells, lambda *spans: images[:, :, *spans], memory_limit):
        if tile.shape[1:] == shape:
            output = tile.cpu().contiguous()
            break
        if not output.numel():
            output = torch.empty(len(tile), *shape, dtype=tile.dtype)
        output[:, rows, columns] = tile.cpu()
    return F.pad(output, [layer.pad] * 4) if layer.pad else output


@torch.no_grad()
def layer_tiles(
    net: Net, layer: NetLayer, size: Size, cells: tuple[slice, slice], crop: Callable[[slice, slice], Tensor],
    memory_limit: int = MEMORY_LIMIT,
) -> Iterator[tuple[slice, slice, Tensor]]:  # fmt: skip
    """A part of a layer's map, without its `pad`, in tiles that fit the memory limit.

    Args:
        net: In evaluation mode or not; its output is that of evaluation.
        layer: Of this net.
        size: (height, width) of the image.
        cells: (rows, columns) of the map.
        crop: Gives these rows and columns of the image, [1, C, h, w] in 0..255.
        memory_limit: Bytes for intermediate maps.

    Yields:
        (rows, columns, tile): Cells of the map, and their values [channels, h, w].
    """
    (top, bottom), (left, right) = ((part.start, part.stop) for part in cells)

    def spans(rows: slice, columns: slice) -> tuple[InputSpan, InputSpan]:
        down, across = slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop)
        return layer.input_span(0, size[0], down), layer.input_span(1, size[1], across)

    shape = bottom - top, right - left
    sides, _ = fit_tile(net, shape, memory_limit // 2, lambda *outputs: layer.tile_bytes(*spans(*outputs)))
    for rows, columns in tiles_of(shape, sides):
        down, across = spans(rows, columns)
        pixels = crop(slice(down.start, down.stop), slice(across.start, across.stop)).to(net.device)
        with eval_mode(net):
            tile = layer.run(pixels, down, across)[0]
        yield slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop), tile


def find_layer(net: Net, name: str | int | None = None, stride: Stride | None = None) -> tuple[int | str, NetLayer]:
    """A layer's number or name, and the layer.

    Args:
        net: A built-in or converted net.
        name: Of a converted net's submodule, or the number of a built-in net's layer; None: the scores before the
            softmax, or the last hidden fully connected layer.
        stride: Between outputs of a converted net; None: its own.

    Raises:
        ArgumentError: For a number that the net does not have, and a stride of a built-in net.
        InputError: For a name that the net does not have.
        TypeError: For what is neither a name nor a number.
    """
    name = str(name) if is_whole(name) else name
    if name is not None and not isinstance(name, str):
        raise TypeError(f"layer must be a name or a number, not {type(name).__name__}")
    if isinstance(net, DensifiedNet):
        name = name or net.program.outputs[net.outputs.scores].name
        return name, ConvertedLayer(net, name, stride or net.default_stride)
    if not isinstance(net, OverFeat):
        raise TypeError(f"net must be of overfeat.build, load or densify, not {type(net).__name__}")
    if stride is not None:
        raise ArgumentError("stride", "does not apply to layers of overfeat's own nets; leave it out")
    architecture = net.architecture
    last, given = len(architecture.layers) - 1, name or str(architecture.feature_layer)
    if not (given.isdecimal() and int(given) <= last):
        raise ArgumentError(
            "layer", f"must be one of 0..{last}, the layers of the {architecture.name} net, not {given}"
        )
    return int(given), BuiltInLayer(net, int(given))
