"""Images that do not fit in memory: read in windows, evaluated in blocks. Needs the extra `large`.

Names are imported at their first use, so that the options (`config`) load no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overfeat.large.config import LargeConfig as LargeConfig
    from overfeat.large.detect import detect_large as detect_large
    from overfeat.large.layers import write_layer_output as write_layer_output
    from overfeat.large.outputs import write_csv as write_csv
    from overfeat.large.outputs import write_geojson as write_geojson
    from overfeat.large.readers.georeference import Georeference as Georeference
    from overfeat.large.readers.image import LargeImage as LargeImage
    from overfeat.large.readers.image import TileError as TileError
    from overfeat.large.readers.open import is_large as is_large
    from overfeat.large.readers.open import open_image as open_image
    from overfeat.large.score_maps import classify_large as classify_large
    from overfeat.large.score_maps import write_score_maps as write_score_maps

_SOURCES = {  # name: the module that defines it
    "Georeference": "readers.georeference", "LargeConfig": "config", "LargeImage": "readers.image",
    "TileError": "readers.image", "classify_large": "score_maps", "detect_large": "detect", "is_large": "readers.open",
    "open_image": "readers.open", "write_csv": "outputs", "write_geojson": "outputs", "write_layer_output": "layers",
    "write_score_maps": "score_maps",
}  # fmt: skip
__all__ = sorted(_SOURCES)


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module 'overfeat.large' has no attribute {name!r}")
    return getattr(importlib.import_module(f"overfeat.large.{_SOURCES[name]}"), name)
