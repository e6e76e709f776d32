"""Detections, a heat map and features of a large image, block by block. Needs the extra `large`.

    python examples/large_image.py slide.svs --weights run/net.safetensors -o out
    python examples/large_image.py -o out      # a picture of handwritten digits, which is made first

Stopped and started again, it continues at the block.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

import overfeat  # or overfeat.fast
from overfeat.dense.results import object_entries
from overfeat.files import ASSETS
from overfeat.large import detect_large, open_image, write_csv, write_geojson, write_layer_output, write_score_maps

CELL = 210  # pixels between the pictures of digits


def make_slide(path: Path, side: int) -> None:
    """Write a tiled TIFF of side x side pixels, and levels of a half and a quarter: the shipped pictures of digits."""
    pictures = [Image.open(file).convert("RGB") for file in sorted(ASSETS.glob("multi-object/test/*.png"))]
    slide = Image.new("RGB", (side, side), (128, 128, 128))
    for number in range((side // CELL) ** 2):
        row, column = divmod(number, side // CELL)
        slide.paste(pictures[(row + column) % len(pictures)], (CELL * column, CELL * row))
    stored: dict[str, Any] = {"tile": (256, 256), "compression": "deflate", "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(3):
            file.write(np.asarray(slide.reduce(2**level)), subfiletype=int(level > 0), **stored)


def main() -> None:
    """Write OUT/objects.geojson, objects.csv, heat.zarr and features.zarr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", nargs="?", type=Path)
    parser.add_argument("--weights", type=Path, default=ASSETS / "detector.safetensors")
    parser.add_argument("--side", type=int, default=2000, help="pixels of the picture that is made")
    parser.add_argument("-o", "--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.slide is None:
        args.slide = args.out / "slide.tif"
        if not args.slide.exists():  # its time is part of what the blocks are for
            make_slide(args.slide, args.side)

    net, regressor = overfeat.load(args.weights), overfeat.load_regressor(args.weights)
    image = open_image(args.slide)
    print(f"{image.name}: levels {', '.join(f'{height}x{width}' for height, width in image.levels)}")

    detections = detect_large(net, regressor, image, folder=args.out / "blocks", progress=True)
    objects = object_entries(detections, net.class_names)
    write_geojson(args.out / "objects.geojson", objects, image.georeference)
    write_csv(args.out / "objects.csv", image.name, objects, image.georeference)
    print(f"{len(objects)} objects")

    for name, write, options in (
        ("heat.zarr", write_score_maps, {"scales": [0.5]}), ("features.zarr", write_layer_output, {"layer": "5"}),
    ):  # fmt: skip
        if not (args.out / name).exists():
            write(net, image, args.out / name, progress=True, **options)
        print(f"{args.out / name} is written")


if __name__ == "__main__":
    main()
