"""Files that ship with the package."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHIPPED_WEIGHTS = ASSETS / "small.safetensors"
SHIPPED_DETECTOR = ASSETS / "detector.safetensors"
