"""The accurate net's first fully connected layer at its full size, and everything else that only a GPU can check.

`make gpu` runs these first. Of large results, samples of outputs and channels are compared with the reference in
float64; each depends on all positions and taps.
"""

from contextlib import nullcontext
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import DEVICE, INTERPRETED, SCALES, made, truth

from bench.suite.timing import arithmetic, torch_dtype
from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.kernels import launch, offset_pool, skip_classifier
from overfeat.kernels.cost_model import unsupported_reason
from overfeat.kernels.plan import Variant
from overfeat.kernels.problem import Problem
from overfeat.ops import reference

if INTERPRETED:
    pytest.skip("full sizes are for a GPU; the other files have small ones", allow_module_level=True)

GUARD = 256  # NaN elements before and after an input: reads out of bounds become visible
SAMPLES = 16
VARIANTS = get_args(Variant)
OLD = torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0)
FREE_BYTES = 24 << 30


@pytest.fixture(params=["bfloat16", "tf32", "float16", "float32"])
def kind(request):
    """The arithmetic of a test: matmuls and convolutions have it."""
    if OLD and request.param in ("bfloat16", "tf32"):
        pytest.skip(f"this GPU has no {request.param}")
    dtype = "tf32" if request.param == "tf32" else torch_dtype(request.param)
    with arithmetic(dtype):
        yield dtype


def guarded(tensor):
    """The same values in a memory with NaN before and after them; maps and weights are channels-last."""
    last = tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor
    memory = torch.full((tensor.numel() + 2 * GUARD,), torch.nan, dtype=tensor.dtype, device=tensor.device)
    inner = memory[GUARD : GUARD + tensor.numel()].view(last.shape).copy_(last)
    return inner.permute(0, 3, 1, 2) if tensor.dim() == 4 else inner


def operands(kind, shapes, channels=1024, outputs=4096, kernel=5):
    """Random maps (images, height, width), weight and bias of a layer, on the GPU."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape, scale=1.0):
        return guarded((scale * torch.randn(shape, generator=generator, device=DEVICE)).to(torch_dtype(kind)))

    weight = normal(outputs, channels, kernel, kernel, scale=(channels * kernel**2) ** -0.5)
    return [normal(n, channels, h, w) for n, h, w in shapes], weight, normal(outputs, scale=0.2)


def six(images):
    return [(images, *size) for size in SCALES]


def spread(count):
    return sorted({round(x) for x in torch.linspace(0, count - 1, SAMPLES).tolist()})


def unsupported(variant, maps, weight, size=3, tap=3):
    """Why a variant does not run here, or None; None is the library's choice."""
    problem = Problem.of(maps, weight, size, tap)
    return variant and unsupported_reason(variant, "forward", problem, torch.cuda.get_device_capability())


def check_forward(kind, maps, weight, bias, size=3, tap=3):
    """Twice, since a variant may prepare the weight at its second call."""
    some = spread(len(weight))
    expected = truth(maps, weight[some], bias[some], size, tap=tap)
    for _ in range(2):
        actual = skip_classifier.forward(maps, weight, bias, size, True, tap)
        assert not actual.isnan().any()
        assert_matches(actual[:, some], expected, kind)


def check_gradients(kind, maps, weight, bias, size=3, tap=3):
    """Those of bias, and of samples of maps and weight."""
    leaves = [t.detach().requires_grad_() for t in (weight, bias, *maps)]
    flat = ops.skip_classifier_flat(leaves[2:], *leaves[:2], size, tap=tap)
    grad = made(flat.shape, flat.dtype, 7)
    of_weight, of_bias, *of_maps = torch.autograd.grad(flat, leaves, grad)
    masked = torch.where(flat > 0, grad.double(), 0.0)  # rounding may move a value across 0: of the actual result
    assert_matches(of_bias, masked.sum(dim=0), kind)
    some, channels = spread(len(weight)), spread(weight.shape[1])
    part = weight[some].double().requires_grad_()
    expected = torch.autograd.grad(truth(maps, part, None, size, False, tap), part, masked[:, some])[0]
    assert_matches(of_weight[some], expected, kind)
    wide = [m[:, channels].double().requires_grad_() for m in maps]
    flat = truth(wide, weight[:, channels], None, size, False, tap)
    assert_matches([m[:, channels] for m in of_maps], torch.autograd.grad(flat, wide, masked), kind)


@pytest.mark.parametrize("images", [1, 8])
@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_first_layer(kind, variant, images):
    if images > 1 and kind != torch.bfloat16:
        pytest.skip("large batches are checked in bfloat16")
    maps, weight, bias = operands(kind, six(images))
    if reason := unsupported(variant, maps, weight):
        pytest.skip(reason)
    with launch.override(variant=variant) if variant else nullcontext():
        check_forward(kind, maps, weight, bias)


@pytest.mark.parametrize("variant", [None, "direct", "im2col"])
def test_gradients_of_the_first_layer(kind, variant):
    maps, weight, bias = operands(kind, six(1))
    with launch.override(variant=variant) if variant else nullcontext():
        check_gradients(kind, maps, weight, bias)


@pytest.mark.parametrize("number", range(6))
def test_each_scale_alone(kind, number):
    maps, weight, bias = operands(kind, six(1)[number : number + 1])
    check_forward(kind, maps, weight, bias)


@pytest.mark.parametrize("channels", [128, 40])
@pytest.mark.parametrize("tap", [3, 2])
@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_layers_that_do_not_fill_their_tiles(kind, variant, channels, tap):
    maps, weight, bias = operands(kind, [(2, 17, 17), (1, 20, 23), (3, 16, 15)], channels, channels + 8)
    if reason := unsupported(variant, maps, weight, tap=tap):
        pytest.skip(reason)
    with launch.override(variant=variant) if variant else nullcontext():
        check_forward(kind, maps, weight, bias, tap=tap)
        check_gradients(kind, maps, weight, bias, tap=tap)


def every_tile():
    """(kind of arithmetic, fused or not, tile) of the tables for this GPU."""
    capability = launch.capability_and_constants(DEVICE)[0]
    for table in launch.TILES:
        for _, tile in launch.tiles(table, capability):
            yield pytest.param(*table.partition(", ")[::2], tile, id=f"{table}, {tile}")


@pytest.mark.parametrize(("name", "fused", "tile"), list(every_tile()))
def test_every_tile_of_the_tables(name, fused, tile):
    kind = {"16 bit": torch.float16 if OLD else torch.bfloat16, "tf32": "tf32", "ieee": torch.float32}[name]
    with arithmetic(kind), launch.override(tile=tile, pool="fused" if fused else "separate"):
        maps, weight, bias = operands(kind, [(2, 17, 17), (1, 20, 23), (3, 16, 15)], 128, 136)
        check_forward(kind, maps, weight, bias)
        if not fused:
            check_gradients(kind, maps, weight, bias)


def test_the_classifier_is_compiled_as_one_graph(make_net):
    """By torch's own compiler, beside the same net in eager mode."""
    net = make_net("thin accurate").to(DEVICE)
    maps = [made((1, net.conv_layers[-1].weight.shape[0], *size), seed=i, last=True) for i, size in enumerate(SCALES)]
    with torch.no_grad():
        expected = net.classifier(maps, "fine")
        actual = torch.compile(net.classifier, fullgraph=True, dynamic=False)(maps, "fine")
    assert_matches(actual, expected, torch.float32)


def test_autocast():
    """float32 inputs under autocast give the results of inputs in its dtype."""
    maps, weight, bias = operands(torch.float32, [(1, 20, 23)], 128, 136)
    with torch.autocast("cuda", torch.float16):
        actual = ops.skip_classifier_flat(maps, weight, bias, 3)
    assert actual.dtype == torch.float16
    assert_matches(actual, truth([m.half() for m in maps], weight.half(), bias.half(), 3), torch.float16)


def test_maps_of_more_than_2_to_31_elements(kind):
    """Images that lie more than 2^31 elements apart, in every variant; and a result with as many elements."""
    if torch.cuda.mem_get_info()[0] < FREE_BYTES or torch_dtype(kind).itemsize > 2:
        pytest.skip("needs 24 GB of free GPU memory, and 16-bit values")
    torch.use_deterministic_algorithms(False)  # filling the memory takes long
    near, weight, bias = operands(kind, [(2, 17, 18)], 64, 40)
    memory = torch.empty((1 << 31) + (1 << 20), dtype=torch_dtype(kind), device=DEVICE)
    far = memory.as_strided(near[0].shape, ((1 << 31) + 8, 1, 18 * 64, 64)).copy_(near[0])
    expected = truth(near, weight, bias, 3)
    for variant in VARIANTS:
        if not unsupported(variant, near, weight):
            with launch.override(variant=variant):
                assert_matches(skip_classifier.forward([far], weight, bias, 3, True, 3), expected, kind)
    assert_matches(offset_pool.forward(far, 3, 1), reference.offset_max_pool(near[0].double(), 3), kind)
    del far, memory
    large = torch.zeros(1, 5800, 5800, 64, dtype=torch_dtype(kind), device=DEVICE).permute(0, 3, 1, 2)
    large[0, -1, -3:, -3:] = near[0][0, 0, :3, :3]
    actual = offset_pool.forward(large, 3, 1)
    assert_matches(actual[0, -1, -2:, -2:], F.max_pool2d(large[:, -1:, -4:, -4:], 3, 1)[0, 0], kind)
