"""Files that ship with the package."""

from overfeat.files import ASSETS

SHIPPED_WEIGHTS = ASSETS / "small.safetensors"
SHIPPED_CLASSIFIER = ASSETS / "squeezenet.safetensors"
SHIPPED_DETECTOR = ASSETS / "detector.safetensors"
SHIPPED_CELLS = ASSETS / "cells.safetensors"
