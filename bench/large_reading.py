"""Windows of a large image: milliseconds and memory, by reader: python -m bench.large_reading

A JPEG pyramid whose tiles share a few contents, so that it is written at once, and an OME-Zarr pyramid of the same
pixels. Every reader reads the same random windows of the finest level, as RGB, in a process of its own.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import measure_peak_memory, write_results
from bench.enormous import DISTINCT, SPARSE_TILE, write_enormous

COMMAND = "python -m bench.large_reading"
SIDE = 30_000  # pixels
WINDOW = 1024
Read = Callable[[int, int], Any]  # the window with this corner


def write_zarr(path: Path, tiles: list[np.ndarray], side: int) -> None:
    """The finest level of `write_enormous` as OME-Zarr; equal chunks are links to one file."""
    import zarr

    group = zarr.create_group(path, zarr_format=3)
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}, {"name": "c", "type": "channel"}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    chunks = (SPARSE_TILE, SPARSE_TILE, 3)
    array = group.create_array("0", shape=(side, side, 3), chunks=chunks, dtype="uint8")
    count = -(-side // SPARSE_TILE)
    sources: dict[int, Path] = {}
    for i in range(count):
        for j in range(count):
            number, chunk = (3 * i + j) % DISTINCT, path / f"0/c/{i}/{j}/0"
            if number in sources:
                chunk.parent.mkdir(parents=True, exist_ok=True)
                os.link(sources[number], chunk)
            elif (i + 1) * SPARSE_TILE <= side and (j + 1) * SPARSE_TILE <= side:
                array[i * SPARSE_TILE : (i + 1) * SPARSE_TILE, j * SPARSE_TILE : (j + 1) * SPARSE_TILE] = tiles[number]
                sources[number] = chunk


def of_overfeat(path: Path) -> Read:
    from overfeat.large import open_image

    image = open_image(path)
    return lambda y, x: image.read(0, slice(y, y + WINDOW), slice(x, x + WINDOW))


def of_tifffile(path: Path) -> Read:
    import tifffile
    import zarr

    array = zarr.open(tifffile.TiffFile(path).aszarr(level=0), mode="r")
    return lambda y, x: array[y : y + WINDOW, x : x + WINDOW]


def of_rasterio(path: Path) -> Read:
    import rasterio

    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    dataset = rasterio.open(path)
    return lambda y, x: dataset.read(window=((y, y + WINDOW), (x, x + WINDOW)))


def of_openslide(path: Path) -> Read:
    import openslide

    slide = openslide.OpenSlide(path)
    return lambda y, x: np.asarray(slide.read_region((x, y), 0, (WINDOW, WINDOW)).convert("RGB"))


def of_zarr(path: Path) -> Read:
    import zarr

    array = zarr.open(path, mode="r")["0"]
    return lambda y, x: array[y : y + WINDOW, x : x + WINDOW]


READERS = {  # name: how it is opened, and the file
    "overfeat, JPEG TIFF": (of_overfeat, "a.tif"),
    "tifffile through zarr, JPEG TIFF": (of_tifffile, "a.tif"),
    "rasterio, JPEG TIFF": (of_rasterio, "a.tif"),
    "openslide, JPEG TIFF": (of_openslide, "a.tif"),
    "overfeat, OME-Zarr": (of_overfeat, "a.zarr"),
    "zarr, OME-Zarr": (of_zarr, "a.zarr"),
}


def measure(reader: str, folder: Path, side: int, count: int) -> dict[str, float]:
    """Median milliseconds of a window, and MiB beyond the packages: of the open file and of reading."""
    opened, name = READERS[reader]
    opened(folder / name)(0, 0)  # the packages are imported
    random = np.random.default_rng(0)
    corners = random.integers(0, side - WINDOW, (count, 2)).tolist()
    seconds = []

    def run() -> None:
        read = opened(folder / name)
        for y, x in corners:
            start = time.perf_counter()
            read(y, x)
            seconds.append(time.perf_counter() - start)

    _, peak = measure_peak_memory(run, device_of_cpu())
    return {"ms": 1000 * statistics.median(seconds), "MiB": (peak or 0) / 2**20}


def device_of_cpu() -> Any:
    import torch

    return torch.device("cpu")


def in_process(reader: str, folder: Path, side: int, count: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (reader, folder, side, count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=SIDE, help="pixels of a side of the image")
    parser.add_argument("--count", type=int, default=30, help="windows")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each reader, in turns; the best counts")
    args = parser.parse_args()
    readers: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tiles = write_enormous(Path(folder) / "a.tif", args.side, args.side)
        write_zarr(Path(folder) / "a.zarr", tiles, args.side)
        for _ in range(args.repeats):
            for name in READERS:
                measured = in_process(name, Path(folder), args.side, args.count)
                earlier = readers.get(name, measured)
                readers[name] = {key: min(value, earlier[key]) for key, value in measured.items()}
    print(json.dumps(readers, indent=1))
    write_results("large-reading", COMMAND, {"side": args.side, "window": WINDOW, "readers": readers})


if __name__ == "__main__":
    main()
