"""What the commands share: choosing the net, the images, the scales, and running over a folder."""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from overfeat.data.annotated import Annotated
from overfeat.data.images import MAX_PIXELS, list_images, read_image
from overfeat.data.readers.annotations import read_annotations
from overfeat.data.readers.ilsvrc import read_ilsvrc_boxes
from overfeat.data.resize import resize_short_side
from overfeat.dense.scales import Scale
from overfeat.dense.tiling import MEMORY
from overfeat.errors import InputError, WriteError, shorten, with_path
from overfeat.files import atomic_write, ensure_dir
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.checkpoint import find_regressor, load, load_multibox
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat
from overfeat.models.released import RELEASED_FILES, load_released, read_labels
from overfeat.multibox.predict import names_of
from overfeat.training.distributed import choose_device

ASSETS = Path(str(resources.files("overfeat"))) / "assets"
NOTE = "settings.json"
SHIPPED_WEIGHTS = ASSETS / "small.safetensors"
SHIPPED_DETECTOR = ASSETS / "detector.safetensors"


def add_net_options(parser: argparse.ArgumentParser, released: bool = True) -> None:
    """released: the raw weights of 2013 will do, too, which have no boxes."""
    group = parser.add_argument_group("net")
    group.add_argument("--weights", type=Path, metavar="FILE", help="weights written by overfeat (safetensors)")
    if released:
        group.add_argument(
            "-d",
            "--data-dir",
            type=Path,
            metavar="DIR",
            help="folder with the released net_weight_0 (fast) and net_weight_1 (accurate)",
        )
        group.add_argument("-l", "--large-net", action="store_true", help="the accurate net of --data-dir")
    else:
        parser.set_defaults(data_dir=None, large_net=False)
    group.add_argument("--labels", type=Path, metavar="FILE", help="class names, one a line")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one")


def add_image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE|FOLDER")
    parser.add_argument(
        "--max-pixels",
        type=positive,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse larger images (default: %(default)s)",
    )


def add_dense_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("dense evaluation")
    group.add_argument(
        "--scales",
        type=scale_list,
        metavar="LIST",
        help="numbers 1-6 of the net's six scales, factors of the image's own size such as 0.5 or 1.0, sizes such as "
        "245x317 (turned as the image is), 'native'; separated by commas (default: all six; a detector's own)",
    )
    group.add_argument("--stride", choices=("fine", "coarse"), default="fine", help="default: %(default)s")
    group.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also look at the mirror image (default: as the net was trained)",
    )
    group.add_argument(
        "--memory",
        type=positive,
        default=MEMORY >> 20,
        metavar="MIB",
        help="memory for maps; larger images go in tiles (default: %(default)s)",
    )


# What a split may be called in a folder, the first that is there.
TRAINING, VALIDATION, TESTING = ("train", "trainval"), ("validation", "val"), ("test", "validation", "val")


def add_box_options(group, splits: Sequence[str]) -> None:
    """The flags that name annotated images; `read_boxes` reads them."""
    group.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help="a COCO .json file; a folder with SPLIT.json; a PASCAL VOC folder, or one of XML files beside their "
        "images; with --devkit the ILSVRC images",
    )
    group.add_argument("--split", metavar="NAME", help=f"of a folder (default: {' or '.join(splits)}, the first there)")
    group.add_argument("--images", type=Path, metavar="DIR", help="the images, where they do not lie beside --data")
    group.add_argument("--devkit", type=Path, metavar="DIR", help="the ILSVRC2012 development kit")
    group.add_argument("--boxes", type=Path, metavar="DIR", help="with --devkit: the folder of XML files")
    group.add_argument(
        "--skip-invalid", action="store_true", help="leave bad annotations out; otherwise nothing starts"
    )


def read_boxes(
    args: argparse.Namespace,
    path: Path,
    splits: Sequence[str],
    split: str | None = None,
    images: Path | None = None,
    boxes: Path | None = None,
) -> Annotated:
    """The annotated images at a path; what is left out is told on stderr.

    splits: the names to look for in a folder; a folder that has other splits alone is refused. split: the one
    that was asked for. images, boxes: folders in the place of --images and --boxes.
    """
    if args.devkit:
        if not args.boxes:
            raise InputError("--devkit needs --boxes, the folder of ILSVRC's XML files")
        part = "train" if splits == TRAINING else "validation"
        found = read_ilsvrc_boxes(args.devkit, path, boxes or args.boxes, part, skip_invalid=args.skip_invalid)
    else:
        there = splits_in(path)
        split = split or next((name for name in splits if name in there), None)
        if split is None and there:
            raise InputError(f"{path}: has none of the splits {', '.join(splits)}, but {shorten(there)}; name the file, "
                             "or the split with --split")  # fmt: skip
        found = read_annotations(path, images or args.images, split, skip_invalid=args.skip_invalid)
    tell_problems(found, "bad annotations")
    return found


def tell_problems(found: Annotated, what: str) -> None:
    """On stderr, if there are any."""
    if found.problems:
        print(f"left out: {len(found.problems)} {what}", *found.problems, sep="\n  ", file=sys.stderr)


def splits_in(folder: Path) -> list[str]:
    """The splits of a folder of annotations: its .json files and VOC's lists."""
    lists = folder / "ImageSets" / "Main"
    # VOC also has a list for every class there, "dog_train".
    of_voc = [file.stem for file in sorted(lists.glob("*.txt")) if "_" not in file.stem]
    return [*(file.stem for file in sorted(folder.glob("*.json"))), *of_voc]


def adopt_names(net: OverFeat, names: Sequence[str]) -> None:
    """Give a net without class names, as the released ones are, those of the data; they are in one order."""
    if net.class_names == [f"class {i}" for i in range(net.num_classes)]:
        net.class_names = list(names[: net.num_classes])


def positive(text: str) -> int:
    """An argparse type: a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def scale_list(text: str) -> list[Scale]:
    """An argparse type: "1,2,0.5,245x317,native" as a list of scales."""
    scales: list[Scale] = []
    for part in text.split(","):
        sides = part.strip().lower().split("x")
        if sides == ["native"]:
            scales.append("native")
        elif sides[0] in set("123456") and len(sides) == 1:
            scales.append(int(sides[0]))
        elif all(side.isdecimal() for side in sides) and len(sides) == 2:
            scales.append((int(sides[0]), int(sides[1])))
        elif re.fullmatch(r"\d*\.\d*[1-9]\d*|[1-9]\d*\.0*", part.strip()):
            scales.append(float(part))
        else:
            raise argparse.ArgumentTypeError(f"{part!r} is no scale: 1-6, a factor as 0.5, HEIGHTxWIDTH or native")
    return scales


def load_net(args: argparse.Namespace) -> OverFeat:
    """The net that --weights, -d and -l choose; without them the shipped small net (digits)."""
    if args.weights and args.data_dir:
        raise InputError("--weights and --data-dir both name weights; give one of them")
    if args.large_net and not args.data_dir:
        raise InputError(
            "-l is the accurate net, which needs its weights: -d FOLDER with the released net_weight_1; "
            "other weights are chosen with --weights"
        )
    if args.data_dir:
        name = "accurate" if args.large_net else "fast"
        net = load_released(args.data_dir / RELEASED_FILES[name], name)
    else:
        net = load(args.weights or SHIPPED_WEIGHTS)
    if args.labels:
        net.class_names = read_labels(args.labels, net.num_classes)
    return net.to(choose_device(args.device))


def load_detector(args: argparse.Namespace) -> tuple[OverFeat, BoxRegressor]:
    """The detector that the flags name, on the device that they name."""
    args.weights = args.weights or SHIPPED_DETECTOR
    net, regressor = load_net(args), find_regressor(args.weights)
    if regressor is None or not net.background:
        lacks = "no box regressor" if regressor is None else "no background class"
        raise InputError(f"{args.weights}: no detector, since it has {lacks}; train one with `overfeat train detector`")
    return net, regressor.to(net.device)


def load_boxes(args: argparse.Namespace) -> tuple[MultiBox, OverFeat | None]:
    """DeepMultiBox's two nets, those of --weights and --classifier, on the device that is named."""
    if not args.weights:
        raise InputError("DeepMultiBox needs --weights: none ship; train some with `overfeat train multibox`")
    model, net = load_multibox(args.weights), load(args.classifier) if args.classifier else None
    if model.class_names is not None and net is not None:
        raise InputError(f"{args.weights}: gives boxes of classes already; leave --classifier out")
    names = net or model
    if args.labels:
        if names.class_names is None:
            raise InputError(f"--labels {args.labels}: boxes of anything have no names; give --classifier")
        own = read_labels(args.labels, len(names_of(model, net)))
        names.class_names = [*own, *names.class_names[len(own) :]]
    device = choose_device(args.device)
    return model.to(device), net and net.to(device)


def multibox_note(args: argparse.Namespace) -> dict:
    """What identifies the two nets in a folder's settings."""
    files = {"weights": args.weights, "classifier": args.classifier}
    return {name: path and digest(path) for name, path in files.items()}


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files that paths name, folders replaced by the images in them."""
    found = []
    for path in paths:
        found += list_images(path) if path.is_dir() else [path]
    return found


def read_for(net: OverFeat, path: Path, max_pixels: int) -> Tensor:
    """Read an image; one smaller than the net's window is enlarged to it, as the 2013 program does."""
    image = read_image(path, max_pixels)
    if min(image.shape[1:]) < net.architecture.window:
        height, width = image.shape[1:]
        if max(height, width) / min(height, width) * net.architecture.window**2 > max_pixels:
            raise InputError(f"{path}: {width}x{height} is too narrow to be enlarged to the net's window; crop it")
        image = resize_short_side(image[None], net.architecture.window)[0]
    return image


def over_images(
    images: Sequence[Path],
    work: Callable[[Path], None],
    output: Callable[[Path], Path] | None = None,
) -> int:
    """Do `work` on every image; a bad one is reported, passed over and listed at the end.

    A result that cannot be written ends the run, since the next could not be written either.
    output: where an image's result goes; images whose result is there already are skipped, so that
    a second run continues an interrupted one. Gives the exit status: 1 if any image failed.
    """
    failed = []
    todo = [path for path in images if output is None or not output(path).exists()]
    if len(todo) < len(images):
        print(f"{len(images) - len(todo)} of {len(images)} images are done already", file=sys.stderr)
    for path in tqdm(todo, unit="image", disable=len(todo) < 2 or None, leave=False):
        try:
            work(path)
        except WriteError:
            raise
        except InputError as error:
            if len(images) == 1:
                raise
            message = with_path(path, error)
            failed.append(message)
            tqdm.write(f"skipped: {message}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(images)} images failed:", *failed, sep="\n  ", file=sys.stderr)
    return 1 if failed else 0


def result_folder(
    folder: Path,
    images: Sequence[Path],
    settings: dict,
    suffix: str,
    beside: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> Callable[[Path], Path]:
    """Prepare a folder for one result an image; gives where each goes.

    suffix: of the result's name, after the image's. beside: of others that are written with it, such as
    pictures, which must not lie among the images. whole: names of files for all images. `settings.json` in it
    holds what the results depend on, so that a second run with other settings is refused instead of mixed in.
    """
    names: dict[str, Path] = {}
    for path in images:
        if f"{path.name}{suffix}" in (NOTE, *whole):
            raise InputError(f"{path}: its result would be called {path.name}{suffix}, as another file is; rename it")
        other = names.setdefault(path.name, path)
        if other != path:
            raise InputError(f"{other} and {path} would both write {path.name}{suffix}; run them into two folders")
    if beside and folder.resolve() in {path.resolve().parent for path in images}:
        raise InputError(f"{folder}: holds the images themselves; choose another folder for what comes out of them")
    ensure_dir(folder)
    settings = {**settings, "folders": sorted({str(path.resolve().parent) for path in images})}
    note = folder / NOTE
    text = json.dumps(settings, indent=1, sort_keys=True)
    if not note.exists():
        results = [*whole, *(f"{path.name}{end}" for path in images for end in (suffix, *beside))]
        foreign = [name for name in results if (folder / name).exists()]
        if foreign:
            raise InputError(f"{folder}: holds {foreign[0]} of something else; choose another folder")
        with atomic_write(note) as part:
            part.write_text(text)
    elif note.read_bytes() != text.encode():
        raise InputError(f"{folder}: holds results of other settings (see {note.name}); choose another folder")
    return lambda path: folder / f"{path.name}{suffix}"


def weights_note(args: argparse.Namespace, net: OverFeat) -> dict:
    """What identifies the net in a folder's settings: the file's SHA-256, and the class names."""
    path = args.weights or SHIPPED_WEIGHTS
    if args.data_dir:
        path = args.data_dir / RELEASED_FILES[net.architecture.name]
    return {"weights": digest(path), "classes": net.class_names}


def digest(path: Path) -> str:
    """A file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
