"""A converted module up to a layer: the features of every window in place of its scores."""

from dataclasses import replace

import torch
from torch.fx import Graph, Node

from overfeat.densify.export import Program, last_uses, op_name
from overfeat.densify.interpreter import MULTIPLY
from overfeat.densify.net import DensifiedNet
from overfeat.densify.outputs import Outputs
from overfeat.densify.views import COPIES, LAYOUT

POOLS = ("mean", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")


def embedding_net(net: DensifiedNet, layer: str | None, cells: int) -> DensifiedNet:
    """The net up to a layer, which gives the features of every window as its outputs.

    Maps are averaged over cells x cells equal parts of the window, so that the features keep what lies where.

    Args:
        net: Weights are shared with it.
        layer: A submodule's path, or a node of the exported graph; InputError for any other. None: what the last layer
            with weights, the classifier, is given, before an average over the window.
        cells: Along a side; where the layer's maps have fewer cells, those.
    """
    source = _classifier_input(net) if layer is None else net.node(layer)
    program = _up_to(net.program, source, cells)
    count = int(program.outputs[0].meta["val"].shape[1])
    names = [f"feature {i}" for i in range(count)]
    features = DensifiedNet(
        program, net.geometry, net.preparation, Outputs(0, None, count), class_names=names, borders=net.borders,
        activation="none", flip=False,
    )  # fmt: skip
    features.scale_factors, features.default_stride, features.reach = net.scale_factors, net.default_stride, net.reach
    return features


def _classifier_input(net: DensifiedNet) -> Node:
    """What the last layer with weights on the way to the scores is given, before layouts and averages over cells."""
    program = net.program
    node = program.outputs[net.outputs.scores]
    while node is not program.image and op_name(node) not in MULTIPLY:
        node = _data_of(program, node)
    node = _data_of(program, node) if node is not program.image else node
    while node is not program.image and op_name(node) in (*LAYOUT, *COPIES, *POOLS):
        node = _data_of(program, node)
    return node


def _data_of(program: Program, node: Node) -> Node:
    """The first input of a node that is no weight."""
    return next(n for n in node.all_input_nodes if n not in program.constants and n.meta["val"] is not None)


def _up_to(program: Program, source: Node, cells: int) -> Program:
    """The part of a program that gives the features [windows, numbers] of a node."""
    graph, needed, pending = Graph(), set(), [source]
    copies: dict[Node, Node] = {}
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    for node in (program.image, *program.constants, *program.nodes):
        if node in needed or node is program.image:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    nodes = [copies[node] for node in program.nodes if node in needed]
    last = copies[source]
    shape = last.meta["val"].shape
    if len(shape) == 4 and max(shape[2:]) > 1:
        bins = [min(cells, int(side)) for side in shape[2:]]
        strides = [int(side) // count for side, count in zip(shape[2:], bins, strict=True)]
        kernel = [int(s) - (n - 1) * step for s, n, step in zip(shape[2:], bins, strides, strict=True)]
        nodes.append(last := _call(graph, torch.ops.aten.avg_pool2d.default, last, kernel, strides))
    if len(shape) > 2:
        nodes.append(last := _call(graph, torch.ops.aten.flatten.using_ints, last, 1))
    return replace(
        program, nodes=nodes, image=copies[program.image], outputs=[last],
        constants={copies[n]: name for n, name in program.constants.items() if n in copies},
        dead=last_uses(nodes, [last], copies[program.image]),
    )  # fmt: skip


def _call(graph: Graph, op: torch._ops.OpOverload, source: Node, *args: object) -> Node:
    node = graph.call_function(op, (source, *args))  # type: ignore[arg-type]
    node.meta["val"] = op(source.meta["val"], *args)
    return node
