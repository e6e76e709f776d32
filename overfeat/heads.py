"""What a net ends in to give boxes: the regressor at every place (section 4.2), and DeepMultiBox."""

import json
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfeat import stages
from overfeat.architectures import Architecture, Stride
from overfeat.boxes import FORMS
from overfeat.files import InputError
from overfeat.nets import OverFeat, following, full_rows, initialise

GATHERED = 1 << 24  # bytes of windows that are gathered at a time
# The unit of DeepMultiBox's linear outputs, as a part of the square; in whole squares each step would move boxes far.
UNIT = 0.02
MOST_BOXES = 100_000  # of a file
UNSURE = -3.0  # the logit of every confidence before training
HIDDEN = (4096, 1024)  # the paper's, beside a classifier whose widest layer has 4096


class Regressor(nn.Module):
    """Predicts a box at every place of a net's last maps (section 4.2).

    architecture: of the net. classes: one box for each class ("per-class regression"), or None for
    one box in all ("single-class"). form: how a box is written, see boxes.encode. hidden: channels
    of the hidden layers; by default the paper's, scaled down with the net's, and the first by the pooling
    where pooled is False. pooled: it sees the pooled maps,
    as in the paper; False: the maps before the last pooling, which tell better where things are, window by
    window. dropout: applied to the hidden layers in training.
    """

    def __init__(
        self,
        architecture: Architecture,
        classes: int | None = None,
        form: str = "edges",
        hidden: Sequence[int] | None = None,
        pooled: bool = True,
    ):
        super().__init__()
        if form not in FORMS:
            raise InputError(f"the form of a box is one of {', '.join(FORMS)}, not {form!r}")
        share = min(1.0, max(architecture.hidden) / HIDDEN[0])
        scaled = [width * share for width in HIDDEN]
        if not pooled:
            scaled[0] /= architecture.pool  # it has pool * pool as many inputs
        self.hidden = tuple(hidden or (max(1, round(width)) for width in scaled))
        if min(self.hidden) < 1 or (classes is not None and classes < 1):
            raise InputError(f"hidden layers of {self.hidden} channels for {classes} classes: give 1 or more of each")
        self.architecture, self.classes, self.form, self.dropout = architecture, classes, form, 0.0
        self.pooled, kernel = pooled, architecture.kernel * (1 if pooled else architecture.pool)
        channels = architecture.convs[-1].channels
        self.fulls = nn.ModuleList()
        for i, width in enumerate((*self.hidden, 4 * (classes or 1))):
            self.fulls.append(nn.Conv2d(channels, width, kernel if i == 0 else 1))
            channels = width
        self.to(memory_format=torch.channels_last)
        self.reset()

    def reset(self, std: float | None = None) -> None:
        """New weights: He's scaling, or N(0, std); at first every box is the middle of its window."""
        for layer in self.fulls[:-1]:
            initialise(layer, std)
        last = self.fulls[-1]
        initialise(last, std or 0.01)
        last.bias.data = FORMS[self.form].to(last.bias).repeat(self.classes or 1)

    def rows(
        self, maps: Sequence[Tensor], stride: Stride = "fine", places: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[tuple[int, int, int]]]:
        """Boxes from unpooled last maps: [places, classes or 1, 4] in the windows' frame, and (N, h, w) of each map.

        places: int64 [n] of each map, those that are wanted of its N * h * w; None: all of them.
        """
        dropout = self.dropout if self.training else 0.0
        if self.pooled:
            rows, shapes = full_rows(self.fulls, maps, self.architecture.pool, stride, dropout, stages.BOXES)
            if places is not None:
                starts = torch.tensor([0, *(n * h * w for n, h, w in shapes)]).cumsum(0).tolist()
                rows = rows[torch.cat([start + p for start, p in zip(starts, places, strict=False)])]
        else:
            step = 1 if stride == "fine" else self.architecture.pool
            first, shapes = stages.run("boxes", self._first_rows, maps, step, places)
            rows = stages.run("boxes", following, self.fulls, first, dropout)
        return rows.view(len(rows), self.classes or 1, 4), shapes

    def _first_rows(
        self, maps: Sequence[Tensor], step: int, places: Sequence[Tensor] | None
    ) -> tuple[Tensor, list[tuple[int, int, int]]]:
        """The first layer over windows `step` apart that are gathered one by one, not many at a time."""
        layer, kernel, parts = self.fulls[0], self.fulls[0].kernel_size[0], []
        shapes = [(len(m), *((side - kernel) // step + 1 for side in m.shape[2:])) for m in maps]
        if places is None:
            places = [torch.arange(math.prod(shape), device=maps[0].device) for shape in shapes]
        weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
        count = max(1, GATHERED // (weight.shape[1] * weight.element_size()))
        for m, of_map, shape in zip(maps, places, shapes, strict=True):
            for some in of_map.split(count):
                parts.append(F.linear(_windows(m, kernel, step, shape, some), weight, layer.bias).relu_())
        return torch.cat(parts), shapes

    def settings(self) -> dict[str, str | bool]:
        """What a resumed training must find unchanged, by the name of its flag."""
        return {
            "form": self.form,
            "per_class": self.classes is not None,
            "hidden": " ".join(map(str, self.hidden)),
            "maps": "pooled" if self.pooled else "unpooled",
        }

    def to_json(self) -> str:
        """All but the weights, as text for files; `from_json` gives it back."""
        return json.dumps({"classes": self.classes, "form": self.form, "hidden": self.hidden, "pooled": self.pooled})

    @staticmethod
    def from_json(text: str, architecture: Architecture) -> "Regressor":
        """Raises ValueError, KeyError or TypeError where the text is no regressor."""
        data = json.loads(text)
        return Regressor(architecture, data["classes"], data["form"], data["hidden"], data.get("pooled", True))


def _windows(maps: Tensor, kernel: int, step: int, shape: tuple[int, int, int], places: Tensor) -> Tensor:
    """What the windows at these places of maps [N, C, H, W] hold: [places, kernel * kernel * C]."""
    _, rows, columns = shape
    height, width = maps.shape[2:]
    image, row, column = places // (rows * columns), places // columns % rows, places % columns
    start = (image * height + row * step) * width + column * step
    inside = torch.arange(kernel, device=maps.device)
    inside = (inside[:, None] * width + inside).flatten()
    return maps.permute(0, 2, 3, 1).flatten(0, 2)[start[:, None] + inside].flatten(1)


class MultiBox(nn.Module):
    """K boxes and how sure it is of each, from one look at a square image (DeepMultiBox, section 3).

    architecture: one that sees the whole image at once, see Architecture.whole. boxes: K. class_names: K boxes
    for each of these classes; None: K in all, of anything ("class-agnostic"). priors: [K, 4], boxes in the unit
    square that the outputs are added to; None: the outputs are the boxes. flip: whether mirror images were
    part of training. net: the feature layers, the hidden layers, and one linear layer of boxes and confidences.
    Raises InputError for no boxes or classes, ValueError for priors of another shape.
    """

    priors: Tensor | None

    def __init__(
        self,
        architecture: Architecture,
        boxes: int = 100,
        class_names: Sequence[str] | None = None,
        priors: Tensor | None = None,
    ):
        super().__init__()
        if boxes < 1 or (class_names is not None and not class_names):
            raise InputError(f"{boxes} boxes for the classes {class_names}: give one or more of each")
        if priors is not None and tuple(priors.shape) != (boxes, 4):
            raise ValueError(f"priors must be [{boxes}, 4], not {tuple(priors.shape)}")
        self.boxes, self.class_names = boxes, None if class_names is None else list(class_names)
        self.flip = True
        self.net = OverFeat(architecture, 5 * boxes * self.groups)
        self.register_buffer("priors", priors)
        self.reset()

    @property
    def groups(self) -> int:
        """How many times K boxes there are: the classes, or 1."""
        return 1 if self.class_names is None else len(self.class_names)

    @property
    def side(self) -> int:
        """Of the square images, in pixels."""
        return self.net.architecture.window

    def reset(self, std: float | None = None) -> None:
        """New weights: He's scaling, or N(0, std); at first every box is its prior, or near the middle, and unsure."""
        self.net.reset(std)
        last = self.net.fulls[-1]
        initialise(last, 0.01)
        box = 0 * FORMS["edges"] if self.priors is not None else FORMS["edges"] / UNIT
        with torch.no_grad():
            last.bias.view(-1, 5)[:, :4] = box.to(last.bias)
            last.bias.view(-1, 5)[:, 4] = UNSURE

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [N, groups, K, 4] in the images' unit squares, and the logits of their confidences [N, groups, K].

        images: float or uint8 [N, 3, side, side], RGB in 0..255. A box's edges may be in the wrong order, and
        reach out of the square. Raises ValueError for other shapes.
        """
        if tuple(images.shape[2:]) != (self.side, self.side):
            raise ValueError(f"images must be {self.side} px squares, not {tuple(images.shape)}")
        values = self.net(images).float().view(len(images), self.groups, self.boxes, 5)
        boxes = UNIT * values[..., :4]
        if self.priors is not None:
            boxes = boxes + self.priors
        return boxes, values[..., 4]

    def to_json(self) -> str:
        """All but the weights, as text for files; `from_json` gives it back."""
        settings = {"boxes": self.boxes, "class_names": self.class_names, "priors": self.priors is not None}
        return json.dumps({**settings, "flip": self.flip})

    @staticmethod
    def from_json(text: str, architecture: Architecture) -> "MultiBox":
        """Raises ValueError, KeyError or TypeError where the text is no such net."""
        data = json.loads(text)
        names, boxes = data["class_names"], data["boxes"]
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise TypeError(f"class_names {names!r}")
        if type(boxes) is not int or not 0 < boxes * len(names or "1") <= MOST_BOXES:
            raise ValueError(f"{boxes!r} boxes, for each of {len(names or '1')} classes")
        found = MultiBox(architecture, boxes, names, torch.zeros(boxes, 4) if data["priors"] else None)
        found.flip = bool(data["flip"])
        return found
