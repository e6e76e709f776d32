"""Files of large images for tests: pyramids of a picture, and enormous ones that take milliseconds to write."""

import numpy as np
import tifffile

from bench.enormous import DISTINCT, SPARSE_TILE, picture, write_enormous

__all__ = ["DISTINCT", "SPARSE_TILE", "halved", "picture", "write_enormous", "write_pyramid"]


def halved(image):
    """Every second level of a pyramid: means of 2 x 2 pixels."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    blocks = image[:height, :width].reshape(height // 2, 2, width // 2, 2, -1).astype(np.uint32)
    return (blocks.sum((1, 3)) // 4).astype(image.dtype).reshape(height // 2, width // 2, *image.shape[2:])


def write_pyramid(path, image, *, levels=3, tile=256, compression="deflate", sub_ifds=False, bigtiff=False, **options):
    """A tiled TIFF of an array [H, W, 3] or [H, W] and its halves; returns the arrays of the levels.

    Options are those of tifffile's `write`, of the first level, such as photometric, extratags and metadata.
    """
    arrays = [image]
    for _ in range(levels - 1):
        arrays.append(halved(arrays[-1]))
    kind = {"photometric": "rgb" if image.ndim == 3 else "minisblack", **options}
    stored = {"tile": (tile, tile), "compression": compression}
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as file:
        file.write(image, subifds=levels - 1 if sub_ifds else None, **stored, **{"metadata": None, **kind})
        for array in arrays[1:]:
            file.write(array, subfiletype=1, **stored, photometric=kind["photometric"], metadata=None)
    return arrays
