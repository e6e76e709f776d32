"""`overfeat localize`: the top classes of images, with boxes.

Print up to five predictions for each image, a class and its box with the summed confidence: the boxes predicted at
every position of six scales, merged. The weights must hold a box regressor (`overfeat train regressor`); --module takes
a torch.nn.Module of your own that gives scores and boxes of windows.

Examples:
    overfeat localize photo.jpg
    overfeat localize photos/ --weights run/net.safetensors -o results/
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.cli.cluster import add_cluster_options, check_cluster
from overfeat.cli.command import Commands, add_command
from overfeat.cli.dense import add_dense_options, dense_arguments, dense_settings
from overfeat.cli.images import ImageWork, add_image_options, find_images, process_images
from overfeat.cli.module import BoxModuleOptions
from overfeat.cli.net import add_net_options, load_localizer, net_settings
from overfeat.cli.options import add_options, config_from_args
from overfeat.cli.results import add_out, can_draw, result_folder
from overfeat.errors import printable
from overfeat.files import write_json
from overfeat.localization.config import LocalizationConfig

if TYPE_CHECKING:
    from torch import Tensor

    from overfeat.dense.detections import Detections


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "localize", run, __doc__)
    add_image_options(parser)
    add_options(parser.add_argument_group("boxes"), LocalizationConfig)
    help = "write IMAGE.json and IMAGE.png, the boxes of each scale and the merged ones (needs the extra plots); "
    add_out(parser, help + "a second run continues")
    add_cluster_options(parser)
    add_net_options(parser, released=False, module=BoxModuleOptions)
    add_dense_options(parser)


def run(args: argparse.Namespace) -> int:
    """Localize the objects of the images."""
    check_cluster(args, folder=bool(args.out))
    work, images = _Localization(args), find_images(args)
    if args.out:
        settings = {"command": "localize", **asdict(work.config), **dense_settings(args, work.net)}
        work.results = result_folder(args, images, settings | net_settings(args, work.net), ".json", [".png"])
    return process_images(args, images, work)


class _Localization(ImageWork):
    key = "predictions"

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.net, self.regressor = load_localizer(args)
        self.config = config_from_args(LocalizationConfig, args)
        self.draw = bool(args.out) and can_draw()

    def process(self, path: Path, image: "Tensor") -> list[dict]:
        from overfeat.dense.candidates import candidates
        from overfeat.dense.detections import best_per_class, merge
        from overfeat.visualize import localization

        top_k, threshold, dense = self.config.top_k, self.config.relative_threshold, dense_arguments(self.args)
        raw = candidates(self.net, self.regressor, image, top_k=top_k, relative_threshold=threshold, **dense)
        merged = merge(raw, (image.shape[1], image.shape[2]), match_threshold=self.config.match_threshold)
        predictions = best_per_class(merged, top_k)
        entries = _entries(predictions, self.net.class_names)
        if self.results:
            if self.draw:
                picture = self.results(path, ".png")
                localization(image, raw, predictions, self.net.class_names, path.name, picture)
            write_json(self.results(path), {"image": str(path), "predictions": entries})
        return entries

    def show(self, path: Path, entry: list[dict]) -> None:
        if not entry:
            print(f"{printable(path)}: no box within the image", file=sys.stderr)
        for prediction in entry:
            x1, y1, x2, y2 = prediction["box"]
            print(f"{printable(prediction['class'])} {prediction['score']:.6g} {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}")


def _entries(predictions: "Detections", names: list[str]) -> list[dict]:
    """The predictions of an image as JSON holds them."""
    columns = (predictions.labels, predictions.scores, predictions.counts, predictions.boxes)
    return [
        {"class": names[label], "score": score, "count": count, "box": [round(edge, 2) for edge in box]}
        for label, score, count, box in zip(*(column.tolist() for column in columns), strict=True)
    ]
