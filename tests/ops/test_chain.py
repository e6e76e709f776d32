"""Several layers in one call: equal to the same layers one by one, bit for bit, and left to them where it must be."""

import pytest
import torch
from op_checks import single
from torch import Tensor

import overfeat.fast
from overfeat import ops, regions
from overfeat.ops import registry
from overfeat.ops.backends import conv_program, eager, prepacked, simd, winograd
from overfeat.ops.chain import ChainedLayer, run_chain

if simd.registers() is None or prepacked.supports("chain", torch.device("cpu"), torch.float32):
    pytest.skip("this processor has no compiled convolutions", allow_module_level=True)

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def fresh():
    prepacked.clear_cache()
    with torch.no_grad():
        yield
    prepacked.clear_cache()


@pytest.fixture(params=["direct", "filtered"])
def method(request, monkeypatch):
    monkeypatch.setattr(winograd, "MAX_COST_RATIO", 0.0 if request.param == "direct" else INF)
    return request.param


def layer(outputs: int, channels: int, kernel: int, *, seed: int, bias: bool = True, **window: int) -> ChainedLayer:
    weight = single(outputs, channels, kernel, kernel, seed=seed) / kernel
    return ChainedLayer(weight, single(outputs, seed=seed + 50) if bias else None, **window)


def one_by_one(maps: Tensor, layers: list[ChainedLayer]) -> Tensor:
    for weight, bias, stride, dilation, relu, pool, offset_pool in layers:
        if pool > 1:
            maps = ops.convolution_pool(maps, weight, bias, stride, 0, pool)
        else:
            if offset_pool > 1:
                maps = ops.offset_max_pool(maps, offset_pool, 1)
            maps = ops.convolution(maps, weight, bias, stride, 0, relu, dilation)
    return maps


CHAINS = {
    "features": [
        layer(32, 3, 5, seed=1, stride=2), layer(48, 32, 3, seed=2, pool=2), layer(33, 48, 3, seed=3),
        layer(20, 33, 1, seed=4, bias=False), layer(40, 20, 2, seed=5),
    ],
    "classifier": [
        layer(40, 3, 3, seed=1), layer(48, 40, 1, seed=2), layer(20, 48, 2, seed=3, offset_pool=3, dilation=3),
        layer(70, 20, 1, seed=4), layer(35, 70, 1, seed=5), layer(11, 35, 1, seed=6, relu=False),
    ],
    "one layer": [layer(20, 3, 1, seed=1)],
    "pools last": [layer(32, 3, 3, seed=1), layer(32, 32, 1, seed=2, pool=3)],
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("threads", [1, 3])
def test_chains_equal_their_layers(method, name, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    layers = CHAINS[name]
    for shape in ((1, 3, 40, 57), (3, 3, 33, 38)):
        maps = single(*shape)
        maps[-1, 0, 20, 21], maps[0, 1, 5, 3] = NAN, INF
        one_by_one(maps, layers)
        expected = one_by_one(maps, layers)
        flat, ((n, height, width),) = run_chain([maps], layers)
        assert (n, flat.shape[1], height, width) == expected.shape
        actual = flat.view(n, height, width, -1).permute(0, 3, 1, 2)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
        assert actual.isnan().any() and actual.isfinite().any()


def test_maps_of_several_sizes():
    layers = CHAINS["features"]
    maps = [single(1, 3, 40, 57), single(2, 3, 33, 38, seed=1).contiguous(memory_format=torch.channels_last)]
    expected = [one_by_one(m, layers) for m in maps for _ in range(2)][1::2]
    flat, shapes = run_chain(maps, layers)
    assert shapes == [(len(e), *e.shape[2:]) for e in expected]
    assert torch.equal(flat, torch.cat([e.permute(0, 2, 3, 1).flatten(0, 2) for e in expected]))


def known(layers: list[ChainedLayer], maps: Tensor) -> None:
    one_by_one(maps, layers)
    assert run_chain([maps], layers) is not None


def test_the_first_call_and_changed_weights_are_the_layers():
    layers, maps = [layer(20, 3, 3, seed=1), layer(8, 20, 1, seed=2)], single(1, 3, 9, 9)
    assert run_chain([maps], layers) is None
    known(layers, maps)
    layers[0].weight.data = layers[0].weight.data.contiguous(memory_format=torch.channels_last)
    assert run_chain([maps], layers) is not None
    layers[1].weight.data[3] += 1
    assert run_chain([maps], layers) is None
    known(layers, maps)
    layers[0].weight[3, 0, 0, 0] = INF
    one_by_one(maps, layers)
    assert run_chain([maps], layers) is None


def in_bfloat16(layers: list[ChainedLayer]) -> list[ChainedLayer]:
    return [
        e._replace(weight=e.weight.bfloat16(), bias=e.bias if e.bias is None else e.bias.bfloat16()) for e in layers
    ]


@pytest.mark.parametrize("name", CHAINS)
def test_bfloat16_is_rounded_once_where_float32_is_faster(name, monkeypatch):
    monkeypatch.setattr(prepacked, "_computes_bfloat16_fast", lambda: False)
    layers, maps = in_bfloat16(CHAINS[name]), single(2, 3, 33, 38).bfloat16()
    maps[-1, 0, 20, 21] = NAN
    assert run_chain([maps], layers) is None
    flat, shapes = run_chain([maps], layers)
    floats = [e._replace(weight=e.weight.float(), bias=None if e.bias is None else e.bias.float()) for e in layers]
    one_by_one(maps.float(), floats)
    expected, of_floats = run_chain([maps.float()], floats)
    assert shapes == of_floats and flat.dtype == torch.bfloat16 and flat.isnan().any()
    torch.testing.assert_close(flat, expected.bfloat16(), rtol=0, atol=0, equal_nan=True)
    layers[-1].weight.data[2] += 1
    assert run_chain([maps], layers) is None
    changed, _ = run_chain([maps], layers)
    assert changed[0, 2] != flat[0, 2] and torch.equal(changed[0, :2], flat[0, :2])


def test_bfloat16_is_left_to_the_layers_where_it_is_fast_or_mixed(monkeypatch):
    layers, maps = in_bfloat16([layer(20, 3, 3, seed=1)]), single(1, 3, 9, 9).bfloat16()
    assert run_chain([maps], layers) is None
    monkeypatch.setattr(prepacked, "_computes_bfloat16_fast", lambda: True)
    assert run_chain([maps], layers) is None
    monkeypatch.setattr(prepacked, "_computes_bfloat16_fast", lambda: False)
    assert run_chain([maps], layers) is not None
    assert run_chain([maps], [layers[0]._replace(bias=layers[0].bias.float())]) is None
    assert run_chain([maps, maps.float()], layers) is None


WRONG = {
    "channels": lambda layers, maps: ([layers[0], layer(8, 21, 1, seed=2)], maps),
    "input channels": lambda layers, maps: (layers, single(1, 4, 9, 9)),
    "bias": lambda layers, maps: ([layers[0], layers[1]._replace(bias=single(7))], maps),
    "dtype": lambda layers, maps: (layers, maps.double()),
    "too small": lambda layers, maps: (layers, maps[:, :, :2]),
    "empty": lambda layers, maps: (layers, maps[:0]),
    "offset pooling of other channels": lambda layers, maps: (
        [layers[0], layers[1]._replace(offset_pool=2)], maps,
    ),
    "large weights": lambda layers, maps: ([layers[0]._replace(weight=single(prepacked.MIN_WEIGHTS, 3, 1, 1))], maps),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_left_to_the_layers(name):
    layers, maps = [layer(20, 3, 3, seed=1), layer(8, 20, 1, seed=2)], single(1, 3, 9, 9)
    known(layers, maps)
    layers, maps = WRONG[name](layers, maps)
    for each in layers:
        prepacked._lookup(each.weight)
    assert run_chain([maps], layers) is None


def test_modes_in_which_layers_are_called_one_by_one():
    layers, maps = [layer(20, 3, 3, seed=1), layer(8, 20, 1, seed=2)], single(1, 3, 9, 9)
    known(layers, maps)
    with torch.enable_grad():
        assert run_chain([maps], layers) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert run_chain([maps], layers) is None
    with regions.collect_timings(torch.device("cpu")):
        assert run_chain([maps], layers) is None
    for name in ("torch", "reference"):
        with overfeat.backend(name):
            assert run_chain([maps], layers) is None
    with overfeat.backend("packed"):
        assert run_chain([maps], layers) is not None
    assert torch.func.vmap(lambda m: torch.zeros(()) if run_chain([m], layers) is None else m)(maps[None]).sum() == 0


def test_other_backends_of_the_layers_take_precedence(monkeypatch):
    layers, maps = [layer(20, 3, 3, seed=1)], single(1, 3, 9, 9)
    known(layers, maps)
    other = ops.Backend("other", {"convolution": lambda *arguments: None})
    monkeypatch.setattr(registry, "_backends", {**registry._backends, "other": other})
    assert run_chain([maps], layers) is None


@pytest.mark.parametrize("classes", [3, 1000])
@pytest.mark.parametrize("stride", ["fine", "coarse"])
def test_nets_are_equal_bit_for_bit_in_chains_and_layer_by_layer(classes, stride, monkeypatch):
    torch.manual_seed(0)
    net, ran, run = overfeat.build("small", classes).eval(), [], prepacked.chain
    for side in ((54, 54), (61, 90)):
        images = torch.rand(2, 3, *side) * 255
        with regions.collect_timings(torch.device("cpu")):
            for _ in range(2):
                expected = net(images, stride)
        with monkeypatch.context() as patch:
            patch.setitem(prepacked.BACKEND.functions, "chain", lambda *a: ran.append(run(*a)) or ran[-1])
            actual = net(images, stride)
        assert torch.equal(actual, expected) and actual.stride() == expected.stride()
    assert len(ran) >= 3 and all(result is not None for result in ran)


@pytest.mark.parametrize("width", [simd.registers().lanes, 61])
@pytest.mark.parametrize(("mean", "std"), [((118.38,), (61.9,)), ((1.0, 120.5, 99.25), (57.1, 3.0, 0.7))])
def test_normalised_images_are_eager_pytorchs_bit_for_bit(width, mean, std, monkeypatch):
    whole = single(3, 3, 20, 70) * 200
    whole[1, 2, 3, 4] = NAN
    monkeypatch.setattr(prepacked.eager, "normalise", None)
    for images in (whole[..., :width], whole[1:, :, ::2, -width:]):
        actual = prepacked.normalise(images, mean, std, torch.float32)
        expected = eager.FUNCTIONS["normalise"](images, mean, std, torch.float32)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
        assert actual.stride() == expected.stride()


@pytest.mark.parametrize("shape", [(1, 3, 5, 3), (1, 1, 20, 20), (0, 3, 20, 20)])
def test_other_images_are_normalised_by_eager_pytorch(shape):
    for images in (single(*shape), single(*shape).byte(), single(*shape).mT, single(*shape).double()):
        for dtype in (torch.float32, torch.bfloat16):
            actual = prepacked.normalise(images, (118.38,), (61.9,), dtype)
            assert torch.equal(actual, eager.normalise(images, (118.38,), (61.9,), dtype)) and actual.dtype == dtype


def test_blocks_are_shared_by_all_threads():
    for count, threads in ((1, 8), (90, 2), (10_000, 3)):
        blocks = conv_program._even_blocks(count, threads, 3)
        assert (blocks["BLOCKS"] - 1) * blocks["PER_BLOCK"] < count <= blocks["BLOCKS"] * blocks["PER_BLOCK"]
