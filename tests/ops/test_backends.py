"""What the ops refuse, and which backend runs them."""

import pytest
import torch
from op_checks import numbers, parameters

from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.ops import reference
from overfeat.ops.backends import eager

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
        twin = getattr(reference, name)
        monkeypatch.setattr(
            reference, name, lambda *arguments, name=name, twin=twin: calls.append(name) or twin(*arguments)
        )
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
        return 2 * eager.offset_max_pool(maps, size)

    def pool_backward(grad, maps, size):
        ran.append("offset_max_pool_backward")
        return 2 * eager.offset_max_pool_backward(grad, maps, size)

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
        assert ops.skip_classifier(maps, parameters(4, 3, 2)[0], None, 2).shape == (1, 4, 4, 5)  # it has no such op


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
