"""Feature layers as graphs: receptive fields, sizes and maps against torch's own modules, and what files may hold."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from overfeat.models.backbone import FeatureLayers
from overfeat.models.feature_graph import FeatureGraph, Op
from overfeat.models.receptive_field import SlidingWindow, output_size

PLAIN = ((1, 1), (0, 0), (1, 1), 1)  # stride, padding, dilation and groups of a convolution
SAME = ((1, 1), (1, 1), (1, 1), 1)
# Every kind of operation: padded and dilated convolutions, grouped ones, pools of both kinds, branches and sums.
GRAPH = FeatureGraph(
    3,
    (
        Op("conv2d", (0,), (0, 1), ((2, 2), (1, 1), (1, 1), 1)),
        Op("relu", (1,)),
        Op("max_pool2d", (2,), (), ((3, 3), (2, 2), (0, 0), (1, 1), True)),
        Op("conv2d", (3,), (2,), PLAIN),
        Op("conv2d", (3,), (3, 4), ((1, 1), (2, 2), (2, 2), 2)),
        Op("relu", (5,)),
        Op("cat", (4, 6), (), (1,)),
        Op("conv2d", (7,), (5, 6), SAME),
        Op("hardtanh", (8,), (), (-1.0, 2.0)),
        Op("add", (9, 7)),
        Op("avg_pool2d", (10,), (), ((2, 2), (2, 2), (0, 0), False, True, None)),
        Op("mul", (11,), (), (0.5,)),
    ),
    ((4, 3, 3, 3), (4,), (2, 4, 1, 1), (4, 2, 3, 3), (4,), (6, 6, 3, 3), (6,)),
)


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return FeatureLayers(GRAPH, [torch.randn(shape) for shape in GRAPH.weights]).double()


def by_torch(images, weights):
    """The maps of GRAPH, layer by layer."""
    w = list(weights)
    x = F.max_pool2d(F.conv2d(images, w[0], w[1], 2, 1).relu(), 3, 2, ceil_mode=True)
    x = torch.cat([F.conv2d(x, w[2]), F.conv2d(x, w[3], w[4], 1, 2, 2, 2).relu()], dim=1)
    return F.avg_pool2d(F.conv2d(x, w[5], w[6], 1, 1).clamp(-1, 2) + x, 2) * 0.5


@pytest.mark.parametrize("size", [(40, 40), (57, 43)])
def test_maps_sizes_and_gradients(layers, size):
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    maps, expected = layers(images), by_torch(images, layers.weights)
    assert GRAPH.shapes(*size)[-1] == tuple(expected.shape[1:]) and GRAPH.channels == 6
    rows, columns = (output_size([GRAPH.step], side) for side in size)
    assert (rows < expected.shape[2]) == (size == (40, 40))  # where a pool that rounds up gives a cell more
    expected = expected[:, :, :rows, :columns]
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-13)
    gradients = torch.autograd.grad(maps.square().sum(), list(layers.weights))
    expected_gradients = torch.autograd.grad(expected.square().sum(), list(layers.weights))
    for gradient, truth in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # where backends may run
        torch.testing.assert_close(layers(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [((0, 2), (3, 5)), ((2, 4), (0, 7)), ((6, 9), (4, 5)), ((0, 9), (0, 7))])
def test_cells_of_a_crop_are_those_of_the_whole(layers, rows, columns):
    images = torch.randn(1, 3, 79, 57, dtype=torch.float64)
    whole = layers(images)
    assert whole.shape[2:] == (9, 7)
    (top, bottom), own_rows = GRAPH.span(79, *rows)
    (left, right), own_columns = GRAPH.span(57, *columns)
    cells = layers(images[:, :, top:bottom, left:right], own_rows, own_columns)
    torch.testing.assert_close(cells, whole[:, :, rows[0] : rows[1], columns[0] : columns[1]], rtol=0, atol=1e-13)
    assert (bottom - top < 79) == (rows != (0, 9))


def test_receptive_field_is_what_a_cell_depends_on(layers):
    assert GRAPH.step.stride == 8
    images = torch.randn(1, 3, 96, 96, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layers(images)[..., 5, 6].abs().sum(), images)
    for axis, cell in ((2, 5), (3, 6)):
        seen = gradient.abs().sum(dim=(0, 1, 5 - axis)).nonzero()[:, 0]
        first = cell * GRAPH.step.stride - GRAPH.step.pad
        assert first <= seen[0] and seen[-1] < first + GRAPH.step.kernel
        assert seen[0] - first <= 8 and first + GRAPH.step.kernel - seen[-1] <= 9  # ReLUs hide a few


def test_a_chain_is_the_sum_of_its_steps():
    ops = (Op("conv2d", (0,), (0,), ((2, 2), (0, 0), (1, 1), 1)), Op("conv2d", (1,), (1,), SAME))
    assert FeatureGraph(3, ops, ((4, 3, 3, 3), (4, 4, 3, 3))).step == SlidingWindow(7, 2, 2)


def test_windows_that_do_not_meet_are_refused():
    ops = (Op("conv2d", (0,), (0,), SAME), Op("conv2d", (0,), (0,), PLAIN), Op("add", (1, 2)))
    with pytest.raises(ValueError, match="differ in stride or size"):
        FeatureGraph(3, ops, ((3, 3, 3, 3),)).step  # noqa: B018


def test_work_and_memory():
    shapes, macs = GRAPH.shapes(40, 40), GRAPH.macs(40, 40)
    assert len(macs) == 4 and macs[0] == 4 * 20 * 20 * 27 and macs[2] == 4 * 10 * 10 * 2 * 9
    assert shapes[3] == (4, 10, 10)
    assert GRAPH.peak_numbers(40, 40) == 3 * 1600 + 4 * 400  # the image and the first maps


def test_files_hold_the_graph():
    assert FeatureGraph.from_dict(json.loads(json.dumps(asdict(GRAPH)))) == GRAPH


def first(**changes):
    return replace(GRAPH, ops=(replace(GRAPH.ops[0], **changes), *GRAPH.ops[1:]))


BROKEN = {
    "unknown operator": first(name="save"),
    "a method of torch": first(name="__class__"),
    "an input that is later": first(inputs=(5,)),
    "no input": first(inputs=()),
    "a weight that is not there": first(weights=(99,)),
    "no weight": first(weights=()),
    "a bias as weight": first(weights=(1,)),
    "stride 0": first(args=((0, 0), (1, 1), (1, 1), 1)),
    "too few arguments": first(args=((2, 2),)),
    "text as argument": first(args=((2, 2), (1, 1), (1, 1), "one")),
    "a size of 0": replace(GRAPH, weights=((0, 3, 3, 3), *GRAPH.weights[1:])),
    "no operations": replace(GRAPH, ops=()),
}


@pytest.mark.parametrize("graph", BROKEN.values(), ids=BROKEN)
def test_files_that_hold_no_graph_are_refused(graph):
    with pytest.raises((ValueError, KeyError, TypeError)):
        FeatureGraph.from_dict(json.loads(json.dumps(asdict(graph))))
