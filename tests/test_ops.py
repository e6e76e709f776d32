"""The ops: values and gradients against reference.py on every input a caller may hand over."""

import pytest
import torch
from tolerance import assert_matches

from overfeat import ops, reference

# (maps, channels out, kernel, pooling): every pooling, with remainders that differ by axis
CASES = [
    ((2, 3, 5, 7), 4, 2, 1),
    ((2, 3, 7, 10), 4, 2, 2),
    ((1, 3, 11, 13), 4, 2, 3),
    ((1, 2, 17, 12), 3, 2, 4),
    ((2, 3, 10, 11), 5, 3, 3),
    ((2, 3, 6, 6), 4, 2, 3),  # exactly one window
    ((1, 2, 1, 1), 3, 1, 1),
    ((1, 1, 7, 11), 1, 1, 4),  # one channel in and out
    ((0, 3, 7, 8), 4, 2, 3),  # no images
]
CASE = pytest.mark.parametrize(("shape", "out", "kernel", "size"), CASES)
LAYOUTS = (
    "contiguous",
    "channels last",
    "sliced",
    "sliced channels last",
    "transposed",
    "strided",
    "expanded",
)


@pytest.fixture(params=["few places", "many places"])
def places(request, monkeypatch):
    """Both of the CPU's ways through the classifier, at any size of the maps."""
    monkeypatch.setattr(ops, "FEW_PLACES", 10**9 if request.param == "few places" else 0)


@pytest.fixture(params=sorted(ops._backends))
def implementation(request, device):
    """Every backend there is runs the tests, where it takes what they give it."""
    takes = ops._takes[request.param]
    probe = torch.zeros(1, 1, 4, 4, device=device)
    if not all(takes(op, probe, 2) for op in ops._backends[request.param]):
        pytest.skip(f"backend {request.param} does not run on {device}")
    with ops.backend(request.param):
        yield request.param


def numbers(shape, device="cpu", seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(device)


def laid_out(maps, layout):
    """The same numbers, otherwise arranged in memory; one image over and over where expanded."""
    n, c, h, w = maps.shape
    if layout == "channels last":
        return maps.contiguous(memory_format=torch.channels_last)
    if layout.startswith("sliced"):
        whole = maps.new_full((n + 1, c + 2, h + 3, w + 4), float("nan"))
        if layout.endswith("last"):
            whole = whole.contiguous(memory_format=torch.channels_last)
        part = whole[1:, 1 : 1 + c, 2 : 2 + h, 3 : 3 + w]
        return part.copy_(maps)
    if layout == "transposed":
        return maps.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "strided":
        whole = maps.new_full((n, c, 2 * h, 2 * w), float("nan"))
        return whole[:, :, ::2, ::2].copy_(maps)
    if layout == "expanded":
        return maps[:1].expand(n, c, h, w) if n else maps
    return maps


def gradients(function, inputs, cotangents):
    """The function's list of results, and the gradients of the inputs that are tensors."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    results = function(*inputs)
    total = sum((r * c).sum() for r, c in zip(results, cotangents, strict=True))
    return results, torch.autograd.grad(total, inputs)


def check_pool(maps, size, dtype=torch.float64):
    want_shape = (*maps.shape[:2], maps.shape[2] - size + 1, maps.shape[3] - size + 1)
    cotangent = [numbers(want_shape, maps.device, seed=9, dtype=maps.dtype)]
    got, of_maps = gradients(lambda m: [ops.offset_max_pool(m, size)], [maps], cotangent)
    want, wanted = gradients(lambda m: [reference_pool(m, size)], [maps], cotangent)
    assert_matches(got, want, dtype)
    assert_matches(of_maps, wanted, dtype)
    assert got[0].dtype == of_maps[0].dtype == maps.dtype


def reference_pool(maps, size):
    if not maps.shape[0]:
        return maps[:, :, size - 1 :, size - 1 :]
    return reference.offset_max_pool(maps, size)


def check_classifier(maps, weight, bias, size, relu=True, dtype=torch.float64):
    """Values and all gradients of the op on a list of maps against the reference, map by map."""
    reach = weight.shape[2] * size - 1
    shapes = [(m.shape[0], weight.shape[0], m.shape[2] - reach, m.shape[3] - reach) for m in maps]
    cotangents = [numbers(s, weight.device, seed=i, dtype=weight.dtype) for i, s in enumerate(shapes)]
    tensors = [weight, *([] if bias is None else [bias]), *maps]

    def split(weight, *rest):
        return (rest, weight, None) if bias is None else (rest[1:], weight, rest[0])

    def op(*inputs):
        maps, weight, bias = split(*inputs)
        return ops.skip_classifier_scales(list(maps), weight, bias, size, relu)

    def twin(*inputs):
        maps, weight, bias = split(*inputs)
        return [reference.skip_classifier(m, weight, bias, size, relu) for m in maps]

    got, got_gradients = gradients(op, tensors, cotangents)
    want, want_gradients = gradients(twin, tensors, cotangents)
    assert_matches(got, want, dtype)
    assert_matches(got_gradients, want_gradients, dtype)


def parameters(out, channels, kernel, device="cpu", dtype=torch.float64):
    weight = numbers((out, channels, kernel, kernel), device, seed=1, dtype=dtype)
    return weight, numbers((out,), device, seed=2, dtype=dtype)


# Values and gradients


@pytest.mark.parametrize("layout", LAYOUTS)
@CASE
def test_pool(implementation, device, shape, out, kernel, size, layout):
    check_pool(laid_out(numbers(shape, device), layout), size)


@pytest.mark.parametrize("layout", LAYOUTS)
@CASE
def test_classifier(implementation, device, places, shape, out, kernel, size, layout):
    maps = laid_out(numbers(shape, device), layout)
    check_classifier([maps], *parameters(out, shape[1], kernel, device), size)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
def test_classifier_without_bias_and_without_relu(implementation, device, places, relu, bias):
    weight, some = parameters(4, 3, 2, device)
    check_classifier([numbers((2, 3, 8, 9), device)], weight, some if bias else None, 3, relu)


@pytest.mark.parametrize("weight_layout", ["channels last", "transposed", "strided"])
def test_layout_of_the_weight(implementation, device, places, weight_layout):
    weight, bias = parameters(4, 3, 2, device)
    check_classifier([numbers((2, 3, 8, 9), device)], laid_out(weight, weight_layout), bias, 3)


def scales(device, dtype=torch.float64):
    """Maps of several sizes, batches and layouts, an empty one among them."""
    shapes = [(1, 3, 9, 11), (2, 3, 6, 6), (0, 3, 8, 7), (1, 3, 20, 23), (3, 3, 6, 9)]
    layouts = ["channels last", "contiguous", "contiguous", "sliced", "transposed"]
    return [
        laid_out(numbers(shape, device, seed=i, dtype=dtype), layout)
        for i, (shape, layout) in enumerate(zip(shapes, layouts, strict=True))
    ]


def test_maps_of_different_sizes_in_one_call(implementation, device, places):
    check_classifier(scales(device), *parameters(4, 3, 2, device), 3)


@CASE
def test_the_reference_takes_whatever_has_an_output(shape, out, kernel, size):
    """Down to maps of a single window, where most offsets of the pooling find no room."""
    maps = numbers((shape[0] or 1, shape[1], kernel * size, kernel * size + 1))
    weight, bias = parameters(out, shape[1], kernel)
    want = ops.skip_classifier(maps, weight, bias, size)
    assert_matches(reference.skip_classifier(maps, weight, bias, size), want, torch.float64)


def test_small_and_large_maps_keep_their_order(device, monkeypatch):
    monkeypatch.setattr(ops, "FEW_PLACES", 30)  # the list holds both kinds, in turns
    check_classifier(scales(device), *parameters(4, 3, 2, device), 3)


def test_one_map_is_a_list_of_one(implementation, device):
    weight, bias = parameters(4, 3, 2, device)
    maps = numbers((2, 3, 8, 9), device)
    (one,) = ops.skip_classifier_scales([maps], weight, bias, 3)
    assert torch.equal(ops.skip_classifier(maps, weight, bias, 3), one)
    assert torch.equal(torch.ops.overfeat.skip_classifier(maps, weight, bias, 3, True), one)
    assert ops.skip_classifier_scales([], weight, bias, 3) == []


@pytest.mark.parametrize("few", [True, False])
def test_few_places_avoid_the_convolution(monkeypatch, few):
    weight, bias = parameters(4, 3, 2)
    maps = numbers((2, 3, 8, 9))  # 2 * 3 * 4 places
    want = reference.skip_classifier(maps, weight, bias, 3)

    def refuse(*args, **options):
        raise AssertionError("the convolution ran")

    monkeypatch.setattr(ops, "FEW_PLACES", 25 if few else 24)
    monkeypatch.setattr(ops.F, "conv2d", refuse)
    if few:
        assert_matches(ops.skip_classifier(maps, weight, bias, 3), want, torch.float64)
    else:
        with pytest.raises(AssertionError, match="the convolution ran"):
            ops.skip_classifier(maps, weight, bias, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_narrow_types(implementation, device, places, dtype):
    """The truth is the reference on the same numbers in float64."""
    maps = numbers((2, 32, 13, 11), device, dtype=torch.float64).to(dtype)
    weight, bias = (t.to(dtype) for t in parameters(16, 32, 3, device))
    got = ops.skip_classifier(maps, weight, bias, 3)
    assert got.dtype == dtype
    assert_matches(got, reference.skip_classifier(maps.double(), weight.double(), bias.double(), 3), dtype)
    check_pool(maps, 3, dtype)


@pytest.mark.parametrize("relu", [True, False])
def test_float32_gradients(implementation, device, places, relu):
    weight, bias = parameters(16, 32, 3, device, torch.float32)
    maps = [numbers((2, 32, 13, 11), device, dtype=torch.float32)]
    check_classifier(maps, weight, bias, 3, relu, torch.float32)


# Values that are not ordinary numbers


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced"])
def test_ties_give_their_gradient_to_the_first(implementation, device, size, layout):
    maps = numbers((2, 3, 9, 10), device).mul(0.7).round()  # mostly -1, 0 and 1
    check_pool(laid_out(maps, layout), size)
    check_pool(laid_out(torch.zeros_like(maps), layout), size)
    check_classifier([laid_out(maps, layout)], *parameters(4, 3, 2, device), size)


def test_gradient_of_a_constant_map():
    maps = torch.zeros(1, 1, 3, 4, requires_grad=True)
    ops.offset_max_pool(maps, 2).sum().backward()
    assert maps.grad[0, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced"])
def test_negative_maps(implementation, device, places, layout):
    maps = -numbers((2, 3, 7, 8), device).abs() - 1
    check_pool(laid_out(maps, layout), 3)
    check_classifier([laid_out(maps, layout)], *parameters(4, 3, 2, device), 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced"])
def test_nan_and_infinities(implementation, device, places, value, layout):
    maps = numbers((2, 3, 9, 10), device)
    maps[0, 1, 4, 5] = value
    maps[1, :, 0, 9] = value
    check_pool(laid_out(maps, layout), 3)
    check_pool(laid_out(maps, layout), 1)
    weight, bias = parameters(4, 3, 2, device)
    check_classifier([laid_out(maps, layout)], weight, bias, 3, relu=False)
    got = ops.skip_classifier(laid_out(maps, layout), weight, bias, 3)
    assert_matches(got, reference.skip_classifier(maps, weight, bias, 3), torch.float64)


def test_gradients_of_nan_under_relu(implementation, device, places):
    maps = numbers((1, 3, 9, 10), device)
    maps[0, 1, 4, 5] = float("nan")
    check_classifier([maps], *parameters(4, 3, 2, device), 3)


def test_a_map_of_minus_infinity(implementation, device, places):
    maps = torch.full((1, 2, 6, 7), -float("inf"), dtype=torch.float64, device=device)
    check_pool(maps, 3)
    weight = parameters(3, 2, 2, device)[0].abs()
    got = ops.skip_classifier(maps, weight, None, 3, relu=False)
    assert_matches(got, reference.skip_classifier(maps, weight, None, 3, relu=False), torch.float64)


def test_infinite_gradients_stop_at_a_dead_output(implementation, device, places):
    """Where the ReLU is 0 its gradient is 0, whatever comes from above."""
    maps = numbers((1, 3, 6, 6), device).requires_grad_()
    weight = parameters(4, 3, 2, device)[0].requires_grad_()
    dead = torch.full((4,), -1e6, dtype=torch.float64, device=device)
    result = ops.skip_classifier(maps, weight, dead, 3)
    found = torch.autograd.grad(result, [maps, weight], torch.full_like(result, float("inf")))
    assert all(not g.any() for g in found)


# Which gradients


def test_an_unused_result_adds_nothing(implementation, device):
    weight, bias = parameters(4, 3, 2, device)
    maps = [m.requires_grad_() for m in (numbers((1, 3, 7, 8), device), numbers((1, 3, 9, 9), device))]
    first = ops.skip_classifier_scales(maps, weight, bias, 3)[0]
    of_maps = torch.autograd.grad(first.sum(), maps, allow_unused=True, materialize_grads=True)
    alone = torch.autograd.grad(ops.skip_classifier(maps[0], weight, bias, 3).sum(), maps[0])
    assert_matches(of_maps[0], alone[0], torch.float64)
    assert not of_maps[1].any()


@pytest.mark.parametrize("wanted", ["maps", "one map", "weight", "bias"])
def test_gradients_of_some_inputs_only(implementation, device, wanted):
    weight, bias = parameters(4, 3, 2, device)
    maps = [numbers((1, 3, 7, 8), device), numbers((1, 3, 9, 9), device, seed=5)]
    leaves = {"maps": maps, "one map": maps[1:], "weight": [weight], "bias": [bias]}[wanted]
    for leaf in leaves:
        leaf.requires_grad_()
    got = torch.autograd.grad(sum(r.sum() for r in ops.skip_classifier_scales(maps, weight, bias, 3)), leaves)
    want = sum(reference.skip_classifier(m, weight, bias, 3).sum() for m in maps)
    assert_matches(got, torch.autograd.grad(want, leaves), torch.float64)


def test_second_gradients_are_refused():
    maps = numbers((1, 3, 7, 8)).requires_grad_()
    (first,) = torch.autograd.grad(ops.offset_max_pool(maps, 2).square().sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), maps)


# Memory format


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("last", [True, False])
def test_results_keep_the_memory_format(implementation, device, places, size, last):
    layout = torch.channels_last if last else torch.contiguous_format
    maps = numbers((2, 3, 8, 9), device).contiguous(memory_format=layout).requires_grad_()
    weight, bias = parameters(4, 3, 2, device)
    weight = weight.contiguous(memory_format=layout).requires_grad_()
    for result in (ops.offset_max_pool(maps, size), ops.skip_classifier(maps, weight, bias, size)):
        assert result.is_contiguous(memory_format=layout)
    found = torch.autograd.grad(ops.skip_classifier(maps, weight, bias, size).sum(), [maps, weight])
    assert all(g.is_contiguous(memory_format=layout) for g in found)
    (of_maps,) = torch.autograd.grad(ops.offset_max_pool(maps, size).sum(), maps)
    assert of_maps.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2])
def test_results_are_new_and_inputs_untouched(implementation, device, places, layout, size):
    maps = laid_out(numbers((2, 3, 6, 7), device), layout)
    before = maps.clone()
    weight, bias = parameters(4, 3, 2, device)
    pooled = ops.offset_max_pool(maps, size)
    assert pooled.untyped_storage().data_ptr() != maps.untyped_storage().data_ptr()
    ops.skip_classifier(maps, weight, bias, size)
    assert torch.equal(maps, before)


# torch.library's own checks, autograd's, the compiler's


def op_samples(layout, size):
    maps = [laid_out(numbers((2, 3, 8, 9), seed=i).float(), layout) for i in range(2)]
    weight, bias = (t.float() for t in parameters(4, 3, 2))
    few = torch.ops.overfeat.skip_classifier_scales(maps, weight, bias, size, True)
    grads = [torch.ones_like(r) for r in few]

    def leaves(*tensors):
        return [t.detach().requires_grad_() for t in tensors]

    free = leaves(*maps)
    return {
        "offset_max_pool": [(free[0], size)],
        "offset_max_pool_backward": [(torch.ones(2, 3, 9 - size, 10 - size), maps[0], size)],
        "skip_classifier": [
            (free[0], *leaves(weight, bias), size, True),
            (maps[0], weight, None, size, False),
        ],
        "skip_classifier_scales": [
            (free, *leaves(weight, bias), size, True),
            (maps, weight, None, size, False),
        ],
        "skip_classifier_scales_backward": [
            (grads, maps, weight, few, size, True, True),
            (grads, maps, weight, [], size, True, False),
            (grads, maps, weight, few, size, False, True),
        ],
    }


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("name", op_samples("contiguous", 1))
def test_opcheck(name, layout):
    for arguments in op_samples(layout, 3)[name]:
        torch.library.opcheck(getattr(torch.ops.overfeat, name).default, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", op_samples("contiguous", 1))
def test_fakes_have_the_strides_of_results(places, name, layout, size):
    for arguments in op_samples(layout, size)[name]:
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(getattr(torch.ops.overfeat, name).default, arguments, test_utils=checks)


def test_every_op_is_checked():
    found = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("overfeat::")}
    assert {name.removeprefix("overfeat::") for name in found} == set(op_samples("contiguous", 1))


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradcheck(implementation, device, places, size, layout):
    maps = [laid_out(numbers((1, 2, 7, 6 + i), device, seed=i), layout).requires_grad_() for i in range(2)]
    weight, bias = (t.requires_grad_() for t in parameters(3, 2, 2, device))
    assert torch.autograd.gradcheck(lambda m: ops.offset_max_pool(m, size), maps[:1], fast_mode=True)
    for relu in (True, False):

        def function(*inputs, relu=relu):
            return tuple(ops.skip_classifier_scales(list(inputs[2:]), *inputs[:2], size, relu))

        assert torch.autograd.gradcheck(function, (weight, bias, *maps), fast_mode=True)


def pool_and_classify(maps, weight, bias):
    """What a user's compiled code may do: both ops, one map and several, in the middle of others."""
    maps = [m * 2 for m in maps]
    found = ops.skip_classifier_scales(maps, weight, bias, 3)
    one = ops.skip_classifier(ops.offset_max_pool(maps[0], 2), weight, None, 2, relu=False)
    return sum(f.square().sum() for f in found) + one.sin().sum()


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole_with_its_gradients(device, compiler):
    torch._dynamo.reset()
    maps = [m.detach().requires_grad_() for m in (*scales(device)[:2], *scales(device)[3:])]
    inputs = [t.requires_grad_() for t in parameters(4, 3, 2, device)]
    want = pool_and_classify(maps, *inputs)
    compiled = torch.compile(pool_and_classify, fullgraph=True, backend=compiler)
    got = compiled(maps, *inputs)
    assert_matches(got, want, torch.float64)
    leaves = [*maps, *inputs]
    assert_matches(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), torch.float64)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced channels last", "transposed"])
def test_compiles_on_every_layout(layout):
    """`flatten` copies or does not by the strides it is promised."""

    def flat(maps, weight):
        found = [ops.offset_max_pool(maps, size) for size in (1, 2)]
        found += [ops.skip_classifier(maps, weight, None, size) for size in (1, 2)]
        return [f.flatten() for f in found]

    torch._dynamo.reset()
    compiled = torch.compile(flat, fullgraph=True, backend="aot_eager", dynamic=True)
    weight, _ = parameters(4, 3, 2)
    for shape in ((2, 3, 7, 8), (1, 3, 4, 5)):
        maps = laid_out(numbers(shape), layout)
        assert_matches(compiled(maps, weight), flat(maps, weight), torch.float64)


# Mixed precision


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_autocast_computes_in_bfloat16(device, places, backend):
    maps = numbers((1, 16, 7, 8), device, dtype=torch.float32).requires_grad_()
    weight, bias = (t.requires_grad_() for t in parameters(8, 16, 2, device, torch.float32))
    with ops.backend(backend), torch.autocast(device.type, torch.bfloat16):
        got = ops.skip_classifier(maps, weight, bias, 3, relu=False)
        assert ops.skip_classifier(maps.bfloat16(), weight, None, 3).dtype == torch.bfloat16
        with torch.autocast(device.type, enabled=False):
            assert ops.skip_classifier(maps, weight, bias, 3).dtype == torch.float32
    assert got.dtype == torch.bfloat16
    narrow = [t.detach().bfloat16().double().requires_grad_() for t in (maps, weight, bias)]
    want = reference.skip_classifier(*narrow, 3, relu=False)
    assert_matches(got, want, torch.bfloat16)
    cotangent = numbers(got.shape, device, seed=7).bfloat16()
    found = torch.autograd.grad(got, [maps, weight, bias], cotangent)
    assert all(g.dtype == torch.float32 for g in found)
    assert_matches(found, torch.autograd.grad(want, narrow, cotangent.double()), torch.bfloat16)


# Errors


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((zeros(3, 7, 7), 2), r"maps must be \[N, C, H, W\]; these have shape \(3, 7, 7\)"),
        ((zeros(1, 3, 7, 7), 0), "size must be at least 1, not 0"),
        ((zeros(1, 3, 7, 2), 3), "maps of 7x2 are smaller than the 3x3"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_pool_refuses(arguments, words, backend):
    with ops.backend(backend), pytest.raises(ValueError, match=words):
        ops.offset_max_pool(*arguments)


WEIGHT = zeros(4, 3, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((zeros(3, 7, 7), WEIGHT, None, 2), r"maps must be \[N, C, H, W\]; these have shape \(3, 7, 7\)"),
        ((zeros(1, 3, 7, 7), WEIGHT, None, 0), "size must be at least 1, not 0"),
        ((zeros(1, 3, 5, 7), WEIGHT, None, 3), "maps of 5x7 are smaller than the 6x6"),
        ((zeros(1, 2, 7, 7), WEIGHT, None, 3), "maps have 2 channels, the weight takes 3"),
        ((zeros(1, 3, 7, 7), zeros(4, 3), None, 3), r"weight must be \[O, C, k, k\]; it has shape \(4, 3\)"),
        ((zeros(1, 3, 7, 7), zeros(4, 3, 2, 3), None, 3), r"weight must be .* shape \(4, 3, 2, 3\)"),
        ((zeros(1, 3, 7, 7), WEIGHT, zeros(3), 3), r"bias must be \[4\], as the weight; it is \[3\]"),
        ((zeros(1, 3, 7, 7), WEIGHT, zeros(4, 1), 3), r"bias must be \[4\].* it is \[4, 1\]"),
        (
            (zeros(1, 3, 7, 7).half(), WEIGHT, None, 3),
            "maps are torch.float16 on cpu, the weight torch.float32",
        ),
        ((zeros(1, 3, 7, 7), WEIGHT, zeros(4).double(), 3), "the bias torch.float64 on cpu; move one"),
        (
            (zeros(1, 3, 7, 7, device="meta"), WEIGHT, None, 3),
            "float32 on meta, the weight torch.float32 on cpu",
        ),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_classifier_refuses(arguments, words, backend):
    maps, *rest = arguments
    good = zeros(1, 3, 7, 7)
    with ops.backend(backend):
        with pytest.raises(ValueError, match=words):
            ops.skip_classifier(maps, *rest)
        with pytest.raises(ValueError, match=words):
            ops.skip_classifier_scales([maps, good], *rest)


# Backends


def test_backend_is_chosen_and_restored():
    assert ops._forced is None
    with ops.backend("reference"):
        assert ops._forced == "reference"
        with ops.backend("torch"):
            assert ops._forced == "torch"
        assert ops._forced == "reference"
    with pytest.raises(KeyError), ops.backend("reference"):
        raise KeyError
    assert ops._forced is None
    with (
        pytest.raises(ValueError, match="no backend 'cudnn'; there are reference, torch"),
        ops.backend("cudnn"),
    ):
        pass
    assert ops._forced is None


def test_the_reference_backend_runs_the_reference(monkeypatch):
    calls = []
    for name in ("offset_max_pool", "skip_classifier"):
        monkeypatch.setattr(reference, name, lambda *arguments, name=name: calls.append(name))
    with ops.backend("reference"):
        ops.offset_max_pool(zeros(1, 3, 7, 7), 2)
        ops.skip_classifier(zeros(1, 3, 7, 7), WEIGHT, None, 2)
        ops.skip_classifier_scales([zeros(1, 3, 7, 7)] * 2, WEIGHT, None, 2)
        assert ops.skip_classifier_scales([], WEIGHT, None, 2) == []
    assert calls == ["offset_max_pool"] + ["skip_classifier"] * 3


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_gradients_inside_the_block(name):
    """A forward pass of the default backend may have its backward pass inside a block, and after one."""
    maps = numbers((1, 3, 7, 8)).requires_grad_()
    weight, bias = parameters(4, 3, 2)
    want = torch.autograd.grad(reference.skip_classifier(maps, weight, bias, 3).sum(), maps)
    result = ops.skip_classifier(maps, weight, bias, 3)
    with ops.backend(name):
        assert_matches(torch.autograd.grad(result.sum(), maps), want, torch.float64)
        result = ops.skip_classifier(maps, weight, bias, 3)
    assert_matches(torch.autograd.grad(result.sum(), maps), want, torch.float64)


@pytest.fixture
def doubling():
    """A backend that pools, doubles, and notes what it ran; it takes poolings of 2 alone."""
    ran = []

    def pool(maps, size):
        ran.append("offset_max_pool")
        return 2 * ops._torch_pool(maps, size)

    def pool_backward(grad, maps, size):
        ran.append("offset_max_pool_backward")
        return 2 * ops._torch_pool_backward(grad, maps, size)

    functions = {"offset_max_pool": pool, "offset_max_pool_backward": pool_backward}
    ops.register_backend("doubling", functions, takes=lambda op, maps, size: size == 2)
    yield ran
    del ops._backends["doubling"], ops._takes["doubling"]


def test_a_backend_that_was_added_runs_first(doubling):
    maps = numbers((1, 3, 7, 8)).requires_grad_()
    plain = reference.offset_max_pool(maps, 2)
    assert torch.equal(ops.offset_max_pool(maps, 2), 2 * plain)
    assert doubling == ["offset_max_pool"]
    (found,) = torch.autograd.grad(ops.offset_max_pool(maps, 2).sum(), maps)
    assert torch.equal(found, 2 * torch.autograd.grad(plain.sum(), maps)[0])
    assert doubling[1:] == ["offset_max_pool", "offset_max_pool_backward"]
    # what it does not take, or does not have, goes to the next
    ops.offset_max_pool(maps, 3)
    ops.skip_classifier(maps, parameters(4, 3, 2)[0], None, 2)
    with ops.backend("torch"):
        assert torch.equal(ops.offset_max_pool(maps, 2), plain)
    assert len(doubling) == 3


def test_a_named_backend_refuses_what_it_does_not_take(doubling):
    maps = numbers((1, 3, 7, 8))
    with ops.backend("doubling"):
        ops.offset_max_pool(maps, 2)
        words = "'doubling' does not run offset_max_pool on torch.float64 maps on cpu"
        with pytest.raises(ValueError, match=words):
            ops.offset_max_pool(maps, 3)
        with pytest.raises(ValueError, match="'doubling' does not run skip_classifier_scales"):
            ops.skip_classifier(maps, parameters(4, 3, 2)[0], None, 2)


def test_a_backend_that_was_removed_is_gone(doubling):
    assert "doubling" in ops._backends
    del ops._backends["doubling"]
    try:
        with pytest.raises(ValueError, match="no backend 'doubling'"), ops.backend("doubling"):
            pass
        ops.offset_max_pool(numbers((1, 3, 7, 8)), 2)
        assert doubling == []
    finally:
        ops._backends["doubling"] = {}
