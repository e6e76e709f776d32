"""Files of enormous images that take milliseconds to write: their tiles share a few contents."""

import io
import struct

import numpy as np
from PIL import Image

SPARSE_TILE = 512  # pixels of a side of a tile
DISTINCT = 8  # different tiles in a file


def picture(height, width, seed=0):
    """A photograph of noise: uint8 [H, W, 3], smooth at several scales."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for side in (4, 16, 64):
        noise = random.integers(0, 256, (-(-height // side) + 1, -(-width // side) + 1, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR))
    return (total / 3).astype(np.uint8)


def write_enormous(path, height, width, *, levels=None, quality=80, seed=0):
    """A BigTIFF pyramid of JPEG tiles that share `DISTINCT` contents, so that any size is written at once.

    The tile at (row, column) of every level is number (3 * row + column) % DISTINCT of the arrays that are returned,
    as they are before JPEG. `levels`: as many as make the coarsest at most 2,048 pixels wide.
    """
    side = SPARSE_TILE
    wide = picture(side, side + 16 * DISTINCT, seed)
    tiles = [np.ascontiguousarray(wide[:, 16 * number : 16 * number + side]) for number in range(DISTINCT)]
    contents = []
    for tile in tiles:
        file = io.BytesIO()
        Image.fromarray(tile).save(file, "JPEG", quality=quality)
        contents.append(file.getvalue())
    if levels is None:
        levels = 1 + max(0, int(np.ceil(np.log2(max(height, width) / 2048))))
    with open(path, "wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        offsets = [file.tell() + sum(map(len, contents[:number])) for number in range(DISTINCT)]
        file.write(b"".join(contents))
        link = 8  # where the offset of the next directory is written
        for level in range(levels):
            size = (max(1, height >> level), max(1, width >> level))
            link = _write_directory(file, link, size, level, offsets, [len(content) for content in contents])
    return tiles


def _write_directory(file, link, size, level, offsets, counts):
    """One level; returns where the offset of the next one belongs."""
    down, across = (-(-side // SPARSE_TILE) for side in size)
    numbers = (3 * np.arange(down)[:, None] + np.arange(across)).ravel() % DISTINCT
    arrays = [np.array(offsets, "<u8")[numbers], np.array(counts, "<u8")[numbers]]
    positions = []
    for array in arrays:
        file.seek(0, io.SEEK_END)
        positions.append(file.tell())
        file.write(array.tobytes())
    inline = len(numbers) == 1
    values = [int(array[0]) if inline else position for array, position in zip(arrays, positions, strict=True)]
    short, long, long8 = 3, 4, 16
    bits = struct.unpack("<Q", struct.pack("<4H", 8, 8, 8, 0))[0]
    tags = [
        (254, long, 1, int(level > 0)), (256, long, 1, size[1]), (257, long, 1, size[0]), (258, short, 3, bits),
        (259, short, 1, 7), (262, short, 1, 6), (277, short, 1, 3), (284, short, 1, 1),
        (322, long, 1, SPARSE_TILE), (323, long, 1, SPARSE_TILE), (324, long8, len(numbers), values[0]),
        (325, long8, len(numbers), values[1]), (530, short, 2, 2 | 2 << 16),
    ]  # fmt: skip
    file.seek(0, io.SEEK_END)
    start = file.tell()
    file.write(struct.pack("<Q", len(tags)) + b"".join(struct.pack("<HHQQ", *tag) for tag in tags))
    end = file.tell()
    file.write(struct.pack("<Q", 0))
    file.seek(link)
    file.write(struct.pack("<Q", start))
    return end
