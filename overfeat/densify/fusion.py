"""Layers that run together: a convolution with the batch normalization and the ReLU after it."""

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from overfeat.densify.export import op_name

BATCH_NORM = "_native_batch_norm_legit_no_training"


@dataclass(frozen=True)
class Fusion:
    """Which nodes run with the layer before them, so that the layer has no output of its own.

    Attributes:
        relus: Convolutions and linear layers that run the ReLU after them.
        norms: Convolutions whose weights include the batch normalization after them, with its node.
        done: The ReLUs and normalizations that have thus been run.
    """

    relus: Collection[Node] = frozenset()
    norms: Mapping[Node, Node] = field(default_factory=dict)
    done: Collection[Node] = frozenset()


def find_fusion(nodes: Sequence[Node], constants: Collection[Node]) -> Fusion:
    """All such nodes. constants: weights, and what is computed from weights alone."""
    norms, relus, done = {}, set(), set()
    layer_of: dict[Node, Node] = {}  # the layer whose output a node's value is
    for node in nodes:
        name, before = op_name(node), node.args[0] if node.args else None
        if not isinstance(before, Node):
            continue
        alone = len(before.users) == 1
        if name in ("conv2d", "linear") and all(a in constants for a in node.all_input_nodes if a is not before):
            layer_of[node] = node
        elif name == BATCH_NORM and alone and op_name(before) == "conv2d" and before in layer_of:
            if len(node.users) == 1 and all(a in constants for a in node.all_input_nodes if a is not before):
                norms[before] = node
                done.add(node)
        elif node.target is operator.getitem and before in done and node.args[1] == 0:
            layer_of[node] = layer_of[before.all_input_nodes[0]]
        elif name == "relu" and alone and before in layer_of:
            relus.add(layer_of[before])
            done.add(node)
    return Fusion(frozenset(relus), norms, frozenset(done))


def fold(layer: Sequence[Tensor | None], norm: Sequence[Tensor | None], epsilon: float) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution with the batch normalization after it.

    layer: kernel and bias; norm: scale, shift, mean and variance.
    """
    (weight, bias), (gamma, beta, mean, variance) = layer, norm
    assert weight is not None and mean is not None and variance is not None
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = (variance.to(dtype) + epsilon).rsqrt() * (1 if gamma is None else gamma)
    shift = (-mean if bias is None else bias.to(dtype) - mean) * scale + (0 if beta is None else beta)
    return (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)
