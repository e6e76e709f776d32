"""Pre-packed weights on the CPU: the same results as eager PyTorch, for as long as the weights stay the same."""

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from op_checks import CASE, LAYOUTS, laid_out, numbers, parameters

from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.ops import reference
from overfeat.ops.backends import prepacked, winograd


def unsupported(dtype):
    return prepacked.supports("linear", torch.device("cpu"), dtype)


if unsupported(torch.float32):
    pytest.skip(unsupported(torch.float32), allow_module_level=True)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(prepacked, "MIN_WEIGHTS", 0)  # the tests' are small
    prepacked.clear_cache()
    yield
    prepacked.clear_cache()


@pytest.fixture(params=["packed", "transformed", "streamed", "without compiled code"])
def form(request, monkeypatch):
    """Each form at any size of the maps; the transformed one if the kernel is large enough."""
    if request.param == "without compiled code":
        monkeypatch.setattr(prepacked, "_load_streamed", lambda: None)
    else:
        streamed = pytest.importorskip("overfeat.ops.backends.streamed")
        monkeypatch.setattr(streamed, "MAX_POSITIONS", 1 << 30 if request.param == "streamed" else 0)
    monkeypatch.setattr(winograd, "MAX_COST_RATIO", 0.0 if request.param == "packed" else float("inf"))
    return request.param


def single(shape, seed=0):
    return numbers(shape, seed=seed, dtype=torch.float32)


def twice(function, *arguments):
    """The second call's result: the first one only registers the weight."""
    function(*arguments)
    return function(*arguments)


def check_classifier(maps, weight, bias, size, relu=True, tap=None, dtype=torch.float32):
    actual = twice(prepacked.skip_classifier_flat, maps, weight, bias, size, relu, tap or size)
    assert actual.dtype == weight.dtype
    wide = weight.double(), None if bias is None else bias.double()
    twins = [reference.skip_classifier(m.double(), *wide, size, relu, tap) for m in maps if len(m)]
    assert_matches(actual, torch.cat([t.permute(0, 2, 3, 1).flatten(0, 2) for t in twins]), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@CASE
def test_classifier(form, shape, out, kernel, size, tap, layout):
    if not shape[0]:
        pytest.skip("no images: eager PyTorch runs")
    weight, bias = parameters(out, shape[1], kernel, dtype=torch.float32)
    check_classifier([laid_out(single(shape), layout)], weight, bias, size, tap=tap)


@pytest.mark.parametrize("kernel", [3, 4, 5, 6, 7])
@pytest.mark.parametrize(("size", "tap"), [(1, 1), (2, 2), (3, 3), (3, 2), (1, 3)])
def test_classifier_of_every_transform(form, kernel, size, tap):
    side = size + (kernel - 1) * tap
    maps = [single((1, 6, side + 7, side), 1), single((2, 6, side + 3, side + 11), 2)]
    weight = single((8, 6, kernel, kernel), 8)
    check_classifier(maps, weight, single((8,), 9), size, tap=tap)
    check_classifier(maps, weight, None, size, relu=False, tap=tap)
    packed = prepacked._seen[id(weight)]
    assert (packed.transformed is not None) == (form in ("transformed", "without compiled code"))
    assert (packed.packed is not None) == (form == "packed")
    assert (packed.streamed is not None) == (form == "streamed")


def test_many_tiles_and_outputs(form, monkeypatch):
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", 5)
    monkeypatch.setattr(winograd, "OUTPUTS_AT_ONCE", 3)
    check_classifier([single((2, 4, 25, 31))], single((8, 4, 5, 5), 8), single((8,), 9), 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_do_not_spread(form, value):
    maps = single((1, 3, 21, 21))
    maps[0, 1, 10, 10] = value
    weight = single((4, 3, 3, 3), 7)
    for relu in (False, True):
        check_classifier([maps], single((4, 3, 5, 5), 8), single((4,), 9), 3, relu)
        actual = twice(prepacked.convolution, maps, weight, None, 1, 1, relu, 1)
        expected = torch.nn.functional.conv2d(maps.double(), weight.double(), padding=1)
        assert_matches(actual, expected.relu() if relu else expected, torch.float32)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "dilation"),
    [
        (7, 2, 0, 1),
        (3, 1, 1, 1),
        (5, 1, 0, 1),
        (7, 1, 0, 1),
        (1, 1, 0, 1),
        (11, 4, 0, 1),
        (3, 1, 0, 4),
        (3, 1, 2, 2),
        (4, 1, 1, 3),
        (5, 2, 0, 2),
        ((3, 5), 1, 0, 2),
        ((1, 3), 1, 1, 1),
    ],
)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced"])
def test_convolution(form, kernel, stride, pad, dilation, relu, layout):
    maps, (weight, bias) = laid_out(single((2, 5, 24, 27)), layout), parameters(6, 5, kernel, dtype=torch.float32)
    actual = twice(prepacked.convolution, maps, weight, bias, stride, pad, relu, dilation)
    expected = torch.nn.functional.conv2d(maps.double(), weight.double(), bias.double(), stride, pad, dilation)
    assert_matches(actual, expected.relu() if relu else expected, torch.float32)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 14, 15, 16, 17, 29])
@pytest.mark.parametrize(("n", "channels", "outputs"), [(1, 1, 1), (3, 17, 31), (2, 64, 300)])
def test_gemms_of_few_rows(n, channels, outputs, count, monkeypatch):
    streamed = pytest.importorskip("overfeat.ops.backends.streamed")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    matrices, bias = single((outputs, channels, n, 1), 1), single((outputs,), 2)
    rows = winograd.empty_rows(n, count, channels).fill_(float("nan"))[..., :channels]
    rows.copy_(single((n, count, channels), 3))
    rows[0, count // 2, 0] = float("inf")
    panels = streamed.pack(matrices, streamed.taps)
    products = rows.double() @ matrices.permute(2, 3, 1, 0)[:, 0].double()
    assert_matches(streamed.multiply(rows, panels), products, torch.float32)
    total = (products.sum(dim=0, keepdim=True) + bias.double()).relu()
    assert_matches(streamed.multiply(rows, panels, bias, True, summed=True), total, torch.float32)


def test_arguments_that_do_not_fit_stay_with_pytorch(monkeypatch):
    """Compiled code reads memory without a check of shapes."""
    monkeypatch.setattr(winograd, "MAX_COST_RATIO", 0.0)
    weight, bias = parameters(6, 5, 3, dtype=torch.float32)
    for maps, other in (((1, 4, 20, 20), bias), ((1, 5, 20, 20), bias[:5]), ((1, 5, 20, 20), bias.double()),
                        ((1, 5, 4, 20), bias)):  # fmt: skip
        for _ in range(2):
            with pytest.raises((RuntimeError, ValueError)):
                prepacked.skip_classifier_flat([single(maps)], weight, other, 2, True, 2)
            with pytest.raises((RuntimeError, ValueError)):
                prepacked.linear(single((3, maps[1])), single((6, 5, 1, 1)), other[: maps[2] % 16], True)


def test_one_weight_at_several_dilations(form):
    """As of a net that is evaluated at several strides."""
    weight, bias = parameters(6, 5, 3, dtype=torch.float32)
    for dilation, side in ((1, 20), (4, 20), (2, 33), (1, 50)):
        maps = single((1, 5, side, side + 1))
        actual = twice(prepacked.convolution, maps, weight, bias, 1, 0, False, dilation)
        expected = torch.nn.functional.conv2d(maps.double(), weight.double(), bias.double(), dilation=dilation)
        assert_matches(actual, expected, torch.float32)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("count", [1, 9, 300])
@pytest.mark.parametrize(
    "arrange", [lambda r: r, lambda r: r.T.contiguous().T, lambda r: r.repeat(1, 2)[:, : r.shape[1]]]
)
def test_linear(relu, count, arrange):
    few = prepacked._load_streamed() is not None and count <= prepacked._load_streamed().MAX_POSITIONS
    flat, weight, bias = single((count, 40)), single((24, 40, 1, 1), 1), single((24,), 2)
    flat[0, 3] = float("nan")
    for some, scattered in ((bias, bias.repeat_interleave(2)[::2]), (None, None)):
        expected = torch.nn.functional.linear(
            flat.double(), weight.double().flatten(1), None if some is None else some.double()
        )
        actual = twice(prepacked.linear, arrange(flat), weight, scattered, relu)
        assert_matches(actual, expected.relu() if relu else expected, torch.float32)
    packed = prepacked._seen[id(weight)]
    assert (packed.linear is None, packed.streamed is None) == (True, False) if few else (False, True)
    assert prepacked.linear(flat[:0], weight, bias, relu).shape == (0, 24)


def test_a_linear_layer_in_bfloat16():
    if unsupported(torch.bfloat16):
        pytest.skip(unsupported(torch.bfloat16))
    flat, weight, bias = (t.bfloat16() for t in (single((30, 64)), single((24, 64, 1, 1), 1), single((24,), 2)))
    expected = torch.nn.functional.linear(flat.double(), weight.double().flatten(1), bias.double())
    assert_matches(twice(prepacked.linear, flat, weight, bias, False), expected, torch.bfloat16)


def test_bfloat16(form):
    if unsupported(torch.bfloat16):
        pytest.skip(unsupported(torch.bfloat16))
    weight, bias = single((16, 32, 3, 3), 1).bfloat16(), single((16,), 2).bfloat16()
    check_classifier([single((2, 32, 13, 11)).bfloat16()], weight, bias, 3, dtype=torch.bfloat16)
    assert prepacked._seen[id(weight)].transformed is None, "bfloat16 is too coarse for the transform"


# When a packed form is used


def changes():
    """Changes of a weight that torch sees, and that it does not see."""

    def add(weight):
        with torch.no_grad():
            weight.add_(1)

    def data(weight):
        weight.data.mul_(2)

    def swap(weight):
        weight.data = weight.data * 3

    return [add, data, swap]


@pytest.mark.parametrize("change", changes(), ids=lambda f: f.__name__)
def test_a_changed_weight_is_packed_again(form, change):
    maps, weight = single((1, 4, 20, 20)), torch.nn.Parameter(single((6, 4, 5, 5), 1))
    with torch.no_grad():
        for _ in range(3):
            check_classifier([maps], weight, None, 3)
            change(weight)
            for _ in range(3):
                actual = prepacked.skip_classifier_flat([maps], weight, None, 3, True, 3)
                expected = reference.skip_classifier(maps, weight, None, 3).permute(0, 2, 3, 1).flatten(0, 2)
                assert_matches(actual, expected, torch.float32)


def test_the_first_call_packs_nothing(form):
    weight = single((6, 4, 5, 5), 1)
    prepacked.skip_classifier_flat([single((1, 4, 20, 20))], weight, None, 3, True, 3)
    known = prepacked._seen[id(weight)]
    assert known.packed is None and known.transformed is None


def test_packed_weights_are_freed_with_the_weight(form):
    weight = single((6, 4, 5, 5), 1)
    check_classifier([single((1, 4, 20, 20))], weight, None, 3)
    assert len(prepacked._seen) == 1
    del weight
    gc.collect()
    assert not prepacked._seen


def test_without_winograd(monkeypatch):
    """Every convolution is a direct sum inside the block, in this thread alone."""
    monkeypatch.setattr(winograd, "MAX_COST_RATIO", float("inf"))
    maps, weight = single((1, 4, 20, 20)), single((6, 4, 3, 3), 1)
    with winograd.without_winograd(), ThreadPoolExecutor(1) as pool:
        assert not winograd.pays_off([maps], weight, 1)
        assert pool.submit(winograd.pays_off, [maps], weight, 1).result()
        twice(prepacked.convolution, maps, weight, None, 1, 0, True, 1)
        assert prepacked._seen[id(weight)].transformed is None
    prepacked.convolution(maps, weight, None, 1, 0, True, 1)
    assert prepacked._seen[id(weight)].transformed is not None


def test_transforms_are_exact():
    """In float64 the transforms yield the convolution, to rounding."""
    for k in range(3, 8):
        of_outputs, of_weights, of_maps = winograd.transforms(k, torch.float64)
        tile, m = winograd._input_tile(k), winograd._input_tile(k) - k + 1
        inputs, weight = numbers((tile, tile), dtype=torch.float64), numbers((k, k), seed=1, dtype=torch.float64)
        actual = of_outputs @ ((of_weights @ weight.flatten()) * (of_maps @ inputs.flatten()))
        expected = torch.nn.functional.conv2d(inputs[None, None], weight[None, None]).flatten()
        assert actual.shape == (m * m,)
        assert (actual - expected).abs().max() < 1e-12


def test_training_uses_eager_pytorch(monkeypatch):
    """Packed weights are not used if gradients are enabled."""
    import overfeat.fast  # noqa: F401

    def refuse(*arguments):
        raise AssertionError("packed weights in training")

    maps, weight = single((1, 3, 8, 8)), single((4, 3, 3, 3), 1).requires_grad_()
    flat, matrix = single((5, 3)), single((4, 3, 1, 1), 1).requires_grad_()
    for op, parameter, arguments in (("convolution", weight, (maps, weight, None, 1, 1)),
                                     ("linear", matrix, (flat, matrix, None))):  # fmt: skip
        monkeypatch.setitem(prepacked.BACKEND.functions, op, refuse)
        getattr(ops, op)(*arguments).sum().backward()
        assert parameter.grad is not None
        with torch.no_grad(), pytest.raises(AssertionError, match="in training"):
            getattr(ops, op)(*arguments)


@pytest.mark.parametrize("part", [(slice(5, 6),), (slice(None), slice(7, 8))], ids=["one output", "one channel"])
def test_a_change_that_torch_does_not_see(form, part):
    """Through NumPy, which leaves the version: a value of every filter and every channel is compared."""
    maps, weight = [single((1, 64, 15, 16), 1)], single((96, 64, 3, 3), 2)
    check_classifier(maps, weight, None, 2)
    weight.numpy()[part] += 1
    check_classifier(maps, weight, None, 2)


@pytest.mark.parametrize("arrange", [lambda b: b.repeat_interleave(2)[::2], lambda b: b[:1].expand(len(b))])
def test_layout_of_the_bias(form, arrange):
    maps, weight, bias = single((2, 8, 12, 13), 1), single((16, 8, 3, 3), 2), arrange(single((16,), 3))
    check_classifier([maps], weight, bias, 2)
    actual = twice(prepacked.convolution, maps, weight, bias, 1, 1, True, 1)
    expected = torch.nn.functional.conv2d(maps.double(), weight.double(), bias.double(), 1, 1).relu()
    assert_matches(actual, expected, torch.float32)


def test_few_weights_are_not_packed_for_onednn(monkeypatch):
    """A layer that eager PyTorch packs in no time is left to it, or to compiled code."""
    maps, weight = single((1, 4, 9, 9)), single((8, 4, 3, 3), seed=1)
    for minimum, known in ((8 * 4 * 9, 1), (8 * 4 * 9 + 1, 0)):
        prepacked.clear_cache()
        monkeypatch.setattr(prepacked, "MIN_WEIGHTS", minimum)
        twice(prepacked.convolution, maps, weight, None, 1, 0, True, 1)
        assert sum(form.panels is None for form in prepacked._seen.values()) == known
        matrix = single((8, 36, 1, 1), seed=1)
        twice(prepacked.linear, single((3, 36)), matrix, None, True)
        assert sum(form.panels is None for form in prepacked._seen.values()) == 2 * known


def test_saved_multiplications_of_winograd_are_counted(monkeypatch):
    """64 outputs of 3 x 3 in tiles of 6 x 6 inputs: 36 multiplications in place of 144; 9 x 9 outputs fill 9 tiles."""
    monkeypatch.setattr(prepacked, "_load_compiled", lambda: None)
    monkeypatch.setattr(winograd, "MAX_COST_RATIO", float("inf"))
    maps, weight = single((1, 16, 10, 11)), single((32, 16, 3, 3), seed=1)
    prepacked.convolution(maps, weight, None, 1, 0, False, 1)
    with winograd.count_saved() as saved:
        prepacked.convolution(maps, weight, None, 1, 0, False, 1)
    assert saved == [32 * 16 * (8 * 9 * 9 - 6 * 36)]
    with winograd.count_saved() as saved, winograd.without_winograd():
        prepacked.convolution(maps, weight, None, 1, 0, False, 1)
    assert saved == []


@pytest.mark.parametrize("side, tiles", [(6, 1), (18, 16)])
def test_saved_multiplications_of_compiled_convolutions_are_counted(monkeypatch, side, tiles):
    compiled = pytest.importorskip("overfeat.ops.backends.compiled_conv")
    monkeypatch.setattr(winograd, "MAX_COST_RATIO", float("inf"))
    maps, weight = single((4, 16, side, side)), single((32, 16, 3, 3), seed=1)
    twice(prepacked.convolution, maps, weight, None, 1, 0, False, 1)
    with winograd.count_saved() as saved:
        prepacked.convolution(maps, weight, None, 1, 0, False, 1)
    assert compiled and saved == [32 * 16 * 4 * tiles * (144 - 36)]
