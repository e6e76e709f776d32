"""`densify`: any module that classifies a window, as a net for images of any size."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from overfeat.densify.check import check_conversion
from overfeat.densify.context import pair
from overfeat.densify.export import Program, arguments, export, op_name
from overfeat.densify.net import Activation, DensifiedNet, Preparation, check_borders
from overfeat.densify.outputs import ends_in_sigmoid, find_outputs
from overfeat.errors import ArgumentError, check_choice, check_count, check_flag, check_names, is_whole
from overfeat.models.feature_graph import SLIDING
from overfeat.models.geometry import Geometry, Size
from overfeat.models.wrappers import unwrap
from overfeat.ops.boxes import BOX_CODERS

SHORT_SIDE = 8 / 7  # of an image for a single crop, in windows: 256 for a window of 224


def densify(
    module: nn.Module | ExportedProgram, window: int | Size, *, class_names: Sequence[str] | None = None,
    mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0, channel_order: str = "RGB",
    borders: str = "exact", logits: bool = True, flip: bool = False, check: bool = True, channels: int | None = None,
    box_coder: str = "xyxy", name: str | None = None,
) -> DensifiedNet:  # fmt: skip
    """Any module that classifies a window, as a net that gives its outputs at every window of an image.

    The outputs equal those of every window cropped; what windows share is computed once. Weights are shared with the
    module, and its mode is left as it is. Evaluation only: no gradients.

    Args:
        module: [N, C, *window] -> scores [N, classes], or a tuple of scores and boxes [N, 4], [N, 4 * classes] or
            [N, classes, 4], in either order, scores first where both are [N, 4]; boxes are codes in the window's
            frame, see `ops.boxes.decode`. Or such a module as an `ExportedProgram` with a dynamic batch.
        window: In pixels, its side or (height, width).
        class_names: One for each score.
        mean, std: The module's input is (x - mean) / std for x in 0..255; numbers, or one for each of its channels.
        channel_order: "RGB" or "BGR", of the module's input.
        borders: What padding sees at a window's border. "exact": zeros, as in the window alone. "neighbours": the
            image's pixels beyond the window, many times cheaper; the scores are others than the module's, see
            `compare_borders`. "refuse": a module that has no padding; ArgumentError for one that has.
        logits: Whether scores are logits; False: probabilities.
        flip: Whether mirror images are part of evaluation by default.
        check: Compare random windows with the module itself.
        channels: C; by default as many as the first convolution takes, without one as many as `mean` or `std` has.
        box_coder: "xyxy" or "cxcywh", of the module's boxes.
        name: Of the net, in messages; by default the module's class.

    Raises:
        InputError: For a module that cannot be converted, with the reason.
    """
    check_borders(borders)
    module = unwrap(module)
    if not isinstance(module, (nn.Module, ExportedProgram)):
        raise ArgumentError("module", f"must be a torch.nn.Module or an ExportedProgram, not {_described(module)}")
    if isinstance(module, torch.jit.ScriptModule):
        raise ArgumentError("module", "must be the module that torch.jit.script or trace was given, not their result")
    if channels is not None:
        check_count("channels", channels)
    check_choice("box_coder", box_coder, BOX_CODERS)
    for argument, value in (("logits", logits), ("flip", flip), ("check", check)):
        check_flag(argument, value)
    if class_names is not None:
        check_names("class_names", class_names)
    if name is not None and not isinstance(name, str):
        raise ArgumentError("name", f"must be text, not {name!r}")
    program = export(module, _size(window), channels or _channels(module, mean, std))
    if program.window != _size(window):
        raise ArgumentError("window", f"must be {program.window}, for which the program was exported, not {window}")
    preparation = _preparation(mean, std, channel_order, program.channels)
    outputs = find_outputs(program, None if class_names is None else len(class_names))
    if logits and ends_in_sigmoid(program.outputs[outputs.scores]):
        raise ArgumentError("logits", "must be False: the module's scores are probabilities, from a sigmoid")
    activation: Activation = "none" if not logits else "softmax" if outputs.num_classes > 1 else "sigmoid"
    net = DensifiedNet(
        program, _geometry(program, name or type(module).__name__), preparation, outputs,
        class_names=class_names or [f"class {i}" for i in range(outputs.num_classes)], borders=borders,
        activation=activation, flip=flip, box_coder=box_coder,
    )  # fmt: skip
    net.scale_factors = (1.0,)  # a patch classifier is for one magnification
    if check:
        check_conversion(net, module)
    return net


def _described(value: object) -> str:
    """A value that is no module, and the remedy of common slips."""
    if isinstance(value, Mapping):
        return "a state dict; load it into the module with module.load_state_dict"
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"the class {value.__name__}; give an instance, such as {value.__name__}()"
    return repr(value)


def _size(window: int | Size) -> Size:
    """(height, width)."""
    sides = tuple(window) if isinstance(window, (tuple, list)) else (window, window)
    whole = all(is_whole(side) and 0 < side < 1 << 31 for side in sides)
    if len(sides) != 2 or not whole:
        raise ArgumentError("window", f"must be pixels, a side or (height, width), not {window!r}")
    return int(sides[0]), int(sides[1])


def _channels(module: nn.Module | ExportedProgram, mean: object, std: object) -> int:
    if isinstance(module, ExportedProgram):
        return 0  # it has its own
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            return m.in_channels
    for values in (mean, std):
        if isinstance(values, (Sequence, Tensor)):
            return len(values)
    raise ArgumentError("channels", "must be given for a module without convolutions")


def _preparation(
    mean: float | Sequence[float], std: float | Sequence[float], channel_order: str, channels: int
) -> Preparation:
    check_choice("channel_order", channel_order, ("RGB", "BGR"))
    means, deviations = _numbers("mean", mean, channels), _numbers("std", std, channels)
    if min(deviations) <= 0:
        raise ArgumentError("std", f"must be above 0, not {std}")
    if 0 < max(map(abs, means)) < 1:
        raise ArgumentError("mean", f"must be of pixels in 0..255, not {mean}; multiply mean and std by 255")
    if min(deviations) < 1:
        raise ArgumentError("std", f"must be of pixels in 0..255, not {std}; multiply mean and std by 255")
    return Preparation(means, deviations, channel_order == "BGR")


def _numbers(argument: str, values: float | Sequence[float], channels: int) -> tuple[float, ...]:
    """One for each channel."""
    try:
        given = np.asarray(values)
        if given.dtype.kind not in "iuf":  # text, among others
            raise TypeError(given.dtype)
        numbers = (float(given),) * channels if given.ndim == 0 else tuple(map(float, given))
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(argument, f"must be a number or one for each channel, not {values!r}") from error
    if len(numbers) != channels:
        own = "1 channel" if channels == 1 else f"{channels} channels"
        raise ArgumentError(argument, f"must be one number or one for each of the module's {own}, not {len(numbers)}")
    if not all(map(math.isfinite, numbers)):
        raise ArgumentError(argument, f"must be finite, not {values}")
    return numbers


def _geometry(program: Program, name: str) -> Geometry:
    """Coarse stride is the product of all strides; fine stride has the last one less where it is a pooling's."""
    jumps, coarse, pool = {program.image: 1}, 1, 1
    for node in program.nodes:
        stride = _stride(node) if isinstance(node.meta["val"], Tensor) and node.meta["val"].dim() == 4 else 1
        before = max((jumps.get(argument, 1) for argument in node.all_input_nodes), default=1)
        jumps[node] = before * stride
        if jumps[node] > coarse:
            coarse, pool = jumps[node], stride if "pool" in op_name(node) else 1
    window = program.window
    return Geometry(name, window, coarse // pool, pool, round(max(window) * SHORT_SIDE), any_stride=True)


def _stride(node: Node) -> int:
    """The stride of a convolution or pooling whose output has more than one cell; 1 for any other op."""
    if op_name(node) not in SLIDING or max(node.meta["val"].shape[2:]) == 1:
        return 1
    a = arguments(node)
    return max(pair(a["stride"] or a["kernel_size"]))
