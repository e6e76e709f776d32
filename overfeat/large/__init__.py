"""Images that do not fit in memory, read in windows: pyramids, whole slides, orthophotos. Needs the `large` extra."""

from overfeat.large.open import is_large, open_image
from overfeat.large.reader import Georeference, LargeImage, TileError

__all__ = ["Georeference", "LargeImage", "TileError", "is_large", "open_image"]
