"""The gradients of the first fully connected layer."""

import pytest
from kernel_checks import TAPS, check_gradients, made, unequal, windows

from overfeat.kernels import launch
from overfeat.kernels.launch import Tile


@pytest.mark.parametrize(
    "tile", [Tile(16, 16, 16, 1, 1, 1), Tile(32, 64, 16, 4, 2, 3), Tile(64, 16, 32, 2, 3)], ids=str
)
def test_every_gemm_with_any_tile(dtype, tile):
    maps, weight = unequal(20, dtype), made((33, 20, 2, 2), dtype, 8)
    with launch.override(tile=tile):
        check_gradients(maps, weight, made((33,), dtype, 9), 3)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("kernel", "size"), [(1, 1), (2, 1), (2, 2), (3, 3), (2, 4)])
def test_gradients(dtype, kernel, size, relu):
    shapes = [(2, 12, kernel * size + 3, kernel * size + 1), (1, 12, kernel * size, kernel * size + 2)]
    maps = [made(shape, dtype, i, last=i == 0) for i, shape in enumerate(shapes)]
    check_gradients(maps, made((18, 12, kernel, kernel), dtype, 8), made((18,), dtype, 9), size, relu)


@pytest.mark.parametrize("variant", ["direct", "im2col"])
@pytest.mark.parametrize(("kernel", "size", "tap"), TAPS)
def test_gradients_of_pools_whose_stride_is_not_their_size(dtype, variant, kernel, size, tap):
    maps, weight = windows(kernel, size, tap, dtype), made((18, 12, *kernel), dtype, 8)
    with launch.override(variant=variant):
        check_gradients(maps, weight, made((18,), dtype, 9), size, tap=tap)
