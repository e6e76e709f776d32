"""`overfeat scenes`: write synthetic images of digits on photographs, with boxes.

Write synthetic images: real handwritten digits (MNIST) on real photographs. Each split gets an image folder
FOLDER/SPLIT/ and a COCO file FOLDER/SPLIT.json with the digits' boxes. With one digit an image, the images lie in a
folder for each class. A second run continues an interrupted one.

Examples:
    overfeat scenes digits --split train --count 4000
    overfeat scenes multi-object --objects 0 8 --num-workers 4
"""

import argparse

from overfeat.cli.command import Commands, add_command
from overfeat.data.synthetic import DIGITS, MAX_OBJECTS, SPLITS
from overfeat.options import positive


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "scenes", run, __doc__)
    parser.add_argument("folder", metavar="FOLDER", help="where to write; made if missing")
    help = "which to write (default: %(default)s)"
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="all", help=help)
    help = "images in each split (default: %(default)s)"
    parser.add_argument("--count", type=int, default=1000, metavar="N", help=help)
    help = "0 or more; another seed gives other images (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=help)
    help = f"the smallest and largest number of digits in an image, at most {MAX_OBJECTS} (default: 1 1)"
    parser.add_argument("--objects", type=int, nargs=2, default=(1, 1), metavar=("LO", "HI"), help=help)
    help = "the digits that occur (default: all ten)"
    parser.add_argument("--digits", type=int, nargs="+", default=DIGITS, metavar="D", help=help)
    help = "processes that draw (default: %(default)s)"
    parser.add_argument("--num-workers", type=positive, default=1, metavar="N", help=help)


def run(args: argparse.Namespace) -> int:
    """Write the images."""
    from overfeat.data.synthetic.dataset import write_dataset

    for split in SPLITS if args.split == "all" else (args.split,):
        coco = write_dataset(
            args.folder,
            split,
            args.count,
            seed=args.seed,
            objects=tuple(args.objects),
            digits=args.digits,
            num_workers=args.num_workers,
        )
        print(f"{coco}: {args.count} images")
    return 0
