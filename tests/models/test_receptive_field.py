"""Sizes, strides, scales and windows, against the released nets' tables and against brute force."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

from overfeat.dense.grid import Grid
from overfeat.dense.scales import ScaleFitter, six_scales
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.overfeat import OverFeat
from overfeat.models.receptive_field import SlidingWindow, input_size, input_span, output_size, total_stride

# The accurate net's six scales: input, last maps, pooled at each offset, outputs at fine stride.
SIX_SCALES = [
    ((245, 245), (17, 17), (5, 5), (3, 3)),
    ((281, 317), (20, 23), (6, 7), (6, 9)),
    ((317, 389), (23, 29), (7, 9), (9, 15)),
    ((389, 461), (29, 35), (9, 11), (15, 21)),
    ((425, 497), (32, 38), (10, 12), (18, 24)),
    ((461, 569), (35, 44), (11, 14), (21, 30)),
]
# (window, coarse stride, fine stride)
STRIDES = {"fast": (231, 32, 16), "accurate": (221, 36, 12), "small": (47, 12, 4)}
PARAMETERS = {"fast": 145_920_872, "accurate": 144_656_488}
FITS = {name: ScaleFitter(a.window, a.fine_stride, a.pool) for name, a in ARCHITECTURES.items()}


@pytest.mark.parametrize(("size", "maps", "pooled", "fine"), SIX_SCALES)
def test_six_scales_of_the_accurate_net(size, maps, pooled, fine):
    accurate = ARCHITECTURES["accurate"]
    for axis in range(2):
        cells = output_size(accurate.feature_steps, size[axis])
        assert cells == maps[axis]
        for offset in range(3):
            one = output_size([SlidingWindow(3, 3)], cells - offset)
            assert one == pooled[axis]
            assert output_size([SlidingWindow(5)], one) * 3 == fine[axis]
    assert Grid((221, 221), 12, size, size).shape == fine
    assert Grid((221, 221), 36, size, size).shape == tuple(n // 3 for n in fine)


def test_six_scales_have_1575_fine_positions_and_turn_with_the_image():
    accurate = ARCHITECTURES["accurate"]
    sizes = [size for size, *_ in SIX_SCALES]
    assert six_scales(accurate.geometry, 300, 400) == six_scales(accurate.geometry, 256, 256) == sizes
    assert six_scales(accurate.geometry, 400, 300) == [size[::-1] for size in sizes]
    assert sum(np.prod(Grid((221, 221), 12, size, size).shape) for size in sizes) == 1575


@pytest.mark.parametrize("name", STRIDES)
def test_window_and_strides(name):
    architecture = ARCHITECTURES[name]
    assert (architecture.window, architecture.stride(), architecture.stride("fine")) == STRIDES[name]
    assert architecture.fine_stride * architecture.pool == total_stride(architecture.steps)


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    with torch.device("meta"):
        net = OverFeat(ARCHITECTURES[name])
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]


def test_output_and_input_size_of_known_chains():
    assert output_size([], 7) == input_size([], 7) == 7
    assert output_size([SlidingWindow(3)], 2) == 0 and output_size([SlidingWindow(3), SlidingWindow(1)], 2) == 0
    assert output_size([SlidingWindow(3, 2, 1)], 8) == 4
    assert input_size([SlidingWindow(11, 4), SlidingWindow(2, 2)]) == 15
    assert total_stride([SlidingWindow(11, 4), SlidingWindow(2, 2), SlidingWindow(5)]) == 8


def random_steps(random):
    kernels = random.integers(1, 6, random.integers(1, 6))
    return [SlidingWindow(int(k), int(random.integers(1, 4)), int(random.integers(0, k))) for k in kernels]


def convolve(steps, cells, weights, pads):
    """Integer convolutions one after the other; a bias keeps zeros added late from looking early."""
    for step, weight, pad in zip(steps, weights, pads, strict=True):
        cells = np.pad(cells, pad)
        windows = np.lib.stride_tricks.sliding_window_view(cells, step.kernel)[:: step.stride]
        cells = (windows @ weight + 7) % 1_000_003
    return cells


@pytest.mark.parametrize("seed", range(40))
def test_input_span_gives_the_outputs_of_the_whole_axis(seed):
    random = np.random.default_rng(seed)
    steps = random_steps(random)
    fits = (n for n in count(1) if all(output_size(steps[: i + 1], n) for i in range(len(steps))))
    size = next(fits) + int(random.integers(0, 40))  # no map in between is empty
    cells = random.integers(1, 1000, size)
    weights = [random.integers(1, 1000, step.kernel) for step in steps]
    whole = convolve(steps, cells, weights, [(step.pad, step.pad) for step in steps])
    assert len(whole) == output_size(steps, size)
    for _ in range(20):
        start, stop = np.sort(random.choice(len(whole) + 1, 2, replace=False)).tolist()
        (low, high), pads = input_span(steps, size, start, stop)
        crop = convolve(steps, cells[low:high], weights, pads)
        assert crop.tolist() == whole[start:stop].tolist(), (steps, size, start, stop)


@pytest.mark.parametrize("name", ["fast", "accurate"])
def test_input_span_pads_only_at_the_border(name):
    steps = ARCHITECTURES[name].feature_steps
    count = output_size(steps, 700)
    whole = input_span(steps, 700, 0, count)
    assert whole[0][0] == 0 and [pad[0] for pad in whole[1]] == [step.pad for step in steps]
    (start, stop), pads = input_span(steps, 700, count // 2, count // 2 + 1)
    assert set(pads) == {(0, 0)} and stop - start == input_size([SlidingWindow(s.kernel, s.stride) for s in steps])


@pytest.mark.parametrize("name", STRIDES)
def test_derived_scales_fit_exactly_with_the_ratios_of_table_5(name):
    fit, step = FITS[name], FITS[name].stride * FITS[name].pool
    architecture = replace(ARCHITECTURES[name], scales=None)
    sizes = six_scales(architecture.geometry, 300, 400)
    ratios = [(1.11, 1.11), (1.27, 1.43), (1.43, 1.76), (1.76, 2.09), (1.92, 2.25), (2.09, 2.57)]
    for size, ratio in zip(sizes, ratios, strict=True):
        for side, of_window in zip(size, ratio, strict=True):
            assert ((side - fit.window) // fit.stride + 1) % fit.pool == 0
            assert (side - fit.window) % fit.stride == 0  # no pixel is left over
            assert abs(side - of_window * fit.window) <= step / 2 + 0.006 * fit.window  # ratios of two digits
    assert min(sizes[0]) == fit.window + fit.stride * (fit.pool - 1)
    assert six_scales(architecture.geometry, 400, 300) == [size[::-1] for size in sizes]
    assert six_scales(architecture.geometry, 10, 900) == sizes


def test_the_derived_scales_of_the_accurate_net_are_table_5():
    accurate = ARCHITECTURES["accurate"]
    assert six_scales(replace(accurate, scales=None).geometry, 300, 400) == list(accurate.scales)


def test_nearest_fit_is_the_nearest():
    for fit in FITS.values():
        first = fit.window + fit.stride * (fit.pool - 1)
        fits = np.arange(first, 2000, fit.stride * fit.pool)
        for size in np.arange(0, 900, 3.7):
            assert abs(fit.nearest(size) - size) == np.abs(fits - size).min()


GRIDS = [
    Grid((47, 47), 4, (79, 103), (64, 96)),
    Grid((47, 47), 12, (79, 103), (64, 96)),
    Grid((221, 221), 12, (281, 317), (281, 317)),
    Grid((221, 221), 36, (317, 281), (1000, 50)),
    Grid((47, 47), 4, (47, 47), (300, 10)),
    Grid((47, 47), 4, (50, 64), (50, 64)),  # pixels are left over
]


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_boxes_against_the_definition(grid, flipped):
    grid = Grid(grid.window, grid.stride, grid.scaled, grid.image, flipped)
    boxes = grid.boxes()
    rows, columns = grid.shape
    assert boxes.shape == (rows, columns, 4) and boxes.dtype == np.float64
    for i in range(rows):
        for j in range(columns):
            left = grid.stride * j
            if flipped:
                left = grid.scaled[1] - (left + grid.window[1])
            pixels = np.array([left, grid.stride * i, left + grid.window[1], grid.stride * i + grid.window[0]])
            height, width = (a / b for a, b in zip(grid.image, grid.scaled, strict=True))
            np.testing.assert_allclose(boxes[i, j], pixels * [width, height, width, height], rtol=1e-12)
    assert boxes.min() >= 0 and (boxes[..., 2:] <= np.array(grid.image[::-1]) * (1 + 1e-12)).all()


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_position_is_that_of_the_nearest_window(grid, flipped):
    grid = Grid(grid.window, grid.stride, grid.scaled, grid.image, flipped)
    boxes = grid.boxes()
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    for i, j in np.ndindex(*grid.shape):
        assert grid.position(*centres[i, j]) == (i, j)
    random = np.random.default_rng(0)
    for x, y in random.uniform(-20, np.array(grid.image[::-1]) + 20, (50, 2)):
        i, j = grid.position(x, y)
        assert abs(centres[i, j, 0] - x) == pytest.approx(np.abs(centres[0, :, 0] - x).min())
        assert abs(centres[i, j, 1] - y) == pytest.approx(np.abs(centres[:, 0, 1] - y).min())


def test_a_flipped_grid_mirrors_the_plain_one():
    for grid in GRIDS:
        plain = grid.boxes()
        mirror = Grid(grid.window, grid.stride, grid.scaled, grid.image, flipped=True).boxes()
        np.testing.assert_allclose(mirror[..., 0], grid.image[1] - plain[..., 2], atol=1e-9)
        np.testing.assert_allclose(mirror[..., 2], grid.image[1] - plain[..., 0], atol=1e-9)
        np.testing.assert_array_equal(mirror[..., 1::2], plain[..., 1::2])
