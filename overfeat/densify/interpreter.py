"""A module's graph, run on whole images."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from overfeat import ops
from overfeat.densify.context import Context, Sym, filled, resolve
from overfeat.densify.export import Program, is_number, label, op_name
from overfeat.densify.fusion import BATCH_NORM, Fusion, find_fusion, fold
from overfeat.densify.rules import apply_rule, windows_only
from overfeat.densify.trees import leaves, map_leaves
from overfeat.densify.values import Axis, Maps, Shared, View, WindowGrid, from_plain
from overfeat.regions import region

MULTIPLY = frozenset(("conv2d", "linear", "matmul", "bmm", "addmm", "mm", "scaled_dot_product_attention"))


@dataclass
class Observer:
    """Is called around every node of a run that is measured."""

    before: Callable[[Node], None]
    after: Callable[[Node, Any, str | None], None]  # with the value, and why windows no longer share it, if so


class Interpreter:
    """Runs a program by the rules of shared values.

    Args:
        program: Of the module.
        borders: "exact", "neighbours" or "refuse".
        fuse: Whether layers run together, see fusion.py.
    """

    def __init__(self, program: Program, borders: str, *, fuse: bool = True):
        self.program = program
        self.constants = constant_nodes(program)
        self.fusion = find_fusion(program.nodes, {*self.constants, *program.constants}) if fuse else Fusion()
        self.names = {node: op_name(node) for node in program.nodes}
        self.regions = {node: label(node) if name in MULTIPLY else name for node, name in self.names.items()}
        self.context = Context(borders, program.weights, relu=self.fusion.relus)
        # Dynamo cannot trace this loop: compiled, it silently gives other numbers. The net runs as it is.
        self.run = torch.compiler.disable(self.run)  # type: ignore[method-assign]

    def start(self, images: Tensor, grid: WindowGrid, offsets: tuple[int, int] = (0, 0)) -> dict[Node, Any]:
        """The values before the first node: images [N, C, h, w] whose first window is `offsets` from their corner."""
        window = self.program.window
        axes = (Axis(window[0], offset=offsets[0]), Axis(window[1], offset=offsets[1]))
        return {self.program.image: Maps(axes, {("shared", "shared"): from_plain(images)}, grid)}

    def run(
        self, values: dict[Node, Any], nodes: Sequence[Node], num_windows: int, device: torch.device,
        keep: Iterable[Node] = (), observer: Observer | None = None,
    ) -> dict[Node, Any]:  # fmt: skip
        """Run nodes; `values` gets their values, and loses those that no later node uses."""
        keep = set(keep)
        for node in nodes:
            if node in self.constants:
                continue
            if observer is not None:
                observer.before(node)
            values[node], reason = self._node(node, values, num_windows, device)
            if observer is not None:
                observer.after(node, values[node], reason)
            for done in self.program.dead[node]:
                if done not in keep:
                    values.pop(done, None)
        return values

    def _node(
        self, node: Node, values: dict[Node, Any], num_windows: int, device: torch.device
    ) -> tuple[Any, str | None]:
        """The value of a node, and why windows no longer share it where they shared its input."""
        name = self.names[node]
        if name == "sym_size":
            return Sym(lambda count: count), None

        def value(argument: Any) -> Any:
            if not isinstance(argument, Node):
                return argument
            return values[argument] if argument in values else self.constant(argument, device)

        args = map_leaves(value, node.args)
        kwargs = self._as_now(map_leaves(value, dict(node.kwargs)), device)
        if node in self.fusion.done:
            return (args[0],) if name == BATCH_NORM else args[0], None
        if node in self.fusion.norms:
            args = (args[0], *self._folded(node, device), *args[3:])
        if node.target is operator.getitem:
            return args[0][args[1]], None
        if is_number(node):
            target: Callable = node.target  # type: ignore[assignment]
            return Sym(lambda count: target(*resolve(args, count), **resolve(kwargs, count))), None
        inputs = (values.get(argument) for argument in node.all_input_nodes)
        shared = [v for v in inputs if isinstance(v, Shared)]
        with region(self.regions[node]):
            if not shared:
                return self._plain(node, args, kwargs, num_windows), None
            result = apply_rule(self.context, node, name, args, kwargs)
            if result is not None:
                return result, None if _is_shared(result) else _border_reason(node)
            result = self._plain(node, windows_only(args), windows_only(kwargs), num_windows)
            return result, None if name == "linear" else _whole_reason(shared)

    def _as_now(self, kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """The device and the dtype of a new tensor, which are the module's when it was exported, as they are now."""
        if "device" in kwargs:
            kwargs["device"] = device
        if kwargs.get("dtype") == self.program.dtype:
            kwargs["dtype"] = self.program.weights.dtype or self.program.dtype
        return kwargs

    def _plain(self, node: Node, args: Any, kwargs: Any, num_windows: int) -> Any:
        """The module's own op on a batch of windows, or on constants."""
        args, kwargs = resolve(args, num_windows), resolve(kwargs, num_windows)
        target: Callable = node.target  # type: ignore[assignment]
        if self.names[node] == "linear" and args[0].dim() == 2:
            return self._linear(node, *args)
        if self.names[node] in ("view", "_unsafe_view"):  # memory formats are not the module's
            target = torch.ops.aten.reshape.default
        result = target(*args, **kwargs)
        return result.relu_() if node in self.context.relu else result

    def _linear(self, node: Node, flat: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A fully connected layer on a batch of windows, with its ReLU."""
        as_kernel = self.program.weights.derived(
            (node, "linear", weight.device.type), [weight], lambda: weight[..., None, None]
        )
        return ops.linear(flat, as_kernel, bias, relu=node in self.context.relu)

    def constant(self, node: Node, device: torch.device) -> Any:
        """A weight, or what the module computes from weights alone, which is computed once."""
        weights, key = self.program.weights, (node, device.type)
        if node in self.program.constants:
            tensor = weights.value(self.program.constants[node])
            if device.type == "meta":
                return weights.derived(key, [tensor], lambda: torch.empty_like(tensor, device="meta"))
            return tensor
        sources = [weights.value(self.program.constants[source]) for source in self.constants[node]]

        def compute() -> Any:
            values = {argument: self.constant(argument, device) for argument in node.all_input_nodes}
            return self._node(node, values, 0, device)[0]

        return weights.derived(key, sources, compute)

    def _folded(self, node: Node, device: torch.device) -> tuple[Tensor, Tensor]:
        """Kernel and bias of a convolution with the batch normalization after it."""
        norm = self.fusion.norms[node]
        inputs = [*filled(node.args[1:3], None, None), *norm.args[1:5]]
        tensors: list[Any] = [self.constant(n, device) if isinstance(n, Node) else None for n in inputs]
        epsilon: Any = norm.args[-1]
        sources = [t for t in tensors if t is not None]
        return self.program.weights.derived(
            (node, "fold", device.type), sources, lambda: fold(tensors[:2], tensors[2:], epsilon)
        )


def constant_nodes(program: Program) -> dict[Node, list[Node]]:
    """The nodes that depend on weights alone, each with the weights."""
    sources: dict[Node, list[Node]] = {node: [node] for node in program.constants}
    for node in program.nodes:
        if all(argument in sources for argument in node.all_input_nodes):
            sources[node] = list(dict.fromkeys(s for argument in node.all_input_nodes for s in sources[argument]))
    return {node: sources[node] for node in program.nodes if node in sources}


def _is_shared(value: Any) -> bool:
    return any(isinstance(v, Shared) for v in leaves(value))


def _border_reason(node: Node) -> str | None:
    """Why a rule gives a batch of windows; None where its output has a single cell anyway."""
    value = node.meta["val"]
    spatial = isinstance(value, Tensor) and value.dim() == 4 and max(value.shape[2:]) > 1
    return "nearly all of its cells see the window's border" if spatial else None


def _whole_reason(shared: Sequence[Maps | View]) -> str | None:
    """Why an op without a rule runs on a batch of windows; None where its inputs have a single cell anyway."""
    maps = [v.maps if isinstance(v, View) else v for v in shared]
    return "it mixes all cells of a window" if any(max(m.shape[1:]) > 1 for m in maps) else None
