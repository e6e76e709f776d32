"""What stands beside the classifier on the same last maps: the box regressor (section 4.2)."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from overfeat.boxes import FORMS
from overfeat.files import InputError
from overfeat.nets import Architecture, Stride, full_rows, initialise

HIDDEN = (4096, 1024)  # the paper's, beside a classifier whose widest layer has 4096


class Regressor(nn.Module):
    """Predicts a box at every place of a net's last maps (section 4.2).

    architecture: of the net. classes: one box for each class ("per-class regression"), or None for
    one box in all ("single-class"). form: how a box is written, see boxes.encode. hidden: channels
    of the hidden layers; by default the paper's, scaled down with the net's. dropout: applied to
    them in training.
    """

    def __init__(
        self,
        architecture: Architecture,
        classes: int | None = None,
        form: str = "edges",
        hidden: Sequence[int] | None = None,
    ):
        super().__init__()
        if form not in FORMS:
            raise InputError(f"the form of a box is one of {', '.join(FORMS)}, not {form!r}")
        share = min(1.0, max(architecture.hidden) / HIDDEN[0])
        self.hidden = tuple(hidden or (max(1, round(width * share)) for width in HIDDEN))
        if min(self.hidden) < 1 or (classes is not None and classes < 1):
            raise InputError(f"hidden layers of {self.hidden} channels for {classes} classes: give 1 or more of each")
        self.architecture, self.classes, self.form, self.dropout = architecture, classes, form, 0.0
        channels = architecture.convs[-1].channels
        self.fulls = nn.ModuleList()
        for i, width in enumerate((*self.hidden, 4 * (classes or 1))):
            self.fulls.append(nn.Conv2d(channels, width, architecture.kernel if i == 0 else 1))
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

    def rows(self, maps: Sequence[Tensor], stride: Stride = "fine") -> tuple[Tensor, list[tuple[int, int, int]]]:
        """Boxes from unpooled last maps: [places, classes or 1, 4] in the windows' frame, and (N, h, w) of each map."""
        dropout = self.dropout if self.training else 0.0
        rows, shapes = full_rows(self.fulls, maps, self.architecture.pool, stride, dropout)
        return rows.view(len(rows), -1, 4), shapes

    def to_json(self) -> str:
        """All but the weights, as text for files; `from_json` gives it back."""
        return json.dumps({"classes": self.classes, "form": self.form, "hidden": self.hidden})

    @staticmethod
    def from_json(text: str, architecture: Architecture) -> "Regressor":
        """Raises ValueError, KeyError or TypeError where the text is no regressor."""
        data = json.loads(text)
        return Regressor(architecture, data["classes"], data["form"], data["hidden"])
