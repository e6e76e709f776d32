"""Zarr arrays and OME-Zarr pyramids, of the formats 2 and 3, in windows."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from overfeat.data.arrays import ValueRange
from overfeat.errors import InputError, printable, reason_of, shorten
from overfeat.large.readers.arrays import channel_axis
from overfeat.large.readers.channels import channel_note, check_channels, default_channels, first_note
from overfeat.large.readers.georeference import Georeference
from overfeat.large.readers.image import TileError, check_window
from overfeat.large.readers.values import Samples, conversion, range_note
from overfeat.large.readers.windows import Window, finish_window, middle, read_by_tiles
from overfeat.models.geometry import Size
from overfeat.packages import package

MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")  # files of a folder that is zarr
NAMED_AXES = {"band": "c", "lat": "y", "latitude": "y", "lon": "x", "longitude": "x"}  # others are named by a letter
AXES = "tczyx"  # of OME-Zarr before version 0.3, which names none


class ZarrImage:
    """A zarr array or an OME-Zarr pyramid, see `LargeImage` and `open_image`."""

    georeference: Georeference | None = None

    def __init__(self, path: str | os.PathLike, channels: object = None, value_range: ValueRange | None = None):
        self._arguments = os.fspath(path), channels, value_range
        self.name = printable(path)
        root = _open(path, self.name)
        self._arrays, self._axes, labels, self.notes = _levels(root, self.name)
        finest, axes = self._arrays[0], self._axes
        self.levels: Sequence[Size] = [
            (array.shape[axes.index("y")], array.shape[axes.index("x")]) for array in self._arrays
        ]
        self.tile: Size = finest.chunks[axes.index("y")], finest.chunks[axes.index("x")]
        others = [(axis, length) for axis, length in zip(axes, finest.shape, strict=True) if axis not in "cyx"]
        count = finest.shape[axes.index("c")] if "c" in axes else 1
        names = labels if len(labels) == count else ()
        if channels is None:
            numbers = default_channels(count, self.name, names)
            self.notes += channel_note(numbers, names)
        else:
            numbers = check_channels(channels, count, self.name, names)
        self._channels = numbers
        dtype = np.dtype(finest.dtype)
        self._convert = conversion(dtype, "rgb" if len(numbers) == 3 else "grey", self.name, value_range)
        self.notes += first_note([(axis, length) for axis, length in others if length > 1])
        if value_range is None and dtype.itemsize > 1:
            level = len(self.levels) - 1
            self.notes += range_note(dtype, self._convert, self._samples(level, middle(self.levels[level]))[0])

    def read(self, level: int, rows: slice, columns: slice, *, damaged: list[TileError] | None = None) -> Tensor:
        """See `LargeImage.read`."""
        window = check_window(self, level, rows, columns)
        samples, errors = self._samples(level, window)
        return finish_window(self._convert(samples), window, errors, damaged)

    def _samples(self, level: int, window: Window) -> tuple[Samples, list[TileError]]:
        array, axes = self._arrays[level], self._axes
        tile = array.chunks[axes.index("y")], array.chunks[axes.index("x")]
        empty = np.zeros((window[1] - window[0], window[3] - window[2], len(self._channels)), array.dtype)
        return read_by_tiles(lambda area: self._window(array, area), window, tile, self, level, empty)

    def _window(self, array: Any, window: Window) -> Samples:
        """The chosen channels [h, w, n] of a window, at the first position of all other axes."""
        low, high = min(self._channels), max(self._channels)
        spans = {"y": slice(*window[:2]), "x": slice(*window[2:]), "c": slice(low, high + 1)}
        axes = [axis for axis in self._axes if axis in spans]
        samples = np.asarray(array[tuple(spans.get(axis, 0) for axis in self._axes)])
        if "c" not in axes:
            axes, samples = [*axes, "c"], samples[..., None]
        samples = samples.transpose([axes.index(axis) for axis in "yxc"])
        numbers = [number - low for number in self._channels]
        return samples if numbers == list(range(samples.shape[2])) else samples[..., numbers]

    def close(self) -> None:
        """Nothing is open between reads."""

    def __reduce__(self) -> tuple:
        return type(self), self._arguments


def is_zarr(path: Path) -> bool:
    """Whether a folder or .zip file is zarr."""
    if path.is_dir():
        return any((path / name).is_file() for name in MARKERS)
    return path.name.lower().endswith((".zarr.zip", ".ozx")) and zipfile.is_zipfile(path)


def _open(path: str | os.PathLike, name: str) -> Any:
    zarr = package("zarr", "zarr files need", "large")
    try:
        store = zarr.storage.ZipStore(path, mode="r") if os.path.isfile(path) else os.fspath(path)
        return zarr.open(store, mode="r")
    except Exception as error:  # of many kinds for damaged metadata
        raise InputError(f"{name}: cannot be read as zarr ({reason_of(error)}); copy or export it again") from error


def _levels(root: Any, name: str) -> tuple[list[Any], str, Sequence[str], list[str]]:
    """The arrays of the levels, the finest first; their axes, a letter each; names of channels; notes."""
    if hasattr(root, "chunks"):
        return [root], _axes_of_array(root, name), (), []
    described = root.attrs.get("ome", root.attrs)
    if "plate" in described:
        wells = [str(well.get("path")) for well in described["plate"].get("wells", [])]
        example = f"{name}/{wells[0] if wells else 'A/1'}/0"
        raise InputError(f"{name}: a plate of {len(wells)} wells; give one image of a well, such as {example}")
    if "multiscales" not in described:
        return _levels_of_other_group(root, name)
    try:
        scales = described["multiscales"][0]
        axes = "".join(axis if isinstance(axis, str) else axis["name"] for axis in scales.get("axes", AXES)).lower()
        paths = [str(dataset["path"]) for dataset in scales["datasets"]]
        channels = described.get("omero", {}).get("channels", [])
        labels = [str(channel.get("label", "")) for channel in channels]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        problem = f"the multiscales of its metadata are damaged ({type(error).__name__}: {reason_of(error)})"
        raise InputError(f"{name}: {problem}; export it again") from error
    arrays, missing = _arrays(root, paths, name)
    _check_axes(arrays, axes, name)
    return arrays, axes, labels if all(labels) else (), missing


def _arrays(root: Any, paths: list[str], name: str) -> tuple[list[Any], list[str]]:
    """The arrays that are there; without the finest there is no image."""
    arrays, missing = {}, []
    for path in paths:
        try:
            arrays[path] = root[path]
        except Exception as error:  # zarr raises many kinds
            reason = "is missing" if isinstance(error, KeyError) else f"cannot be read ({reason_of(error)})"
            missing.append(f"its level {path} {reason}")
    if not paths or paths[0] not in arrays:
        raise InputError(f"{name}: {missing[0] if missing else 'it has no levels'}; copy or export it again")
    return list(arrays.values()), [f"{problem} and is not used" for problem in missing]


def _check_axes(arrays: list[Any], axes: str, name: str) -> None:
    shapes = [array.shape for array in arrays if hasattr(array, "shape")]
    named = "y" in axes and "x" in axes and len(set(axes)) == len(axes)
    if not named or len(shapes) < len(arrays) or any(len(shape) != len(axes) or 0 in shape for shape in shapes):
        raise InputError(
            f"{name}: the axes {axes!r} of its metadata do not fit arrays of shape {shapes}; export it again"
        )


def _levels_of_other_group(root: Any, name: str) -> tuple[list[Any], str, Sequence[str], list[str]]:
    """Those of a group without multiscales: of its first image (bioformats2raw), or its only array."""
    if "bioformats2raw.layout" in root.attrs.get("ome", root.attrs) and "0" in root:
        arrays, axes, labels, notes = _levels(root["0"], f"{name}/0")
        others = sum(key.isdecimal() for key in root.group_keys()) - 1
        more = [f"of {others + 1} images the first, {name}/0, is read"] if others else []
        return arrays, axes, labels, notes + more
    arrays = [array for _, array in root.arrays()]
    if len(arrays) != 1:
        keys = sorted(key for key, _ in root.members())
        inside = f"it has {shorten(keys)}" if keys else "it is empty"
        raise InputError(f"{name}: a zarr group that describes no image, {inside}; give the path of an image in it")
    return arrays, _axes_of_array(arrays[0], name), (), []


def _axes_of_array(array: Any, name: str) -> str:
    """The axes of an array: those it names, else by its shape."""
    named = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if named and all(named):
        axes = "".join(NAMED_AXES.get(axis, axis[:1]) for axis in map(str.lower, named))
        _check_axes([array], axes, name)
        return axes
    axis = channel_axis(array.shape, name)
    return "yx" if axis is None else "cyx" if axis == 0 else "yxc"
