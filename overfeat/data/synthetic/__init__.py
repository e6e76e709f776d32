"""Synthetic images: real handwritten digits on real photographs, with their boxes."""

SPLITS = ("train", "validation", "test")
DIGITS = tuple(range(10))
MAX_OBJECTS = 10  # in an image
