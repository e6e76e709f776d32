"""`overfeat classify`: the top classes of images.

Print the top classes of each image with their scores, from every position of all scales. The default net is SqueezeNet
with ImageNet's 1,000 classes; --module takes any torch.nn.Module of your own that classifies windows.

Examples:
    overfeat classify -n 3 photo.jpg
    overfeat classify photos/ --weights run/net.safetensors -o results/
    overfeat classify photo.jpg --scales 0.5,1.0 --heat-map -o results/
    overfeat classify photo.jpg --module net.py:make_net --weights state.pt --window 96 --stride 8
    overfeat classify photo.jpg --prototypes known.safetensors
    overfeat classify slide.svs --weights run/net.safetensors --scales 0.5 --heat-map -o results/
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.cli import features
from overfeat.cli.cluster import add_cluster_options, check_cluster
from overfeat.cli.command import Commands, add_command
from overfeat.cli.dense import add_dense_options, dense_arguments, dense_settings, note_unseen
from overfeat.cli.heat_maps import SUFFIXES, write_heat_maps
from overfeat.cli.images import ImageWork, add_image_options, find_images, process_images
from overfeat.cli.large import (
    add_large_options,
    damage_entry,
    large_config,
    large_settings,
    note_skipped,
    process_large,
    read_any,
)
from overfeat.cli.module import ModuleOptions
from overfeat.cli.net import add_net_options, load_net, net_settings
from overfeat.cli.options import config_from_args, refuse_options
from overfeat.cli.results import add_out, can_draw, digest, result_folder
from overfeat.cli.stream import add_stream, check_stream, process_stream
from overfeat.cli.teach import load_prototypes
from overfeat.dense.config import DenseConfig
from overfeat.errors import ArgumentError, InputError, printable
from overfeat.files import write_json
from overfeat.options import positive

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.large.blocks import Job
    from overfeat.large.readers.image import LargeImage
    from overfeat.models.net import Net

LARGE_SUFFIXES = (".zarr", ".tif")  # of heat maps of large images
DENSE = tuple(field.name for field in fields(DenseConfig))
# The options that have no effect with --voting.
UNUSED = {
    "dense": (),
    "ten": ("heat_map", *(name for name in DENSE if name != "flip")),
    "centre": ("heat_map", *DENSE),
}


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "classify", run, __doc__)
    add_image_options(parser, optional=True)
    help = "classes to print (default: %(default)s)"
    parser.add_argument("-n", "--top-k", type=positive, default=5, metavar="N", help=help)
    help = "all positions of all scales (dense), corners and centre, mirrored (ten), or one crop (default: %(default)s)"
    parser.add_argument("--voting", choices=("dense", "ten", "centre"), default="dense", help=help)
    help = "also write IMAGE.npz, the scores of the classes printed at every position, and IMAGE.png, the best class's "
    help += (
        "(needs the extra plots); of large images IMAGE.zarr, all classes, and of georeferenced ones IMAGE.tif; with -o"
    )
    parser.add_argument("--heat-map", action="store_true", help=help)
    add_out(parser, "write IMAGE.json for every image; a second run continues")
    help = "the classes of `overfeat teach` in place of the net's own: those in the image, by their best window"
    parser.add_argument("--prototypes", type=Path, metavar="FILE", help=help)
    add_cluster_options(parser)
    add_net_options(parser, module=ModuleOptions)
    add_dense_options(parser)
    add_large_options(parser)
    released = parser.add_argument_group("as in the 2013 program")
    released.add_argument("-f", "--features", action="store_true", help="the same as `overfeat features --format text`")
    add_stream(released)
    features.add_layer(released, "output of a layer; implies -f")


def run(args: argparse.Namespace) -> int:
    """Classify the images."""
    check_stream(args)
    if args.features or args.layer is not None:
        unused = ("voting", "heat_map", "prototypes", *(name for name in DENSE if name != "memory_limit"))
        refuse_options(args, unused, "-f and -L")
        args.format = "text"  # as the 2013 program prints
        return features.run(args)
    refuse_options(args, UNUSED[args.voting], f"--voting {args.voting}")
    check_cluster(args, folder=bool(args.out))
    if args.heat_map and not args.out:
        raise ArgumentError("heat_map", "needs a folder to write to; give -o FOLDER")
    if args.prototypes and args.voting != "dense":
        raise ArgumentError("voting", "must be dense with --prototypes; leave it out")
    if args.stream:
        return process_stream(args, _Classification(args))
    work, images = _Classification(args), find_images(args, large=True)
    if args.out:
        settings = {name: getattr(args, name) for name in ("command", "voting", "top_k")}
        settings |= {"heat_map": True} if args.heat_map else {}
        settings |= {"prototypes": digest(args.prototypes)} if args.prototypes else {}
        settings |= dense_settings(args, work.net) | net_settings(args, work.net) | large_settings(args)
        beside = (*SUFFIXES, *LARGE_SUFFIXES) if args.heat_map else ()
        work.results = result_folder(args, images, settings, ".json", beside)
    return process_images(args, images, work)


class _Classification(ImageWork):
    key = "classes"

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.net, self.draw = load_net(args), args.heat_map and can_draw()
        if args.prototypes:
            refuse_options(args, ("labels",), "--prototypes, which have names")
            self.net = load_prototypes(args.prototypes, self.net)

    def read(self, path: Path) -> "Tensor | LargeImage":
        return read_any(self.args, path)

    def process(self, path: Path, image: "Tensor | LargeImage") -> list[dict]:
        from torch import Tensor

        from overfeat.classification.predict import scale_scores
        from overfeat.dense.evaluate import score_maps
        from overfeat.dense.heat_maps import class_scores

        if not isinstance(image, Tensor):
            return process_large(self, path, image)
        net, args = self.net, self.args
        if args.voting == "dense":
            note_unseen(path, net, (image.shape[1], image.shape[2]), config_from_args(DenseConfig, args))
        maps = score_maps(net, image, **dense_arguments(args)) if args.heat_map else []
        if args.prototypes:
            scores = scale_scores(net, image, config_from_args(DenseConfig, args)).amax(dim=(0, 1))
        else:
            scores = class_scores(maps) if maps else _scores(net, image, args)
        if not scores.isfinite().all():
            raise InputError("the net gives NaN scores; its weights are broken")
        if self.results and maps:
            write_heat_maps(self.results(path, ""), image, maps, scores, net.class_names, args.top_k, self.draw)
        return self._entry(path, scores)

    def _entry(self, path: Path, scores: "Tensor", **others: list[str]) -> list[dict]:
        """The best classes of scores [classes], written to the image's result."""
        top = top_classes(scores, self.net.class_names, self.args.top_k)
        if self.args.prototypes:
            top = [entry for entry in top if entry["score"] >= self.net.threshold]
        if self.results:
            write_json(self.results(path), {"image": str(path), "classes": top, **others})
        return top

    def large_job(self, path: Path, image: "LargeImage", folder: Path) -> "Job":
        from overfeat.large.score_maps import score_job

        if self.args.voting != "dense":
            raise ArgumentError("voting", f"must be dense for {printable(path)}, which is read in windows")
        target = self.results(path, LARGE_SUFFIXES[0]) if self.results and self.args.heat_map else None
        config = large_config(self.args)
        job = score_job(self.net, image, folder, path=target, large=config, **dense_arguments(self.args))
        note_skipped(job.plan)
        return job

    def finish_large(self, path: Path, job: "Job") -> list[dict]:
        from overfeat.large.map_blocks import export_tiffs

        largest, georeference = job.finish(), job.plan.view.image.georeference
        if self.results and self.args.heat_map and georeference:
            source, target = (self.results(path, suffix) for suffix in LARGE_SUFFIXES)
            export_tiffs(source, target, georeference)
        scores = largest.amax(dim=0) if self.args.prototypes else largest.mean(dim=0)
        return self._entry(path, scores, **damage_entry(job))

    def show(self, path: Path, entry: list[dict]) -> None:
        if not entry:
            print(f"{printable(path)}: none of the classes", file=sys.stderr)
        for top in entry:
            print(f"{printable(top['class'])} {top['score']:.6g}")


def _scores(net: "Net", image: "Tensor", args: argparse.Namespace) -> "Tensor":
    """Scores [classes] of one image, voted by --voting."""
    from overfeat.classification.predict import centre_crop, classify, ten_views

    if args.voting == "centre":
        return centre_crop(net, image)[0]
    if args.voting == "ten":
        return ten_views(net, image, flip=args.flip)[0]
    return classify(net, image, **dense_arguments(args))[0]


def top_classes(scores: "Tensor", names: list[str], count: int) -> list[dict]:
    """The classes with the largest of scores [classes], largest first: [{"class", "score"}]."""
    top = scores.topk(min(count, len(names)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [{"class": names[i], "score": score} for i, score in pairs]
