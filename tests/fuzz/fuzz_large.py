"""TIFFs, pyramids and zarr folders that are read in windows, most of them damaged: RGB, a named tile, or refused."""

import random
import shutil
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import tifffile
import torch
import zarr
from harness import check_message, mutate, refused

from overfeat.errors import InputError
from overfeat.large import is_large, open_image

CASES = 80
SIZE = (70, 90)
COMPRESSIONS = (None, "deflate", "lzw", "zstd", "jpeg", "packbits", "lerc", "jpeg2000", "png")
LOSSY = ("jpeg", "jpeg2000")
AXES = ("YX", "CYX", "ZCYX", "TCZYX", "ZYX")
MAX_PIXELS = 4_000_000  # of a level that is read: damaged headers name more


def check(rng: random.Random, folder: Path) -> str:
    kind = rng.choice((tiff, tiff, tiff_of_channels, zarr_folder))
    path, expected = kind(rng, folder)
    damaged = rng.random() < 0.85
    if damaged:
        file = rng.choice(sorted(file for file in path.rglob("*") if file.is_file())) if path.is_dir() else path
        file.write_bytes(mutate(file.read_bytes(), rng))
    channels = rng.choice((None, None, None, (0,), (2, 1, 0)))
    value_range = rng.choice((None, None, (0, 1000)))
    try:
        is_large(path)
        image = open_image(path, channels=channels, value_range=value_range)
        errors = read_everything(image, rng, damaged)
        whole = image.read(0, slice(None), slice(None)).numpy() if not damaged else None
        image.close()
    except InputError as error:
        return refused(error, "" if "limit of" in str(error) else path)
    if damaged:
        return "tiles named" if errors else "damaged but read"
    assert not errors, errors
    if channels is None and value_range is None and expected is not None:
        assert np.array_equal(whole, expected), path
    return "read"


def read_everything(image, rng: random.Random, damaged: bool) -> list:
    """Read all levels, whole and in part; the errors of damaged tiles."""
    errors: list = []
    for level, (height, width) in enumerate(image.levels):
        assert height > 0 and width > 0
        if height * width > MAX_PIXELS:
            bottom, right = min(height, 100), min(width, 100)
        else:
            bottom, right = height, width
        whole = image.read(level, slice(0, bottom), slice(0, right), damaged=errors)
        assert whole.dtype == torch.uint8 and whole.shape == (3, bottom, right), whole.shape
        top, left = rng.randrange(bottom), rng.randrange(right)
        part = image.read(level, slice(top, bottom), slice(left, right), damaged=[])
        assert part.shape == (3, bottom - top, right - left)
        assert damaged or torch.equal(part, whole[:, top:, left:])  # decoders leave parts of damaged tiles undefined
    for error in errors:
        check_message(str(error))
    return errors


@cache
def pixels(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def tiff(rng: random.Random, folder: Path) -> tuple[Path, np.ndarray | None]:
    """RGB or grey, tiled or not, perhaps with levels."""
    path, compression = folder / "a.tif", rng.choice(COMPRESSIONS)
    grey = rng.random() < 0.3
    array = pixels(SIZE if grey else (*SIZE, 3), "uint8")
    options = {"photometric": "minisblack" if grey else "rgb", "compression": compression, "metadata": None}
    if rng.random() < 0.8:
        options["tile"] = (32, 48)
    levels = rng.randrange(3)
    with tifffile.TiffWriter(path, bigtiff=rng.random() < 0.3, byteorder=rng.choice("<>")) as file:
        file.write(array, subifds=levels, **options)
        for level in range(1, levels + 1):
            file.write(np.ascontiguousarray(array[:: 2**level, :: 2**level]), subfiletype=1, **options)
    expected = np.stack([array] * 3) if grey else array.transpose(2, 0, 1)
    return path, None if compression in LOSSY else expected


def tiff_of_channels(rng: random.Random, folder: Path) -> tuple[Path, None]:
    """Of a microscope: axes of channels, depths and times, 8 or 16 bits."""
    path, axes = folder / "a.ome.tif", rng.choice(AXES)
    lengths = {"C": rng.choice((2, 3, 3, 4)), "Z": 2, "T": 2, "Y": SIZE[0], "X": SIZE[1]}
    array = pixels(tuple(lengths[axis] for axis in axes), rng.choice(("uint8", "uint16", "float32")))
    ome = rng.random() < 0.5
    order = axes if ome else "".join(axis for axis in "TZCYX" if axis in axes)
    array = np.ascontiguousarray(array.transpose([axes.index(axis) for axis in order]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"tile": (32, 48), "compression": rng.choice(("lzw", None))} if ome else {"imagej": True}
        tifffile.imwrite(path, array, photometric="minisblack", ome=ome, metadata={"axes": order}, **options)
    return path, None


def zarr_folder(rng: random.Random, folder: Path) -> tuple[Path, np.ndarray | None]:
    """An OME-Zarr pyramid of format 2 or 3."""
    path, zarr_format = folder / "a.zarr", rng.choice((2, 3))
    shutil.copytree(_pyramid(folder.parent, zarr_format), path)
    return path, pixels((3, *SIZE), "uint8")


def _pyramid(folder: Path, zarr_format: int) -> Path:
    path = folder / f"source{zarr_format}.zarr"
    if not path.exists():
        group = zarr.create_group(path, zarr_format=zarr_format)
        array = pixels((3, *SIZE), "uint8")
        for level in range(2):
            group.create_array(str(level), data=array[:, :: 2**level, :: 2**level], chunks=(1, 32, 48))
        axes = [{"name": axis, "type": "space"} for axis in "cyx"]
        described = {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}, {"path": "1"}]}]}
        group.attrs.update({"ome": described} if zarr_format == 3 else described)
    return path
