"""The options of localization."""

from dataclasses import dataclass

from overfeat.options import fraction, non_negative, option, positive


@dataclass(frozen=True)
class LocalizationConfig:
    """How `localize` selects and merges boxes; the thresholds were chosen on validation images."""

    top_k: int = option(
        5, "classes of each scale whose boxes are merged, and predictions of an image", parse=positive, metavar="N",
        flags=("-n", "--top-k"),
    )  # fmt: skip
    relative_threshold: float = option(
        0.7, "drop the boxes of positions that score less than this fraction of their class's maximum in the image",
        parse=fraction, metavar="S",
    )  # fmt: skip
    match_threshold: float = option(
        0.4, "merge boxes while the best match score is this or less", parse=non_negative, metavar="T"
    )
