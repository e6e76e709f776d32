"""What photographs show, and where: SqueezeNet with the 1,000 classes of ImageNet, which ships.

    python examples/classify.py                        # two photographs that ship
    python examples/classify.py cat.jpg dog.png -o out

Prints the three best classes of each photograph, and draws the scores of the best one at every position to
OUT/NAME.png. Six scales of a photograph take a few seconds; `--scales 1` evaluates it at its own size alone.
"""

import argparse
from pathlib import Path

import overfeat  # or `import overfeat.fast as overfeat`
from overfeat.dense.heat_maps import class_scores
from overfeat.files import ASSETS

PHOTOS = [ASSETS / "photos" / name for name in ("coffee.jpg", "chelsea.png")]


def main() -> None:
    """Classify the photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path, default=PHOTOS)
    parser.add_argument("--scales", nargs="+", type=float, help="factors of the photograph's size; default: six scales")
    parser.add_argument("--stride", type=int, default=32, help="pixels from window to window")
    parser.add_argument("-o", "--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    net = overfeat.squeezenet()  # or overfeat.densify(your module, window), see own_network.py
    for photo in args.photos:
        maps = overfeat.score_maps(net, photo, scales=args.scales, stride=args.stride)  # a map for each scale
        scores = class_scores(maps)  # best window of each scale, mean of the scales: what overfeat.classify returns
        best = scores.topk(3)
        named = [f"{net.class_names[i]} {score:.2f}" for score, i in zip(best.values, best.indices, strict=True)]
        windows = sum(score_map.grid.num_positions for score_map in maps)
        maps.picture().save(args.out / f"{photo.stem}.png")
        print(f"{photo.name}: {', '.join(named)}; {windows} windows -> {args.out / photo.stem}.png")


if __name__ == "__main__":
    main()
