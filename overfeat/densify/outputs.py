"""Which of a module's outputs are its scores, and which are boxes."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from overfeat.densify.export import Program, op_name
from overfeat.densify.views import LAYOUT
from overfeat.errors import ArgumentError, InputError

EXPECTED = "scores [N, classes], or scores and boxes [N, 4], [N, 4 * classes] or [N, classes, 4]"


@dataclass(frozen=True)
class Outputs:
    """Numbers of the outputs.

    Attributes:
        scores: Of the scores.
        boxes: Of the boxes, or None.
        num_classes: Number of scores.
        num_boxes: Number of boxes: one for each class, or None for one in all.
    """

    scores: int
    boxes: int | None
    num_classes: int
    num_boxes: int | None = None


def find_outputs(program: Program, num_names: int | None) -> Outputs:
    """The outputs of a program; num_names: how many class names there are, if they are known."""
    shapes = [_shape(node.meta["val"]) if isinstance(node, Node) else None for node in program.outputs]
    if len(shapes) == 1 and shapes[0] is not None and len(shapes[0]) == 1:
        return Outputs(0, None, _checked(shapes[0][0], num_names))
    pairs = [
        Outputs(scores, boxes, shapes[scores][0], None if _size(shapes[boxes]) == 4 else shapes[scores][0])  # type: ignore[index]
        for scores, boxes in itertools.permutations(range(len(shapes)), 2)
        if _are_boxes(shapes[boxes], shapes[scores])
    ]
    if not pairs:
        values = [node.meta["val"] if isinstance(node, Node) else node for node in program.outputs]
        actual = " and ".join(map(_text, values)) or "nothing"
        raise InputError(f"the module must give {EXPECTED}; it gives {actual}")
    named = [p for p in pairs if p.num_classes == num_names] if num_names is not None else pairs
    if not named:
        _checked(pairs[0].num_classes, num_names)
    if len({pair.num_classes for pair in named}) > 1 or (len(named) > 1 and len(shapes) > 2):
        counts = " or ".join(str(pair.num_classes) for pair in named)
        raise ArgumentError(
            "class_names", f"must be given: which of the {len(shapes)} outputs are scores, {counts} classes?"
        )
    return named[0]


def ends_in_sigmoid(output: Node) -> bool:
    """Whether a sigmoid gives an output, or what it is a view of."""
    while op_name(output) in LAYOUT and isinstance(output.args[0], Node):
        output = output.args[0]
    return op_name(output) == "sigmoid"


def _checked(num_classes: int, num_names: int | None) -> int:
    if num_names not in (None, num_classes):
        raise ArgumentError("class_names", f"must be {num_classes}, one for each score of the module, not {num_names}")
    return num_classes


def _shape(value: object) -> tuple[int, ...] | None:
    """The shape of an output for a window, [N] as [N, 1]; None for anything but a tensor with windows first."""
    if not isinstance(value, Tensor) or value.dim() < 1 or isinstance(value.shape[0], int):
        return None
    if not all(isinstance(side, int) for side in value.shape[1:]) or not value.is_floating_point():
        return None
    shape = tuple(int(side) for side in value.shape[1:]) or (1,)
    if 0 in shape:
        return None
    return shape[:1] if len(shape) == 3 and shape[1:] == (1, 1) else shape


def _size(shape: Sequence[int] | None) -> int:
    size = 1
    for side in shape or (0,):
        size *= side
    return size


def _are_boxes(boxes: tuple[int, ...] | None, scores: tuple[int, ...] | None) -> bool:
    if boxes is None or scores is None or len(scores) != 1:
        return False
    return boxes in ((4,), (4 * scores[0],), (scores[0], 4))


def _text(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    sides = ["N" if not isinstance(value.shape[0], int) else str(value.shape[0])] if value.dim() else []
    dtype = "" if value.is_floating_point() else f" {value.dtype}"
    return f"[{', '.join([*sides, *(str(side) for side in value.shape[1:])])}]{dtype}"
