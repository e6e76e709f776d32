"""DeepMultiBox: K class-agnostic boxes and their confidences from one forward pass."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from overfeat.errors import ArgumentError, check_count, check_names
from overfeat.models.architecture import Architecture
from overfeat.models.metadata import entries, flag, items, parse, string, whole
from overfeat.models.overfeat import OverFeat, check_architecture, initialise
from overfeat.ops.boxes import BOX_CODERS

# Unit of the linear outputs for boxes, as a fraction of the square; in whole squares a step would move boxes far.
OUTPUT_SCALE = 0.02
MAX_BOXES = 100_000  # that a file may ask for
INITIAL_LOGIT = -3.0  # of every confidence before training


class MultiBox(nn.Module):
    """Predicts K boxes and their confidences in one forward pass over a square image (DeepMultiBox, section 3).

    Args:
        architecture: One whose window is the whole image, see `Architecture.with_input_size`.
        num_boxes: K.
        class_names: K boxes for each of these classes; None: K class-agnostic boxes.
        priors: [K, 4], boxes in the unit square to which the outputs are added; None: the outputs are the boxes.

    Attributes:
        net: The feature layers, the hidden layers, and one linear layer of boxes and confidences.
        flip: Whether mirror images were part of training.
    """

    priors: Tensor | None

    def __init__(
        self, architecture: Architecture, num_boxes: int = 100, class_names: Sequence[str] | None = None,
        priors: Tensor | None = None,
    ):  # fmt: skip
        super().__init__()
        check_architecture(architecture)
        check_count("num_boxes", num_boxes)
        if class_names is not None:
            check_names("class_names", class_names)
        if class_names is not None and not class_names:
            raise ArgumentError("class_names", "must hold at least one class")
        if priors is not None and not isinstance(priors, Tensor):
            raise TypeError(f"priors must be a tensor [{num_boxes}, 4], not {type(priors).__name__}")
        if priors is not None and tuple(priors.shape) != (num_boxes, 4):
            raise ValueError(f"priors must be [{num_boxes}, 4], not {tuple(priors.shape)}")
        self.num_boxes, self.class_names = num_boxes, None if class_names is None else list(class_names)
        self.flip = True
        self.net = OverFeat(architecture, 5 * num_boxes * self.num_groups)
        self.register_buffer("priors", priors)
        self.init_weights()

    @property
    def num_groups(self) -> int:
        """How many times K boxes there are: the number of classes, or 1."""
        return 1 if self.class_names is None else len(self.class_names)

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.net.architecture.window

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.net.device

    def init_weights(self) -> None:
        """Initialise all weights; every box is its prior, or near the middle, with a low confidence."""
        self.net.init_weights()
        last = self.net.fc_layers[-1]
        initialise(last, 0.01)
        box = 0 * BOX_CODERS["xyxy"] if self.priors is not None else BOX_CODERS["xyxy"] / OUTPUT_SCALE
        assert last.bias is not None
        if last.bias.is_meta:  # see `initialise`
            return
        with torch.no_grad():
            last.bias.view(-1, 5)[:, :4] = box.to(last.bias)
            last.bias.view(-1, 5)[:, 4] = INITIAL_LOGIT

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes in the images' unit squares, and the logits of their confidences.

        Args:
            images: Float or uint8 [N, 3, image_size, image_size], RGB in 0..255; ValueError for other shapes.

        Returns:
            [N, groups, K, 4], whose edges may be in the wrong order or outside of the square; and [N, groups, K].
        """
        if tuple(images.shape[2:]) != (self.image_size, self.image_size):
            raise ValueError(f"images must be {self.image_size} px squares, not {tuple(images.shape)}")
        values = self.net(images).float().view(len(images), self.num_groups, self.num_boxes, 5)
        boxes = OUTPUT_SCALE * values[..., :4]
        if self.priors is not None:
            boxes = boxes + self.priors
        return boxes, values[..., 4]

    def to_json(self) -> str:
        """All but the weights, as text for files; `from_json` gives it back."""
        config = {"num_boxes": self.num_boxes, "class_names": self.class_names, "priors": self.priors is not None}
        return json.dumps({**config, "flip": bool(self.flip)})

    @staticmethod
    def from_json(text: str, architecture: Architecture) -> "MultiBox":
        """What `to_json` wrote. Raises ValueError for any other text."""
        data = entries(parse(text), "the DeepMultiBox", ("num_boxes", "class_names", "priors", "flip"))
        names, num_boxes = data["class_names"], whole(data["num_boxes"], "num_boxes", maximum=MAX_BOXES)
        if names is not None:
            most = MAX_BOXES // num_boxes
            names = [string(class_name, "a class name") for class_name in items(names, "class_names", most)]
        priors = torch.zeros(num_boxes, 4) if flag(data["priors"], "priors") else None
        model = MultiBox(architecture, num_boxes, names, priors)
        model.flip = flag(data["flip"], "flip")
        return model
