"""`overfeat features`: the output of a layer.

Write the output of one layer for each image, at the image's own size (enlarged to the net's window if smaller): an
array [channels, height, width]. The layers of SqueezeNet, which ships, and of a module of your own are named as its
submodules are, and the array holds a layer's output for every window; the default is the scores before the softmax.
Those of overfeat's own nets are numbered from 0 as in the 2013 program; the default is the last hidden fully connected
layer (19 in the fast, 22 in the accurate, 17 in the small net).

Examples:
    overfeat features photos/ -o out/
    overfeat features -L fc.0 photo.jpg --module net.py:make_net --weights state.pt --window 96 --stride 8
    overfeat features -L 19 -d data photo.jpg
    overfeat features --format text -d data -l photo.jpg > photo.features
    overfeat features slide.svs -L 5 --weights run/net.safetensors -o features.zarr
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from overfeat.cli.cluster import add_cluster_options, check_cluster
from overfeat.cli.command import Commands, add_command
from overfeat.cli.dense import note_unseen
from overfeat.cli.images import ImageWork, add_image_options, enlarged, find_images, process_images, read_enlarged
from overfeat.cli.large import (
    add_large_options,
    is_read_in_windows,
    large_config,
    large_settings,
    process_large,
    read_any,
)
from overfeat.cli.module import ModuleOptions
from overfeat.cli.net import add_net_options, load_net, net_settings
from overfeat.cli.options import add_options
from overfeat.cli.results import add_out, result_folder
from overfeat.cli.stream import add_stream, check_stream, process_stream
from overfeat.dense.config import DenseConfig
from overfeat.errors import InputError, printable
from overfeat.files import check_writable

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.large.blocks import Job
    from overfeat.large.readers.image import LargeImage

LARGE = ".zarr"  # the suffix of features of large images
SUFFIXES = {"npz": ".npz", "safetensors": ".safetensors", "text": ".features"}


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "features", run, __doc__)
    add_image_options(parser, optional=True)
    add_stream(parser)
    add_layer(parser, "the layer: its number, or the name of a submodule")
    parser.add_argument("-f", "--features", action="store_true", help="accepted, as in the 2013 program")
    help = "text is the 2013 program's format (default: %(default)s; of large images always .zarr)"
    parser.add_argument("--format", choices=tuple(SUFFIXES), default="npz", help=help)
    help = "a file for one image, a folder for several; a second run into a folder continues (default: IMAGE.npz or "
    add_out(parser, help + "IMAGE.safetensors here; text goes to standard output)", "FILE|FOLDER")
    help = "write over a FILE that holds something else than features, too"
    parser.add_argument("--overwrite", action="store_true", help=help)
    add_cluster_options(parser)
    add_net_options(parser, module=ModuleOptions)
    add_options(parser, DenseConfig, skip=("scales", "flip"))
    add_large_options(parser)


def add_layer(container: argparse._ActionsContainer, help: str) -> None:
    """-L, --layer."""
    container.add_argument("-L", "--layer", metavar="LAYER", help=help)


def run(args: argparse.Namespace) -> int:
    """Write the features of the images."""
    check_stream(args)
    if args.stream:
        args.format = "text"
        return process_stream(args, _Features(args))
    work, images = _Features(args), find_images(args, large=True)
    suffixes = {path: work.suffix(path) for path in images}
    folder = bool(args.out) and _is_folder(args)
    single = len(images) == 1 and args.images[0] in images and not folder
    if not single and not args.out and args.format != "text":
        raise InputError("the features of several images need a folder to go to: -o FOLDER")
    check_cluster(args, folder=bool(args.out) and not single)
    if args.out and any(args.out.resolve() == path.resolve() for path in images):
        raise InputError(f"-o {args.out}: is the image itself; name another file")
    if single and (args.out or args.format != "text"):
        ((path, name),) = images.items()
        work.file = args.out or Path(name + suffixes[path])
        if suffixes[path] != LARGE:
            _check_file(work.file, args)
    elif args.out:
        settings = {"command": "features", "layer": work.name, "format": args.format, **net_settings(args, work.net)}
        if work.net.geometry.any_stride:
            settings["stride"] = args.stride or work.net.default_stride
        named = {path: name + suffixes[path] for path, name in images.items()}
        beside = [LARGE] if LARGE in suffixes.values() else []
        work.results = result_folder(args, named, settings | large_settings(args), "", beside)
    return process_images(args, images, work)


class _Features(ImageWork):
    """With neither `results` nor a `file` the features go to standard output."""

    file: Path | None = None
    titled = False

    def __init__(self, args: argparse.Namespace):
        from overfeat.dense.layer_output import find_layer

        super().__init__(args)
        self.net = load_net(args)
        self.name, self.layer = find_layer(self.net, args.layer, args.stride)

    def suffix(self, path: Path) -> str:
        """Of the features of an image. Raises InputError for a large one in a format that holds it in memory."""
        args = self.args
        if not is_read_in_windows(args, path):
            return SUFFIXES[args.format]
        if args.format != args.parser.get_default("format"):
            remedy = f"use overfeat features -o FILE{LARGE}, without a format"
            raise InputError(f"{path}: is read in windows, and its features are written as {LARGE}; {remedy}")
        return LARGE

    def read(self, path: Path) -> "Tensor | LargeImage":
        if is_read_in_windows(self.args, path):
            return read_any(self.args, path)
        return read_enlarged(self.net, path, self.args.max_pixels)

    def prepare(self, path: Path, image: "Tensor") -> "Tensor":
        return enlarged(self.net, path, image, self.args.max_pixels)

    def process(self, path: Path, image: "Tensor | LargeImage") -> "Tensor | Sequence[int]":
        """The features, or their shape where they are written to a file."""
        from torch import Tensor

        from overfeat.dense.layer_output import layer_output

        if not isinstance(image, Tensor):
            return process_large(self, path, image) if self.results else self._write_large(image)
        if self.net.geometry.any_stride:
            size = (image.shape[1], image.shape[2])
            note_unseen(path, self.net, size, DenseConfig(scales=(1.0,), flip=False, stride=self.args.stride))
        features = layer_output(self.net, self.layer, image, memory_limit=self.args.memory_limit)
        file = self._file(path)
        if file is None:
            return features
        _write(features, self.name, file, self.args.format)
        return tuple(features.shape)

    def _write_large(self, image: "LargeImage") -> Sequence[int]:
        """Write the features to the file that -o names, beside which a folder keeps its blocks until it is complete."""
        from overfeat.large.layers import write_layer_output

        assert self.file is not None
        return write_layer_output(self.net, image, self.file, progress=True, **self._large_options())

    def _large_options(self) -> dict[str, Any]:
        args = self.args
        options = {"layer": args.layer, "stride": args.stride, "memory_limit": args.memory_limit}
        return {**options, "large": large_config(args)}

    def large_job(self, path: Path, image: "LargeImage", folder: Path) -> "Job":
        from overfeat.large.layers import layer_job

        assert self.results is not None
        return layer_job(self.net, image, folder, path=self.results(path), **self._large_options())

    def finish_large(self, path: Path, job: "Job") -> Sequence[int]:
        return job.finish()

    def show(self, path: Path, entry: "Tensor | Sequence[int]") -> None:
        if (file := self._file(path)) is None:
            assert not isinstance(entry, Sequence)
            _write_text(entry, sys.stdout)
        else:
            print(f"{printable(file)}: layer {self.name}, {' x '.join(map(str, entry))}")

    def load(self, path: Path) -> Sequence[int]:
        assert self.results is not None
        return _shape(self.results(path))

    def _file(self, path: Path) -> Path | None:
        return self.results(path) if self.results else self.file


def _is_folder(args: argparse.Namespace) -> bool:
    """Whether -o names a folder of features: one that is there, and for many machines one that is to be made."""
    out, is_shared = args.out, args.dask is not None or args.part is not None
    return out.suffix != LARGE and (out.is_dir() or (is_shared and not out.suffix and not out.exists()))


def _check_file(file: Path, args: argparse.Namespace) -> None:
    """Raises InputError unless features can be written to the file that -o names."""
    check_writable(file)
    overwrite = "overwrite" in args  # not of classify -f
    if file.exists() and not (overwrite and args.overwrite) and not _holds_features(file):
        remedy = "name another file" + ", or --overwrite it" * overwrite
        raise InputError(f"{file}: exists and holds no features; {remedy}")


def _holds_features(path: Path) -> bool:
    """Whether `_write` wrote a file, in any format."""
    import numpy as np
    from safetensors import safe_open

    with open(path, "rb") as file:
        start = file.read(1000)
        head = re.fullmatch(rb"(\d+) (\d+) (\d+)\n([-+.\dainf e]*)\n?", start)
        if head:  # a space follows every value
            values = head[4].count(b" ") + sum(part.count(b" ") for part in iter(lambda: file.read(1 << 20), b""))
            return values == math.prod(map(int, head.groups()[:3])) > 0
    with suppress(Exception):  # each has many errors for what is not its file
        with np.load(path) as arrays:
            return set(arrays) == {"features", "layer"}
    with suppress(Exception):
        with safe_open(path, "np") as tensors:
            return set(tensors.keys()) == {"features"} and set(tensors.metadata()) == {"layer"}
    return False


def _shape(file: Path) -> Sequence[int]:
    """Of the features in a file of results."""
    import numpy as np
    from safetensors import safe_open

    if file.suffix == LARGE:
        from overfeat.large.map_file import MapFile

        return MapFile(file).levels[0].shape
    if file.suffix == SUFFIXES["npz"]:
        return np.load(file)["features"].shape
    if file.suffix == SUFFIXES["safetensors"]:
        with safe_open(file, "np") as tensors:
            return tensors.get_slice("features").get_shape()
    with open(file) as text:
        return [int(size) for size in text.readline().split()]


def _write(features: "Tensor", layer: int | str, target: Path, file_format: str) -> None:
    """Write features [channels, height, width] to a file, atomically."""
    import numpy as np
    from safetensors.torch import save_file

    from overfeat.files import atomic_write

    with atomic_write(target) as part:
        if file_format == "npz":
            with open(part, "wb") as file:
                np.savez(file, features=features.numpy(), layer=layer)
        elif file_format == "safetensors":
            save_file({"features": features}, part, {"layer": str(layer)})
        else:
            with open(part, "w") as text:
                _write_text(features, text)


def _write_text(features: "Tensor", file: TextIO) -> None:
    """The 2013 program's text: "channels height width", a line end, then all values, spaced."""
    print(*features.shape, file=file)
    for channel in features:
        print(*(f"{value:.6g}" for value in channel.flatten().tolist()), sep=" ", end=" ", file=file)
    print(file=file)
