"""Limits on the size of images."""

MAX_PIXELS = 100_000_000  # of an image file; a decompression bomb holds more
MAX_RESIZED_PIXELS = 1 << 28  # of one resized image; a strip of 1 x 1,000,000 would otherwise fill the memory
