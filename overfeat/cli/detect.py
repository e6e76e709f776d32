"""`overfeat detect`: all objects in images, with boxes.

Print every object: its class, score and box, the summed confidence and the number of boxes that were merged into it.
The weights must be a detector's (`overfeat train detector`); those that ship detect handwritten digits. --module takes
a torch.nn.Module of your own that gives scores and boxes of windows. With --method multibox a net proposes a few
class-agnostic boxes (`overfeat train multibox`), and another classifies them (`overfeat train box-classifier`).

Examples:
    overfeat detect photo.jpg
    overfeat detect photos/ --weights run/net.safetensors -o results/
    overfeat detect photo.jpg --module net.py:make_net --weights state.pt --window 96 --stride 8 --background
    overfeat detect slide.svs -o results/ --region 20000 30000 4096 4096
    overfeat detect photo.jpg --method multibox --weights boxes.safetensors --classifier net.safetensors
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.cli.cluster import add_cluster_options, check_cluster
from overfeat.cli.command import Commands, add_command
from overfeat.cli.dense import add_dense_options, dense_arguments, dense_settings
from overfeat.cli.images import ImageWork, add_image_options, find_images, process_images
from overfeat.cli.large import (
    DAMAGE,
    add_large_options,
    damage_entry,
    large_config,
    large_settings,
    note_skipped,
    process_large,
    read_any,
)
from overfeat.cli.module import BoxModuleOptions
from overfeat.cli.net import add_net_options, load_detector, load_multibox_nets, multibox_settings, net_settings
from overfeat.cli.options import add_options, config_from_args, refuse_options
from overfeat.cli.results import SETTINGS, add_out, can_draw, result_folder
from overfeat.dense.config import DenseConfig
from overfeat.dense.results import coco_results, object_entries
from overfeat.detection.config import MIN_SCORE, DetectionConfig
from overfeat.errors import ArgumentError, InputError, printable
from overfeat.files import write_json
from overfeat.multibox.config import ProposalConfig
from overfeat.options import fractions

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.dense.detections import Detections
    from overfeat.large.blocks import Job
    from overfeat.large.detect import DetectionJob
    from overfeat.large.readers.image import LargeImage

COCO = "coco.json"
TABLES = (".geojson", ".csv")  # of large images
# The options of each method; an option of the other method alone is refused.
OPTIONS = {
    "overfeat": {field.name for config in (DenseConfig, DetectionConfig, BoxModuleOptions) for field in fields(config)},
    "multibox": {"classifier", *(field.name for field in fields(ProposalConfig))},
}
Detector = Callable[["Tensor"], "Detections"]
Jobs = Callable[..., "DetectionJob"]  # of a large image and a folder
Loaded = tuple[Detector, Jobs | None, Sequence[str], float | Sequence[float], dict]


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "detect", run, __doc__)
    add_image_options(parser)
    help = "drop objects that score less; one number, or one for each class, such as 0.5,0.4 (default: as chosen in "
    help += f"training, else {MIN_SCORE:g}; 0 for average precision, where DeepMultiBox gives every class of its "
    parser.add_argument("--min-score", type=fractions, metavar="S", help=help + "--max-detections boxes)")
    help = "overfeat: every window, merged; or DeepMultiBox (default: %(default)s)"
    parser.add_argument("--method", choices=tuple(OPTIONS), default="overfeat", help=help)
    add_options(parser.add_argument_group("boxes"), DetectionConfig)
    add_multibox_options(parser, skip=("nms_iou_threshold",))
    help = "write IMAGE.json and IMAGE.png (needs the extra plots), of large images IMAGE.geojson and IMAGE.csv "
    help += f"instead of the picture, and {COCO}, the results as COCO has them; "
    add_out(parser, help + "a second run continues")
    help = f"COCO annotations (.json) with the ids of images, by file name, and of categories for {COCO} "
    help += "(default: both are numbered from 1, images by name)"
    parser.add_argument("--coco-ids", type=Path, metavar="FILE", help=help)
    add_cluster_options(parser)
    add_net_options(parser, released=False, module=BoxModuleOptions)
    add_dense_options(parser)
    add_large_options(parser)


def add_multibox_options(parser: argparse.ArgumentParser, skip: tuple[str, ...] = ()) -> None:
    """The options of DeepMultiBox but for `skip`."""
    group = parser.add_argument_group("DeepMultiBox")
    help = "the net that classifies the boxes (safetensors); without it boxes are class-agnostic"
    group.add_argument("--classifier", type=Path, metavar="FILE", help=help)
    add_options(group, ProposalConfig, skip=skip)


def run(args: argparse.Namespace) -> int:
    """Detect the objects of the images."""
    from overfeat.data.readers.coco import coco_ids

    (others,) = (names for method, names in OPTIONS.items() if method != args.method)
    refuse_options(args, sorted(others - OPTIONS[args.method]), f"--method {args.method}")
    images, work = find_images(args, large=True), _Detection(args)
    check_cluster(args, folder=bool(args.out))
    if args.coco_ids and not args.out:
        raise InputError(f"--coco-ids {args.coco_ids} is for the {COCO} that -o FOLDER writes; give that, too")
    if args.out:
        coco_ids(args.coco_ids, list(images.values()), work.names)  # before the work
        settings = {"command": "detect", "min_score": work.min_score, **work.settings, **large_settings(args)}
        work.results = result_folder(args, images, settings, ".json", [".png", *TABLES], [COCO])
    return process_images(args, images, work)


class _Detection(ImageWork):
    key = "objects"

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        loaded = (_multibox if args.method == "multibox" else _overfeat)(args)
        self.detector, self.new_job, self.names, self.min_score, self.settings = loaded
        self.draw = bool(args.out) and can_draw()

    def read(self, path: Path) -> "Tensor | LargeImage":
        return read_any(self.args, path)

    def process(self, path: Path, image: "Tensor | LargeImage") -> list[dict]:
        from torch import Tensor

        from overfeat import visualize

        if not isinstance(image, Tensor):
            return process_large(self, path, image)
        detections = self.detector(image)
        objects = object_entries(detections, self.names)
        if self.results:
            if self.draw:
                picture = self.results(path, ".png")
                visualize.detections(image, detections, self.names, path.name, picture)
            write_json(self.results(path), {"image": str(path), "objects": objects})
        return objects

    def large_job(self, path: Path, image: "LargeImage", folder: Path) -> "DetectionJob":
        if self.new_job is None:
            raise ArgumentError("method", f"must be overfeat for {printable(path)}, which is read in windows")
        job = self.new_job(image, folder, large=large_config(self.args))
        note_skipped(job.plan)
        return job

    def finish_large(self, path: Path, job: "Job") -> list[dict]:
        from overfeat.large.outputs import write_csv, write_geojson

        objects = object_entries(job.finish(), self.names)
        if self.results:
            georeference = job.plan.view.image.georeference
            write_geojson(self.results(path, ".geojson"), objects, georeference)
            write_csv(self.results(path, ".csv"), self.results.names[path], objects, georeference)
            write_json(self.results(path), {"image": str(path), "objects": objects, **damage_entry(job)})
        return objects

    def finish(self) -> None:
        if not self.results:
            return
        count = _write_coco(self.results.folder, self.args.coco_ids, self.names)
        while self.args.part:  # until it has all results that there are: other parts may end meanwhile
            before, count = count, _write_coco(self.results.folder, self.args.coco_ids, self.names)
            if before == count:
                break

    def show(self, path: Path, entry: list[dict]) -> None:
        _print(path, entry, self.min_score)


def _overfeat(args: argparse.Namespace) -> Loaded:
    """The detector of an image, that of a large one, names of labels, lowest score, what else results depend on."""
    from overfeat.detection.predict import choose_postprocess, detect, lowest_score
    from overfeat.large.detect import detection_job
    from overfeat.models.thresholds import check_match_threshold

    net, regressor = load_detector(args)
    config = asdict(config_from_args(DetectionConfig, args))
    check_match_threshold(config["match_threshold"], net.num_foreground_classes)
    config["postprocess"] = choose_postprocess(net, config["postprocess"], config["match_threshold"])
    min_score = lowest_score(net, args.min_score, config["postprocess"])
    options = {"min_score": min_score, **config, **dense_arguments(args)}
    detector = partial(detect, net, regressor, **options)
    job = partial(detection_job, net, regressor, **options)
    names = net.class_names[: net.num_foreground_classes]
    return detector, job, names, min_score, {**config, **dense_settings(args, net), **net_settings(args, net)}


def _multibox(args: argparse.Namespace) -> Loaded:
    """The same of DeepMultiBox."""
    from overfeat.multibox.predict import detect_multibox, label_names

    if isinstance(args.min_score, tuple):
        raise ArgumentError("min_score", "must be one number for --method multibox")
    min_score = MIN_SCORE if args.min_score is None else args.min_score
    model, net = load_multibox_nets(args)
    if args.nms_iou_threshold is None:  # the default of DetectionConfig
        args.nms_iou_threshold = ProposalConfig.nms_iou_threshold
    config = config_from_args(ProposalConfig, args)
    names = label_names(model, net)
    settings = {"method": args.method, **asdict(config), **multibox_settings(args), "classes": names}
    detector = partial(detect_multibox, model, net, score_threshold=min_score, **asdict(config))
    return detector, None, names, min_score, settings


def _print(path: Path, objects: Sequence[dict], min_score: float | Sequence[float]) -> None:
    """A line for each object of an image."""
    from tqdm import tqdm

    if not objects:
        if isinstance(min_score, Sequence):
            threshold = f"{min(min_score):g} to {max(min_score):g}, by its class,"
        else:
            threshold = f"{min_score:g}"
        tqdm.write(f"{printable(path)}: no object with a score of {threshold} or more", file=sys.stderr)
    for entry in objects:
        x1, y1, x2, y2 = entry["box"]
        box = f"{x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}"
        print(f"{printable(entry['class'])} {entry['score']:.3f} {box} {entry['confidence_sum']:.2f} {entry['count']}")


def _write_coco(folder: Path, annotations: Path | None, class_names: Sequence[str]) -> int:
    """Write the results of all images in a folder as one list, as COCO's tools read it, with names beside the ids.

    Returns the number of images.
    """
    from overfeat.data.readers.coco import coco_ids

    objects = dict(_results(folder))
    images, classes = coco_ids(annotations, list(objects), class_names)
    results = list(coco_results(objects, images, classes))
    write_json(folder / COCO, results, indent=None)
    return len(objects)


def _results(folder: Path) -> Iterator[tuple[str, list[dict]]]:
    """The names of the images whose results are in a folder, sorted, and their objects; other JSON is passed over."""
    for path in sorted(folder.rglob("*.json")):
        if path.name in (SETTINGS, COCO) or path.parent.name.startswith(".part-"):  # being written by another part
            continue
        try:
            result = json.loads(path.read_bytes())
        except ValueError:
            continue
        if isinstance(result, dict) and {"image", "objects"} == set(result) - {DAMAGE}:
            yield path.relative_to(folder).as_posix().removesuffix(".json"), result["objects"]
