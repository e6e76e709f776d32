"""DeepMultiBox: K class-agnostic boxes and their confidences from one forward pass."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from overfeat.errors import InputError
from overfeat.models.architecture import Architecture
from overfeat.models.overfeat import OverFeat, initialise
from overfeat.ops.boxes import BOX_CODERS

# The unit of DeepMultiBox's linear outputs, as a part of the square; in whole squares each step would move boxes far.
OUTPUT_SCALE = 0.02
MAX_BOXES = 100_000  # of a file
INITIAL_LOGIT = -3.0  # the logit of every confidence before training


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
        self.init_weights()

    @property
    def groups(self) -> int:
        """How many times K boxes there are: the classes, or 1."""
        return 1 if self.class_names is None else len(self.class_names)

    @property
    def side(self) -> int:
        """Of the square images, in pixels."""
        return self.net.architecture.window

    def init_weights(self, std: float | None = None) -> None:
        """New weights: He's scaling, or N(0, std); at first every box is its prior, or near the middle, and unsure."""
        self.net.init_weights(std)
        last = self.net.fc_layers[-1]
        initialise(last, 0.01)
        box = 0 * BOX_CODERS["edges"] if self.priors is not None else BOX_CODERS["edges"] / OUTPUT_SCALE
        with torch.no_grad():
            last.bias.view(-1, 5)[:, :4] = box.to(last.bias)
            last.bias.view(-1, 5)[:, 4] = INITIAL_LOGIT

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [N, groups, K, 4] in the images' unit squares, and the logits of their confidences [N, groups, K].

        images: float or uint8 [N, 3, side, side], RGB in 0..255. A box's edges may be in the wrong order, and
        reach out of the square. Raises ValueError for other shapes.
        """
        if tuple(images.shape[2:]) != (self.side, self.side):
            raise ValueError(f"images must be {self.side} px squares, not {tuple(images.shape)}")
        values = self.net(images).float().view(len(images), self.groups, self.boxes, 5)
        boxes = OUTPUT_SCALE * values[..., :4]
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
        if type(boxes) is not int or not 0 < boxes * len(names or "1") <= MAX_BOXES:
            raise ValueError(f"{boxes!r} boxes, for each of {len(names or '1')} classes")
        found = MultiBox(architecture, boxes, names, torch.zeros(boxes, 4) if data["priors"] else None)
        found.flip = bool(data["flip"])
        return found
