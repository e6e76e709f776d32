"""Limits on the size of images."""

MAX_PIXELS = 100_000_000  # of an image file; a decompression bomb holds more
