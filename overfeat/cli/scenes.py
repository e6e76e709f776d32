"""`overfeat scenes`: write made-up scenes of handwritten digits on photographs."""

import argparse

from overfeat.data.synthetic.dataset import write_dataset
from overfeat.data.synthetic.images import MAX_OBJECTS
from overfeat.data.synthetic.sources import DIGITS, SPLITS


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "scenes",
        help="write made-up scenes of digits on photographs, with boxes",
        description=(
            "Write scenes: real handwritten digits (MNIST) on real photographs. Each split gets an image "
            "folder FOLDER/SPLIT/ and a COCO file FOLDER/SPLIT.json with the digits' boxes. With one digit a "
            "scene, the images lie in a folder for each class. A run that was stopped continues where it was."
        ),
        epilog="example: overfeat scenes scenes --split train --count 4000",
    )
    parser.add_argument("folder", metavar="FOLDER", help="where to write; made if missing")
    parser.add_argument(
        "--split", choices=(*SPLITS, "all"), default="all", help="which to write (default: %(default)s)"
    )
    parser.add_argument(
        "--count", type=int, default=1000, metavar="N", help="scenes in each split (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="0 or more; another seed, other scenes (default: 0)"
    )
    parser.add_argument(
        "--objects",
        type=int,
        nargs=2,
        default=(1, 1),
        metavar=("LO", "HI"),
        help=f"least and most digits in a scene, at most {MAX_OBJECTS} (default: 1 1)",
    )
    parser.add_argument(
        "--digits", type=int, nargs="+", default=DIGITS, metavar="D", help="those that occur (default: all ten)"
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that draw (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    for split in SPLITS if args.split == "all" else (args.split,):
        coco = write_dataset(
            args.folder,
            split,
            args.count,
            seed=args.seed,
            objects=tuple(args.objects),
            digits=args.digits,
            num_workers=args.workers,
        )
        print(f"{coco}: {args.count} scenes")
    return 0
