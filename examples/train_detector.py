"""A detector of your own objects, from annotated photographs: training, and the objects in a photograph.

    python examples/train_detector.py -o out                   # three micrographs of blood, which ship: a few minutes
    python examples/train_detector.py photos -o out --epochs 12

`photos` is a file or folder of annotations as COCO, VOC, YOLO or LabelMe have them, or a table. The detector is trained
on all photographs but the last, in which it then finds the objects: OUT/objects.png, and OUT/truth.png the annotated
ones. `overfeat train detector` does the same, with validation data, thresholds chosen on them, and many more options;
without `--epochs` and `--tiles` both choose a training of about 40,000 tiles.
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

import overfeat  # or `import overfeat.fast as overfeat`, which is faster from the first epoch on
from overfeat.data.readers.annotations import read_annotations
from overfeat.dense.detections import Detections
from overfeat.detection.build import build_detector, describe_choices
from overfeat.detection.config import TRAINING, DetectorConfig
from overfeat.detection.train import DetectorTask
from overfeat.files import ASSETS
from overfeat.training.trainer import train


def main() -> None:
    """Train, and detect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=ASSETS / "cells", help="annotated photographs")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--tiles", type=int, default=64, help="of each photograph in an epoch")
    parser.add_argument("-o", "--out", type=Path, default=Path("out"))
    args = parser.parse_args()

    data = read_annotations(args.data)
    training, last = replace(data, samples=data.samples[:-1]), data.samples[-1]
    torch.manual_seed(0)
    options, config = DetectorConfig(samples_per_image=args.tiles), replace(TRAINING, epochs=args.epochs)
    net, regressor, start = build_detector(training, options)  # chooses scale factors from the sizes of the boxes
    print(*describe_choices(training, net, options, config, start), sep="\n")
    train(DetectorTask(net, regressor, training, None, options, config), args.out / "run")

    weights = args.out / "run" / "net.safetensors"  # net and regressor in one file
    net, regressor = overfeat.load(weights), overfeat.load_regressor(weights)
    detections = overfeat.detect(net, regressor, last.path)
    detections.picture().save(args.out / "objects.png")
    labels = torch.from_numpy(last.labels)
    truth = Detections.from_boxes(torch.from_numpy(last.boxes).float(), labels, torch.ones(len(labels)))
    truth.with_source(detections.source).picture().save(args.out / "truth.png")
    true = Counter(data.class_names[label] for label in last.labels)
    print(f"{last.path.name}: detected {dict(Counter(detections.names))}, annotated {dict(true)}")


if __name__ == "__main__":
    main()
