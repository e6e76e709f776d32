"""Bytes that a tile of a built-in net needs at most."""

from overfeat.models.architecture import Architecture
from overfeat.models.geometry import Size, Stride
from overfeat.models.receptive_field import output_size
from overfeat.ops.backends import eager


def feature_bytes(architecture: Architecture, size: Size) -> int:
    """A bound on the bytes that are held at once on the way to the last maps of (height, width) pixels, as float32.

    That is a map, its padded copy if it is padded, and the next map.
    """
    if architecture.backbone is not None:  # the normalised image stays
        image = architecture.in_channels * size[0] * size[1]
        return 4 * max(3 * image, image + architecture.backbone.peak_numbers(*size))
    steps, sides, channels, step = architecture.feature_steps, list(size), 3, 0
    before = channels * sides[0] * sides[1]
    largest = 3 * before  # the image, less the mean, over the deviation
    for conv in architecture.convs:
        channels = conv.channels
        for _ in range(2 if conv.pool > 1 and conv is not architecture.convs[-1] else 1):
            copies = 2 if steps[step].pad else 1
            sides = [output_size([steps[step]], side) for side in sides]
            after = channels * sides[0] * sides[1]
            largest, before, step = max(largest, copies * before + after), after, step + 1
    return 4 * largest


def head_bytes(architecture: Architecture, outputs: Size, stride: Stride, widest: int, context: int = 0) -> int:
    """A bound on the bytes of the last maps behind (rows, columns) of outputs, and of the head over them, as float32.

    Args:
        widest: Channels of the widest fully connected layer.
        context: Channels that context adds to.
    """
    (rows, columns), step = outputs, architecture.maps_stride(stride)
    window, channels = architecture.kernel * architecture.pool, architecture.channels
    cells = ((rows - 1) * step + window) * ((columns - 1) * step + window)
    # A position's gathered window, or its fraction of a transformed Winograd tile.
    inner = channels * (architecture.kernel**2 if rows * columns < eager.GATHER_MAX_POSITIONS else 4)
    return 4 * (3 * channels * cells + rows * columns * (inner + 4 * widest + 3 * context))
