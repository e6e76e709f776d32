"""The ops under torch.library.opcheck, gradcheck, torch.compile and autocast."""

import itertools

import pytest
import torch
from op_checks import LAYOUTS, NO_KERNEL, ONE_FOR_ALL, laid_out, numbers, parameters, scales

from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.ops import reference

# opcheck, gradcheck, torch.compile


def op_samples(layout, size):
    maps = [laid_out(numbers((2, 3, 8, 9), seed=i).float(), layout) for i in range(2)]
    weight, bias = (t.float() for t in parameters(4, 3, 2))
    with ops.backend("torch"):  # a sample for the gradients of any backend
        flat = torch.ops.overfeat.skip_classifier_flat(maps, weight, bias, size, True, size)
        other = torch.ops.overfeat.skip_classifier_flat(maps, weight, bias, size, True, 2)

    def leaves(*tensors):
        return [t.detach().requires_grad_() for t in tensors]

    free = leaves(*maps)
    return {
        "offset_max_pool": [(free[0], size), (free[0], size, 2)],
        "offset_max_pool_backward": [(torch.ones(2, 3, 9 - size, 10 - size), maps[0], size, 1)],
        "skip_classifier": [
            (free[0], *leaves(weight, bias), size, True),
            (maps[0], weight, None, size, False),
            (free[0], *leaves(weight, bias), size, True, 4),
        ],
        "skip_classifier_scales": [
            (free, *leaves(weight, bias), size, True),
            (maps, weight, None, size, False),
            (free, *leaves(weight[:, :, :1], bias), size, True, 4),
        ],
        "skip_classifier_flat": [
            (free, *leaves(weight, bias), size, True, size),
            (maps, weight, None, size, False, size),
            (free, *leaves(weight[:, :, :1], bias), size, True, 4),
        ],
        "class_scores": [(torch.ones(5, 7), [2, 3])],
        "merge_boxes": [
            (
                torch.tensor([[0.0, 0, 4, 4], [1, 0, 5, 4], [9, 9, 10, 10]]),
                torch.ones(3),
                torch.zeros(3).long(),
                0.5,
                "normalised",
                "pairwise",
                0.5,
            ),
        ],
        "skip_classifier_flat_backward": [
            (torch.ones_like(flat), maps, weight, flat, size, size, True, True),
            (torch.ones_like(flat), maps, weight, None, size, size, True, False),
            (torch.ones_like(flat), maps, weight, flat, size, size, False, True),
            (torch.ones_like(other), maps, weight, other, size, 2, True, True),
        ],
    }


@ONE_FOR_ALL
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("name", op_samples("contiguous", 1))
def test_opcheck(name, layout):
    for arguments in op_samples(layout, 3)[name]:
        torch.library.opcheck(getattr(torch.ops.overfeat, name).default, arguments)


# Two of the ops take no maps, and so have one sample whatever the maps' layout and the pool size.
SAMPLES = [
    (name, layout, size)
    for name, layout, size in itertools.product(op_samples("contiguous", 1), LAYOUTS, (1, 2))
    if name not in ("class_scores", "merge_boxes") or (layout, size) == (LAYOUTS[0], 1)
]


@pytest.mark.parametrize(("name", "layout", "size"), SAMPLES)
def test_fakes_have_the_strides_of_results(eager_path, name, layout, size):
    for arguments in op_samples(layout, size)[name]:
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(getattr(torch.ops.overfeat, name).default, arguments, test_utils=checks)


def test_every_op_is_checked():
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("overfeat::")}
    assert {name.removeprefix("overfeat::") for name in names} == set(op_samples("contiguous", 1))


def test_an_op_without_gradient_says_so():
    scores = ops.class_scores(torch.ones(3, 2, requires_grad=True), [3])
    with pytest.raises(RuntimeError, match="overfeat::class_scores has no gradient; detach its inputs"):
        scores.sum().backward()


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced"])
@pytest.mark.parametrize(("size", "tap"), [(1, 1), (2, 2), (3, 3), (3, 2), (1, 3)])
def test_gradcheck(implementation, device, eager_path, size, tap, layout):
    if implementation == "triton":
        pytest.skip("gradcheck needs float64, which the kernels do not support")
    maps = [laid_out(numbers((1, 2, 7, 6 + i), device, seed=i), layout).requires_grad_() for i in range(2)]
    weight, bias = (t.requires_grad_() for t in parameters(3, 2, 2, device))
    assert torch.autograd.gradcheck(lambda m: ops.offset_max_pool(m, size, min(tap, 2)), maps[:1], fast_mode=True)
    for relu in (True, False):

        def function(*inputs, relu=relu):
            return tuple(ops.skip_classifier_scales(list(inputs[2:]), *inputs[:2], size, relu, tap))

        assert torch.autograd.gradcheck(function, (weight, bias, *maps), fast_mode=True)


def pool_and_classify(maps, weight, bias):
    """Both ops on one map and several, between other operations, as in a user's compiled code."""
    maps = [m * 2 for m in maps]
    outputs = ops.skip_classifier_scales(maps, weight, bias, 3)
    one = ops.skip_classifier(ops.offset_max_pool(maps[0], 2, dilation=2), weight, None, 2, relu=False, tap=1)
    return sum(f.square().sum() for f in outputs) + one.sin().sum()


@NO_KERNEL
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole_with_its_gradients(device, compiler):
    torch._dynamo.reset()
    maps = [m.detach().requires_grad_() for m in (*scales(device)[:2], *scales(device)[3:])]
    inputs = [t.requires_grad_() for t in parameters(4, 3, 2, device)]
    expected = pool_and_classify(maps, *inputs)
    compiled = torch.compile(pool_and_classify, fullgraph=True, backend=compiler)
    actual = compiled(maps, *inputs)
    assert_matches(actual, expected, torch.float64)
    leaves = [*maps, *inputs]
    assert_matches(torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves), torch.float64)


@NO_KERNEL
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced channels last", "transposed"])
def test_compiles_on_every_layout(layout):
    """Whether `flatten` copies depends on the strides that the fake promises."""

    def flat(maps, weight):
        outputs = [ops.offset_max_pool(maps, size, dilation) for size, dilation in ((1, 1), (2, 1), (2, 3))]
        outputs += [ops.skip_classifier(maps, weight, None, size, tap=tap) for size, tap in ((1, 1), (2, 2), (3, 1))]
        return [f.flatten() for f in outputs]

    torch._dynamo.reset()
    compiled = torch.compile(flat, fullgraph=True, backend="aot_eager", dynamic=True)
    weight, _ = parameters(4, 3, 2)
    for shape in ((2, 3, 7, 8), (1, 3, 4, 5)):
        maps = laid_out(numbers(shape), layout)
        assert_matches(compiled(maps, weight), flat(maps, weight), torch.float64)


# Mixed precision


@pytest.mark.parametrize("tap", [None, 2])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_autocast_computes_in_bfloat16(device, eager_path, backend, tap):
    maps = numbers((1, 16, 7, 8), device, dtype=torch.float32).requires_grad_()
    weight, bias = (t.requires_grad_() for t in parameters(8, 16, 2, device, torch.float32))
    with ops.backend(backend), torch.autocast(device.type, torch.bfloat16):
        actual = ops.skip_classifier(maps, weight, bias, 3, relu=False, tap=tap)
        assert ops.skip_classifier(maps.bfloat16(), weight, None, 3).dtype == torch.bfloat16
        with torch.autocast(device.type, enabled=False):
            assert ops.skip_classifier(maps, weight, bias, 3).dtype == torch.float32
    assert actual.dtype == torch.bfloat16
    narrow = [t.detach().bfloat16().double().requires_grad_() for t in (maps, weight, bias)]
    expected = reference.skip_classifier(*narrow, 3, relu=False, tap=tap)
    assert_matches(actual, expected, torch.bfloat16)
    cotangent = numbers(actual.shape, device, seed=7).bfloat16()
    with ops.backend(backend):
        gradients = torch.autograd.grad(actual, [maps, weight, bias], cotangent)
    assert all(g.dtype == torch.float32 for g in gradients)
    assert_matches(gradients, torch.autograd.grad(expected, narrow, cotangent.double()), torch.bfloat16)
