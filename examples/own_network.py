"""Your own network at every position of an image: trained on small windows, evaluated on a whole photograph.

    python examples/own_network.py -o out              # blood cells, on micrographs that ship
    python examples/own_network.py photos --window 64  # annotated photographs of yours: COCO, VOC, YOLO, ...

A small ConvNet learns to tell windows around the annotated objects from background, on all photographs but the last.
`overfeat.densify` converts it, and the last photograph, which it has not seen, is evaluated: OUT/CLASS.png are its heat
maps. Replace `make_net` by your own module.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import overfeat  # or `import overfeat.fast as overfeat`
from overfeat.data.annotated import Sample
from overfeat.data.readers.annotations import read_annotations
from overfeat.files import ASSETS

BATCH = 48


def make_net(classes: int) -> nn.Module:
    """A patch classifier: windows [N, 3, h, w] of pixels in 0..1 to logits [N, classes]."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 48, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(48 * 4 * 4, classes),
    )  # fmt: skip


def sample_window(image: Tensor, sample: Sample, window: int, background: int, rng: np.random.Generator) -> tuple:
    """A window around an object, or of background, mirrored by chance; and its class, each as often."""
    height, width = image.shape[1:]
    centres = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2
    label = int(rng.integers(background + 1))
    of_class = centres[sample.labels == label]
    if len(of_class):
        x, y = rng.choice(of_class) + rng.uniform(-0.1, 0.1, 2) * window
    else:  # of three random positions the one that is furthest from all objects
        positions = rng.uniform((0, 0), (width, height), (3, 2))
        distances = np.abs(positions[:, None] - centres).max(axis=2).min(axis=1, initial=np.inf)
        (x, y), label = positions[distances.argmax()], background
    left, top = int(np.clip(x - window / 2, 0, width - window)), int(np.clip(y - window / 2, 0, height - window))
    crop = image[:, top : top + window, left : left + window] / 255
    return (crop.flip(2) if rng.integers(2) else crop), label


def train(module: nn.Module, samples: list[Sample], window: int, background: int, steps: int) -> None:
    """Train on windows of the photographs."""
    rng, images = np.random.default_rng(0), [sample.read() for sample in samples]
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.003)
    for step in range(1, steps + 1):
        numbers = rng.integers(0, len(samples), BATCH)
        batch = [sample_window(images[i], samples[i], window, background, rng) for i in numbers]
        windows, labels = zip(*batch, strict=True)
        loss = nn.functional.cross_entropy(module(torch.stack(windows)), torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.3f}")


def main() -> None:
    """Train, convert, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=ASSETS / "cells", help="annotated photographs")
    parser.add_argument("--window", type=int, default=96, help="pixels along a side of a window")
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--stride", type=int, default=8, help="pixels from window to window")
    parser.add_argument("-o", "--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    data = read_annotations(args.data)
    *training, last = data.samples
    names = [*data.class_names, "background"]
    torch.manual_seed(0)
    module = make_net(len(names))
    train(module, training, args.window, len(data.class_names), args.steps)

    # The module sees pixels in 0..1: std=255. Its weights are shared, not copied.
    net = overfeat.densify(module, args.window, std=255, class_names=names)
    net.background = True
    print(net)  # what windows share, and which strides are cheap
    maps = overfeat.score_maps(net, last.path, stride=args.stride)
    scores = maps[0].scores[0]  # [classes, rows, columns]

    # The same score as that of the window cropped out of the photograph.
    with torch.no_grad():
        crop = last.read()[None, :, args.stride : args.stride + args.window, : args.window] / 255
        cropped = module.eval()(crop).softmax(dim=1)[0]
    print(f"largest difference from a cropped window: {(scores[:, 1, 0] - cropped).abs().max():.1g}")

    for label, name in enumerate(data.class_names):
        maps.picture(name).save(args.out / f"{name}.png")
        row, column = divmod(int(scores[label].argmax()), scores.shape[2])
        x1, y1, x2, y2 = maps[0].grid.boxes()[row, column]
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        inside = [(box[:2] <= (x, y)).all() and (box[2:] >= (x, y)).all() for box in last.boxes[last.labels == label]]
        where = "on" if any(inside) else "beside"
        print(f"{name}: best window {scores[label].max():.2f}, {where} an annotated one -> {args.out / name}.png")


if __name__ == "__main__":
    main()
