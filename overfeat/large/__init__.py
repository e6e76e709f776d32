"""Images that do not fit in memory, read in windows: pyramids, whole slides, orthophotos. Needs the `large` extra.

Names are imported at their first use, so that the options (`config`) load no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overfeat.large.config import LargeConfig
    from overfeat.large.detect import detect_large
    from overfeat.large.layers import write_layer_output
    from overfeat.large.open import is_large, open_image
    from overfeat.large.outputs import write_csv, write_geojson
    from overfeat.large.reader import Georeference, LargeImage, TileError
    from overfeat.large.score_maps import classify_large, write_score_maps

_SOURCES = {
    "Georeference": "reader", "LargeConfig": "config", "LargeImage": "reader", "TileError": "reader",
    "classify_large": "score_maps", "detect_large": "detect", "is_large": "open", "open_image": "open",
    "write_csv": "outputs", "write_geojson": "outputs", "write_layer_output": "layers",
    "write_score_maps": "score_maps",
}  # fmt: skip

__all__ = [
    "Georeference", "LargeConfig", "LargeImage", "TileError", "classify_large", "detect_large", "is_large",
    "open_image", "write_csv", "write_geojson", "write_layer_output", "write_score_maps",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module 'overfeat.large' has no attribute {name!r}")
    return getattr(importlib.import_module(f"overfeat.large.{_SOURCES[name]}"), name)
