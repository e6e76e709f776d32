"""A torch module as a graph of ATen ops without in-place ops, with its weights beside it."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from overfeat.densify.weights import Weights
from overfeat.errors import ArgumentError, InputError
from overfeat.models.geometry import Size
from overfeat.models.net import eval_mode

EXAMPLES = 2  # windows that are exported; 1 would be taken for a constant
RANDOM_SWITCHES = ("train", "training", "dropout_p")  # arguments of ops that draw random numbers only if asked to
SKIPPED = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "sym_constrain_range")


@dataclass(frozen=True)
class Program:
    """A module's graph.

    Attributes:
        nodes: All calls, in the order of their execution.
        image: The input [windows, C, height, width].
        constants: Names in `weights` of the other inputs.
        outputs: The nodes that the module returns.
        dead: For every node, those that no later one uses.
        dtype: Of the module when it was exported.
    """

    nodes: list[Node]
    image: Node
    constants: dict[Node, str]
    outputs: list[Node]
    dead: dict[Node, list[Node]]
    weights: Weights
    dtype: torch.dtype

    @property
    def channels(self) -> int:
        """Number of channels of the input."""
        return int(self.image.meta["val"].shape[1])

    @property
    def window(self) -> Size:
        """(height, width) of the input."""
        height, width = self.image.meta["val"].shape[2:]
        return int(height), int(width)


def op_name(node: Node) -> str:
    """The name of a node's ATen op without its overload, such as "conv2d"; of any other call its full name."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return getattr(node.target, "__name__", str(node.target))
    return schema.name.removeprefix("aten::")


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of a node's ATen op by name, with their defaults."""
    schema = cast(OpOverload, node.target)._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema}


def label(node: Node) -> str:
    """A node for a reader: its op and the submodule that calls it, such as "conv2d at features.3"."""
    name = op_name(node).removeprefix("_native_").removesuffix("_legit_no_training")
    path = submodule(node)
    return f"{name} at {path}" if path else name


def is_number(node: Node) -> bool:
    """Whether a node's value is a number, such as the number of windows, not a tensor or several."""
    return isinstance(node.meta["val"], (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))


def submodule(node: Node) -> str:
    """The path of the innermost submodule that a node is part of; "" for the module itself."""
    for path, kind in reversed(list((node.meta.get("nn_module_stack") or {}).values())):
        if isinstance(kind, str) and "." in kind:
            return str(path).removeprefix("L['self'].").replace("L['self']", "")
    return ""


def export(module: nn.Module | ExportedProgram, window: Size, channels: int) -> Program:
    """The graph of a module on windows [N, channels, *window]; InputError where the module cannot be exported."""
    exported = module if isinstance(module, ExportedProgram) else _export(module, window, channels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exported = exported.run_decompositions({})
        except Exception as error:
            raise InputError(f"the exported module cannot be functionalized: {first_line(error)}") from error
    return _program(exported)


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def example_input(module: nn.Module, window: Size, channels: int) -> Tensor:
    """Windows of zeros, in the dtype of the module and on its device."""
    weights = (*module.parameters(), *module.buffers())
    if any(weight.is_meta for weight in weights):
        raise ArgumentError("module", "must have its weights loaded: some are on the meta device")
    weight = next((w for w in weights if w.is_floating_point()), torch.zeros(()))
    return torch.zeros(EXAMPLES, channels, *window, dtype=weight.dtype, device=weight.device)


def _export(module: nn.Module, window: Size, channels: int) -> ExportedProgram:
    windows = example_input(module, window, channels)
    with eval_mode(module), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module(windows)
        except Exception as error:
            size = f"windows [N, {channels}, {window[0]}, {window[1]}]"
            raise ArgumentError(
                "window", f"and channels must be ones that the module runs on; on {size}: {first_line(error)}"
            ) from error
        try:
            batch = torch.export.Dim("n")
            with redirect_stderr(io.StringIO()), _without_log("torch.fx.experimental.symbolic_shapes"):
                return torch.export.export(module, (windows,), dynamic_shapes=({0: batch},), strict=False)
        except Exception as error:
            remedy = "its forward must use tensors only, with shapes that do not depend on their values, and any batch"
            raise InputError(f"torch.export cannot follow the module: {first_line(error)}; {remedy}") from error


@contextmanager
def _without_log(name: str) -> Iterator[None]:
    """No messages of this logger inside the block."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _program(exported: ExportedProgram) -> Program:
    graph, weights, constants = exported.graph, Weights(), {}
    images = []
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, exported.graph_signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            images.append(node)
            continue
        assert spec.target is not None
        tensor = exported.state_dict.get(spec.target, exported.constants.get(spec.target))
        constants[node] = weights.add(spec.target, tensor)
    if len(images) != 1 or not isinstance(images[0].meta["val"], Tensor) or images[0].meta["val"].dim() != 4:
        raise InputError("the module must have one input, windows [N, C, height, width]")
    if isinstance(images[0].meta["val"].shape[0], int):
        remedy = "must be exported for any batch: dynamic_shapes=({0: torch.export.Dim('n')},)"
        raise ArgumentError("module", remedy)
    nodes = [node for node in graph.nodes if node.op == "call_function" and op_name(node) not in SKIPPED]
    for node in nodes:
        _check_node(node)
    returned = next(node for node in graph.nodes if node.op == "output").args[0]
    # The others are what in-place ops make of the input and of buffers, which stay as they are.
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    outputs = [node for node, kind in zip(returned, kinds, strict=True) if kind == OutputKind.USER_OUTPUT]
    dead = last_uses(nodes, outputs, images[0])
    return Program(nodes, images[0], constants, outputs, dead, weights, images[0].meta["val"].dtype)


def _check_node(node: Node) -> None:
    """InputError for a node whose value is not the same for a window whenever it is evaluated."""
    if _is_random(node):
        alone = "the module's outputs must depend on its input alone"
        remedy = "F.dropout needs training=self.training" if "dropout" in op_name(node) else alone
        raise InputError(f"{label(node)} draws random numbers in evaluation; {remedy}")
    if any(free_unbacked_symbols(v) for v in pytree.tree_leaves(node.meta["val"]) if not isinstance(v, (int, float))):
        raise InputError(
            f"{label(node)} gives a number or a shape that depends on the values of its input; replace it, for example "
            "by torch.where"
        )


def _is_random(node: Node) -> bool:
    """Whether a node draws random numbers."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    switches = [value for name, value in arguments(node).items() if name in RANDOM_SWITCHES]
    return not switches or any(switches)


def last_uses(nodes: Sequence[Node], outputs: Sequence[Any], image: Node) -> dict[Node, list[Node]]:
    """For every node, its inputs that no later node and no output uses."""
    seen, last = set(outputs), {}
    for node in reversed(nodes):
        used = [*node.all_input_nodes, *([] if node in seen else [node])]
        last[node] = [n for n in dict.fromkeys(used) if n not in seen and (n.op != "placeholder" or n is image)]
        seen.update(used)
    return last
