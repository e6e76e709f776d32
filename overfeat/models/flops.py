"""Multiply-accumulates of a network."""

import itertools

from overfeat.models.architecture import Architecture, Stride
from overfeat.models.receptive_field import output_size


def multiplications(
    architecture: Architecture, height: int, width: int, classes: int, stride: Stride
) -> tuple[dict[str, int], int]:
    """Multiply-accumulates for one image by stage, named as in `stages`, and the number of places."""
    channels, sides, found = 3, [height, width], {}
    steps = iter(architecture.feature_steps)
    for number, conv in enumerate(architecture.convs, 1):
        step = next(steps)
        sides = [output_size([step], side) for side in sides]
        found[f"conv {number}"] = sides[0] * sides[1] * conv.channels * channels * conv.kernel**2
        channels = conv.channels
        if conv.pool > 1 and number < len(architecture.convs):
            step = next(steps)
            sides = [output_size([step], side) for side in sides]
    reach = architecture.pool * architecture.kernel
    step = 1 if stride == "fine" else architecture.pool
    places = ((sides[0] - reach) // step + 1) * ((sides[1] - reach) // step + 1)
    widths = (*architecture.hidden, classes)
    found["first full layer"] = places * channels * architecture.kernel**2 * widths[0]
    found["other full layers"] = places * sum(a * b for a, b in itertools.pairwise(widths))
    return found, places


def work(architecture: Architecture, height: int, width: int, classes: int, stride: Stride) -> dict[str, int]:
    """The same in sum: the features, the first full layer, the rest; and the places."""
    found, places = multiplications(architecture, height, width, classes, stride)
    first, rest = found.pop("first full layer"), found.pop("other full layers")
    return {"features": sum(found.values()), "first": first, "rest": rest, "places": places}
