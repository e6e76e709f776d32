"""Multiply-accumulates (MACs) of a network."""

import itertools

from overfeat.models.architecture import Architecture
from overfeat.models.geometry import Stride
from overfeat.models.receptive_field import output_size
from overfeat.regions import FIRST_FC, REMAINING_FC


def region_macs(
    architecture: Architecture, height: int, width: int, classes: int, stride: Stride
) -> tuple[dict[str, int], int]:
    """MACs for one image of height x width by region (see `regions`), and the number of output positions."""
    channels, sides, macs = 3, [height, width], {}
    steps = iter(architecture.feature_steps)
    for number, conv in enumerate(architecture.convs, 1):
        step = next(steps)
        sides = [output_size([step], side) for side in sides]
        macs[f"conv {number}"] = sides[0] * sides[1] * conv.channels * channels * conv.kernel**2
        channels = conv.channels
        if conv.pool > 1 and number < len(architecture.convs):
            step = next(steps)
            sides = [output_size([step], side) for side in sides]
    if architecture.backbone is not None:
        sides = [output_size([architecture.backbone.step], side) for side in sides]
        macs = {f"conv {i}": count for i, count in enumerate(architecture.backbone.macs(height, width), 1)}
        channels = architecture.channels
    reach = architecture.pool * architecture.kernel
    rows, columns = ((side - reach) // architecture.maps_stride(stride) + 1 for side in sides)
    positions = rows * columns
    widths = (*architecture.hidden, classes)
    macs[FIRST_FC] = positions * channels * architecture.kernel**2 * widths[0]
    macs[REMAINING_FC] = positions * sum(a * b for a, b in itertools.pairwise(widths))
    return macs, positions


def stage_macs(architecture: Architecture, height: int, width: int, classes: int, stride: Stride) -> dict[str, int]:
    """The same by stage: {"features", "first", "rest"}; and the number of "positions"."""
    macs, positions = region_macs(architecture, height, width, classes, stride)
    first, rest = macs.pop(FIRST_FC), macs.pop(REMAINING_FC)
    return {"features": sum(macs.values()), "first": first, "rest": rest, "positions": positions}
