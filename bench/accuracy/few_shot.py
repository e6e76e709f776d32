"""Classes learned from one, three and five pictures: python -m bench.accuracy.few_shot [--bccd FOLDER]

Letters in the fonts that matplotlib installs, photographs of scikit-image, altered, and with --bccd the cells of BCCD:
all are classes that the nets never saw. A picture is learned by `Prototypes`, as the library does, and each query is
the window of another picture. Beside the features: the logits of the same net, and the pixels.
"""

import argparse
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from torch import Tensor
from tqdm import tqdm

import overfeat
from bench.common import write_results
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.data.images import read_image
from overfeat.data.readers.annotations import read_annotations
from overfeat.data.resize import resize, resize_crop
from overfeat.data.synthetic.sources import photograph
from overfeat.prototypes.predict import THRESHOLD, Prototypes

NAME = "accuracy-few-shot"
COMMAND = "python -m bench.accuracy.few_shot --bccd BCCD"
SHOTS, EPISODES, QUERIES = (1, 3, 5), 1000, 1  # queries: of each class in an episode
SIDE = 256  # pixels of a picture
FONTS = {
    "DejaVu Sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique"),
    "DejaVu Sans Mono": ("DejaVuSansMono", "DejaVuSansMono-BoldOblique"),
    "DejaVu Serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    "STIX": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic"),
    "Computer Modern": ("cmr10", "cmss10", "cmtt10", "cmti10"),
}
PICTURES = (
    "coffee.png astronaut.png chelsea.png rocket.jpg camera.png motorcycle_left.png clock_motion.png coins.png "
    "horse.png page.png ihc.png retina.jpg logo.png moon.png"
).split()
VARIANTS, CELLS_OF_A_KIND = 8, 40


@dataclass(frozen=True)
class Data:
    """Pictures [classes, pictures, 3, SIDE, SIDE] of classes that the nets never saw.

    Attributes:
        groups: Of each picture of a class: pictures of a query's group are not learned from in its episode.
        flip: Whether a mirror image shows the class as well.
    """

    title: str
    pictures: Tensor
    groups: list[int]
    way: int
    flip: bool


def letters() -> Iterable[Data]:
    """The capital letters, learned from other fonts, and from other families of fonts."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [(family, folder / f"{name}.ttf") for family, names in enumerate(FONTS.values()) for name in names]
    drawn = [[_letter(character, file) for _, file in files] for character in string.ascii_uppercase]
    pictures = torch.stack([torch.stack(row) for row in drawn])
    yield Data("letters, other fonts", pictures, list(range(len(files))), 5, False)
    yield Data("letters, other families", pictures, [family for family, _ in files], 5, False)


def _letter(character: str, file: Path) -> Tensor:
    """A black letter, three fifths of a white picture's side."""
    font = ImageFont.truetype(str(file), SIDE)
    left, top, right, bottom = font.getbbox(character)
    ink = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2), 255)
    ImageDraw.Draw(ink).text((1 - left, 1 - top), character, font=font, fill=0)
    scale = 0.6 * SIDE / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.LANCZOS)
    picture = Image.new("L", (SIDE, SIDE), 255)
    picture.paste(ink, ((SIDE - ink.width) // 2, (SIDE - ink.height) // 2))
    return torch.from_numpy(np.array(picture))[None].expand(3, -1, -1)


def photographs() -> Data:
    """A photograph is a class; its pictures are turned, cropped, mirrored, lighter or darker."""
    rng = np.random.default_rng(0)
    pictures = torch.stack([torch.stack([_altered(name, rng) for _ in range(VARIANTS)]) for name in PICTURES])
    return Data("photographs, altered", pictures, list(range(VARIANTS)), 5, True)


def _altered(name: str, rng: np.random.Generator) -> Tensor:
    photo, _ = photograph(name)
    side = min(photo.size)
    x, y = (photo.width - side) // 2, (photo.height - side) // 2
    image = photo.crop((x, y, x + side, y + side)).rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR)
    part = side * rng.uniform(0.5, 0.9)
    x, y = rng.uniform(0, side - part, 2)
    image = image.crop((round(x), round(y), round(x + part), round(y + part))).resize((SIDE, SIDE))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        image = enhance(image).enhance(rng.uniform(0.6, 1.4))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def cells(folder: Path) -> Data:
    """Red and white blood cells and platelets, one of each kind and image, in squares 1.2 times their boxes."""
    data = read_annotations(folder, split="test")
    by_kind: dict[int, list[Tensor]] = {label: [] for label in range(len(data.class_names))}
    for sample in data.samples:
        image = read_image(sample.path)
        for label, kept in by_kind.items():
            boxes = sample.boxes[sample.labels == label]
            if len(boxes) and len(kept) < CELLS_OF_A_KIND:
                x, y, side = (boxes[0, 0] + boxes[0, 2]) / 2, (boxes[0, 1] + boxes[0, 3]) / 2, 0.6 * _side(boxes[0])
                kept.append(resize_crop(image, (x - side, y - side, x + side, y + side), (SIDE, SIDE)))
    count = min(map(len, by_kind.values()))
    pictures = torch.stack([torch.stack(kept[:count]) for kept in by_kind.values()])
    return Data("blood cells", pictures, list(range(count)), 3, True)


def _side(box: np.ndarray) -> float:
    return max(float(box[2] - box[0]), float(box[3] - box[1]))


# What pictures are compared by: directions to learn from, and those of single windows, [classes, pictures, numbers]

Compared = Callable[[Data], tuple[Tensor, Tensor]]


def by_pixels(data: Data) -> tuple[Tensor, Tensor]:
    """24 x 24 grey pixels less their mean."""
    small = resize(data.pictures.flatten(0, 1).float().mean(dim=1, keepdim=True), (24, 24)).flatten(1)
    own = F.normalize(small - small.mean(dim=1, keepdim=True), dim=1).unflatten(0, data.pictures.shape[:2])
    return own, own


def by_features(prototypes: Prototypes, data: Data) -> tuple[Tensor, Tensor]:
    """As `Prototypes.add` and `Prototypes.classify` of a picture's middle window."""
    learned, queries = [], []
    for picture in tqdm(data.pictures.flatten(0, 1), unit="picture", leave=False):
        learned.append(prototypes.direction(picture, flip=data.flip))
        window = resize(picture[None].float(), prototypes.geometry.window)
        queries.append(F.normalize(prototypes.window_features(window)[0], dim=0))
    of_data = data.pictures.shape[:2]
    return torch.stack(learned).unflatten(0, of_data), torch.stack(queries).unflatten(0, of_data)


def accuracy(learned: Tensor, queries: Tensor, data: Data, shots: int) -> dict[str, float]:
    """Episodes of `way` random classes, of each `shots` pictures to learn and a query of another group.

    Returns:
        In percent: accuracy and its standard error, and of the scores from the library's default threshold up those of
        the query's class ("accepted") and those of others ("mistaken").
    """
    rng, groups = np.random.default_rng(0), np.array(data.groups)
    right, own, others = [], [], []
    for _ in range(EPISODES):
        classes, prototypes, asked = rng.permutation(len(learned))[: data.way], [], []
        for label in classes:
            query = int(rng.integers(len(groups)))
            allowed = np.flatnonzero(groups != groups[query])
            chosen = rng.permutation(allowed)[:shots]
            prototypes.append(F.normalize(learned[label, torch.from_numpy(chosen)].sum(dim=0), dim=0))
            asked.append(queries[label, query])
        scores, same = torch.stack(asked) @ torch.stack(prototypes).T, torch.eye(data.way, dtype=torch.bool)
        right.append(float((scores.argmax(dim=1) == torch.arange(data.way)).float().mean()))
        own.append(scores[same])
        others.append(scores[~same])
    return {
        "accuracy": 100 * float(np.mean(right)),
        "error": 100 * float(np.std(right)) / EPISODES**0.5,
        "accepted": 100 * float((torch.cat(own) >= THRESHOLD).float().mean()),
        "mistaken": 100 * float((torch.cat(others) >= THRESHOLD).float().mean()),
    }


def contestants() -> dict[str, Compared]:
    """What is compared, by its name in the tables."""
    net, digits = overfeat.squeezenet().with_borders("neighbours"), overfeat.load(SHIPPED_WEIGHTS)
    logits = net.program.outputs[net.outputs.scores].name
    made = {
        "SqueezeNet's logits": Prototypes(net, layer=logits),
        "digit net, 47 px": Prototypes(digits),
        "SqueezeNet": Prototypes(net),
        "SqueezeNet, cells=1": Prototypes(net, cells=1),
        "SqueezeNet, layer=fire7": Prototypes(net, layer="fire7"),
    }
    return {"pixels": by_pixels, **{name: partial(by_features, p) for name, p in made.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bccd", type=Path, metavar="FOLDER", help="the BCCD data set, a VOC folder")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    sets = [*letters(), photographs(), *([cells(args.bccd)] if args.bccd else [])]
    results: dict[str, dict] = {}
    for name, compare in contestants().items():
        known: dict[int, tuple[Tensor, Tensor]] = {}  # two sets have the same pictures
        for data in sets:
            if id(data.pictures) not in known:
                known[id(data.pictures)] = compare(data)
            own = {str(shots): accuracy(*known[id(data.pictures)], data, shots) for shots in SHOTS}
            results.setdefault(data.title, {})[name] = own
            print(f"{name:24} {data.title:24}", *(f"{own[str(s)]['accuracy']:6.1f}" for s in SHOTS), flush=True)
    sizes = {data.title: {"classes": len(data.pictures), "pictures": data.pictures.shape[1], "way": data.way}
             for data in sets}  # fmt: skip
    write_results(NAME, COMMAND, {"episodes": EPISODES, "threshold": THRESHOLD, "sets": sizes, "rates": results})


if __name__ == "__main__":
    main()
