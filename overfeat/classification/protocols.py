"""The ways to vote over the positions and scales of an image that the paper's table 2 compares."""

from overfeat.models.architecture import Stride

# Name -> (which of the six scales, stride): the rows of table 2, then what explains them.
DENSE_PROTOCOLS: dict[str, tuple[tuple[int, ...], Stride]] = {
    "1 scale, coarse": ((1,), "coarse"),
    "1 scale, fine": ((1,), "fine"),
    "4 scales, fine": ((1, 2, 4, 6), "fine"),
    "6 scales, fine": ((1, 2, 3, 4, 5, 6), "fine"),
    "scales 1-3, fine": ((1, 2, 3), "fine"),
    **{f"scale {k} alone, fine": ((k,), "fine") for k in range(2, 7)},
}
DEFAULT_PROTOCOLS = ("centre crop", "10 views", *list(DENSE_PROTOCOLS)[:4])
PROTOCOLS = ("centre crop", "10 views", *DENSE_PROTOCOLS)
