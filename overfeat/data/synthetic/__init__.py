"""Synthetic images: real handwritten digits on real photographs, with their boxes."""
