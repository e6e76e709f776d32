"""The layers of a converted module up to a node, as a `FeatureGraph`."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from torch.fx import Node

from overfeat.densify.context import pair
from overfeat.densify.export import Program, arguments, label, op_name
from overfeat.densify.fusion import BATCH_NORM, fold
from overfeat.densify.net import DensifiedNet
from overfeat.densify.views import COPIES
from overfeat.errors import InputError
from overfeat.models.feature_graph import JOINS, POINTWISE, SLIDING, FeatureGraph, Op


def feature_graph(net: DensifiedNet, name: str) -> tuple[FeatureGraph, list[Tensor]]:
    """The layers of a converted module up to a node or submodule, on normalised RGB images; and their weights.

    Batch normalisation becomes part of the convolution before it, or a convolution of its own. InputError for a node
    that does not exist, and for operations that whole images do not share, such as a mean over the window.
    """
    pending = [last := net.node(name)]
    needed: set[Node] = set()
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    builder = _Builder(net.program, name, net.preparation.reverse)
    for node in net.program.nodes:
        if node in needed:
            builder.add(node)
    graph, weights = builder.finish(last)
    try:
        graph.step  # noqa: B018  (for its error)
    except ValueError as error:
        raise InputError(f"the layers up to {name} have no square windows: {error}; choose another node") from error
    return graph, weights


class _Builder:
    """Collects the operations of a `FeatureGraph` from nodes in the order of their execution."""

    def __init__(self, program: Program, name: str, reverse: bool):
        self.program, self.name = program, name
        self.ops = [Op("flip", (0,), (), ((1,),))] if reverse else []  # the order of the channels
        self.numbers = {program.image: len(self.ops)}  # of the map that a node gives
        self.weights: list[Tensor] = []
        self._weight_numbers: dict[Node, int] = {}

    def add(self, node: Node) -> None:
        """Add a node whose inputs have been added."""
        name, constants = op_name(node), [n for n in node.all_input_nodes if n in self.program.constants]
        maps = [n for n in node.all_input_nodes if n not in self.program.constants]
        if name == "sym_size":
            return  # for a view, which is refused
        if name in COPIES or name == "getitem":
            self.numbers[node] = self.numbers[maps[0]]
        elif name == BATCH_NORM:
            self._normalise(node, maps[0])
        elif name == "conv2d" and maps == [node.args[0]] and (args := _conv_args(node)):
            self._append(node, "conv2d", maps, self._added(constants), args)
        elif name in SLIDING and name != "conv2d":
            self._append(node, name, maps, (), _pool_args(node))
        elif name in POINTWISE and not node.kwargs:
            args = tuple(a for a in node.args if not isinstance(a, Node))
            self._append(node, name, maps, self._added(constants), args)
        elif name in JOINS and not node.kwargs and not constants:
            self._join(node, name)
        else:
            raise self._refusal(node)

    def finish(self, last: Node) -> tuple[FeatureGraph, list[Tensor]]:
        """The graph up to this node, and its weights."""
        assert self.numbers[last] == len(self.ops), last
        used = {i: number for number, i in enumerate(dict.fromkeys(i for op in self.ops for i in op.weights))}
        ops = tuple(replace(op, weights=tuple(used[i] for i in op.weights)) for op in self.ops)
        weights = [self.weights[i] for i in used]
        return FeatureGraph(self.program.channels, ops, tuple(tuple(w.shape) for w in weights)), weights

    def _append(self, node: Node, name: str, maps: Sequence[Node], weights: tuple[int, ...], args: tuple) -> None:
        self.ops.append(Op(name, tuple(self.numbers[n] for n in maps), weights, args))
        self.numbers[node] = len(self.ops)

    def _join(self, node: Node, name: str) -> None:
        a = arguments(node)
        operands = a["tensors"] if name == "cat" else list(node.args)
        if not isinstance(operands[0], Node) or (name == "cat" and a["dim"] % 4 != 1):
            raise self._refusal(node)
        maps = [n for n in operands if isinstance(n, Node)]
        numbers = (1,) if name == "cat" else tuple(n for n in operands if not isinstance(n, Node))
        self._append(node, name, maps, (), numbers)

    def _normalise(self, node: Node, before: Node) -> None:
        """Batch normalisation with its running statistics: a factor and a shift of every channel."""
        a = arguments(node)
        names = ("weight", "bias", "running_mean", "running_var")
        norm = [None if a[name] is None else self._tensor(a[name]) for name in names]
        conv = self.ops[-1] if self.ops else None
        if conv and op_name(before) == "conv2d" and self.numbers[before] == len(self.ops) and len(before.users) == 1:
            layer = [*(self.weights[i] for i in conv.weights), None][:2]
            self.ops[-1] = replace(conv, weights=self._new(*fold(layer, norm, a["eps"])))
            self.numbers[node] = len(self.ops)
        else:
            mean = self._tensor(a["running_mean"])
            weights = self._new(*fold([mean.new_ones(len(mean), 1, 1, 1), None], norm, a["eps"]))
            self._append(node, "conv2d", [before], weights, ((1, 1), (0, 0), (1, 1), len(mean)))

    def _tensor(self, node: Node) -> Tensor:
        return self.program.weights.value(self.program.constants[node]).detach()

    def _new(self, *tensors: Tensor) -> tuple[int, ...]:
        self.weights += tensors
        return tuple(range(len(self.weights) - len(tensors), len(self.weights)))

    def _added(self, constants: Sequence[Node]) -> tuple[int, ...]:
        """The numbers of these weights, which several nodes may share."""
        for node in constants:
            if node not in self._weight_numbers:
                (self._weight_numbers[node],) = self._new(self._tensor(node))
        return tuple(self._weight_numbers[node] for node in constants)

    def _refusal(self, node: Node) -> InputError:
        problem = f"{label(node)}, which is not known to give the same on a whole image as on windows"
        return InputError(f"the layers up to {self.name} hold {problem}; choose an earlier node")


def _conv_args(node: Node) -> tuple | None:
    """Those of an `Op`; None where the padding of the two sides differs."""
    a = arguments(node)
    stride, dilation, pad = pair(a["stride"]), pair(a["dilation"]), a["padding"]
    if pad == "same":
        both = [e * (k - 1) for e, k in zip(dilation, a["weight"].meta["val"].shape[2:], strict=True)]
        if any(sides % 2 for sides in both):
            return None
        pad = [sides // 2 for sides in both]
    return stride, pair(0 if pad == "valid" else pad), dilation, a["groups"]


def _pool_args(node: Node) -> tuple:
    a = arguments(node)
    kernel, pad = pair(a["kernel_size"]), pair(a["padding"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    if op_name(node) == "max_pool2d":
        return kernel, stride, pad, pair(a["dilation"]), a["ceil_mode"]
    return kernel, stride, pad, a["ceil_mode"], a["count_include_pad"], a["divisor_override"]
