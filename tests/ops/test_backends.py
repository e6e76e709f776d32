"""Invalid arguments of the ops, and the selection of their backend."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from op_checks import numbers, parameters

from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.ops import Backend, reference, registry
from overfeat.ops.backends import eager

# Errors


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((zeros(3, 7, 7), 2), r"maps must be \[N, C, H, W\]; these have shape \(3, 7, 7\)"),
        ((zeros(1, 3, 7, 7), 0), "size must be an integer of at least 1, not 0"),
        ((zeros(1, 3, 7, 7), 2, 0), "dilation must be an integer of at least 1, not 0"),
        ((zeros(1, 3, 7, 2), 3), "maps of 7x2 are smaller than the 3x3"),
        ((zeros(1, 3, 7, 6), 3, 3), "maps of 7x6 are smaller than the 7x7"),
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
        ((zeros(1, 3, 7, 7), WEIGHT, None, 0), "size must be an integer of at least 1, not 0"),
        ((zeros(1, 3, 7, 7), WEIGHT, None, 2, True, 0), "tap must be an integer of at least 1, not 0"),
        ((zeros(1, 3, 7, 7), WEIGHT, None, 2, True, 1.5), "tap must be an integer of at least 1, not 1.5"),
        ((zeros(1, 3, 5, 7), WEIGHT, None, 3), "maps of 5x7 are smaller than the 6x6"),
        ((zeros(1, 3, 5, 7), WEIGHT, None, 3, True, 5), "maps of 5x7 are smaller than the 8x8"),
        ((zeros(1, 3, 7, 5), zeros(4, 3, 1, 2), None, 3), "maps of 7x5 are smaller than the 3x6"),
        ((zeros(1, 2, 7, 7), WEIGHT, None, 3), "maps have 2 channels, the weight has 3 input channels"),
        ((zeros(1, 3, 7, 7), zeros(4, 3), None, 3), r"weight must be \[O, C, k_y, k_x\]; it has shape \(4, 3\)"),
        ((zeros(1, 3, 7, 7), WEIGHT, zeros(3), 3), r"bias must be \[4\] to fit the weight; it is \[3\]"),
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


def test_blocks_nest_and_restore():
    assert ops.active_override() is None
    with ops.backend("reference"):
        assert ops.active_override() == "reference"
        with ops.backend("torch"):
            assert ops.active_override() == "torch"
        assert ops.active_override() == "reference"
    with pytest.raises(KeyError), ops.backend("reference"):
        raise KeyError
    assert ops.active_override() is None
    with (
        pytest.raises(ValueError, match="no backend 'cudnn'; there are reference, torch"),
        ops.backend("cudnn"),
    ):
        pass
    assert ops.active_override() is None


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
    """The backward pass may run inside a block, or after it, whatever the forward pass ran in."""
    maps = numbers((1, 3, 7, 8)).requires_grad_()
    weight, bias = parameters(4, 3, 2)
    expected = torch.autograd.grad(reference.skip_classifier(maps, weight, bias, 3).sum(), maps)
    result = ops.skip_classifier(maps, weight, bias, 3)
    with ops.backend(name):
        assert_matches(torch.autograd.grad(result.sum(), maps), expected, torch.float64)
        result = ops.skip_classifier(maps, weight, bias, 3)
    assert_matches(torch.autograd.grad(result.sum(), maps), expected, torch.float64)


def test_threads_have_their_own_blocks(doubling):
    """Two threads inside different blocks at the same time, through forward and backward passes."""
    inside = threading.Barrier(2, timeout=60)

    def run(name):
        maps = numbers((1, 3, 7, 8)).requires_grad_()
        with ops.backend(name):
            inside.wait()
            pooled = ops.offset_max_pool(maps, 2)
            inside.wait()
            (gradient,) = torch.autograd.grad(pooled.sum(), maps)
            inside.wait()
            return ops.active_override(), pooled.detach(), gradient

    with ThreadPoolExecutor(2) as pool, ops.backend("reference"):
        eager_run, doubling_run = pool.map(run, ["torch", "doubling"])
        assert (eager_run[0], doubling_run[0], ops.active_override()) == ("torch", "doubling", "reference")
    assert all(torch.equal(d, 2 * e) for d, e in zip(doubling_run[1:], eager_run[1:], strict=True))


def test_a_new_thread_starts_outside_of_blocks():
    with ThreadPoolExecutor(1) as pool, ops.backend("reference"):
        assert pool.submit(ops.active_override).result() is None


def test_gradients_run_on_the_backend_of_the_forward_pass(doubling):
    """Whatever block the backward pass is in, and in whatever thread it runs, as autograd's do for GPUs."""
    maps = numbers((1, 3, 7, 8)).requires_grad_()
    with ops.backend("torch"):
        pooled = ops.offset_max_pool(maps, 2)
    with ops.backend("doubling"):
        (plain,) = torch.autograd.grad(pooled.sum(), maps)
        pooled = ops.offset_max_pool(maps, 2)
    assert doubling == ["offset_max_pool"]
    with ThreadPoolExecutor(1) as pool, ops.backend("torch"):
        (doubled,) = pool.submit(torch.autograd.grad, pooled.sum(), maps).result()
    assert torch.equal(doubled, 2 * plain)
    with ops.backend("torch"), ops.backend(None):
        ops.offset_max_pool(maps, 2)
    assert doubling == ["offset_max_pool", "offset_max_pool_backward", "offset_max_pool"]


@pytest.mark.parametrize("name", ["torch", "doubling", "reference"])
def test_compiled_code_looks_at_the_block_around_the_call(doubling, name):
    maps = numbers((1, 3, 7, 8))
    torch._dynamo.reset()
    compiled = torch.compile(lambda m: ops.offset_max_pool(m, 2) + 1, fullgraph=True, backend="aot_eager")
    compiled(maps)
    doubling.clear()
    with ops.backend(name):
        assert torch.equal(compiled(maps), ops.offset_max_pool(maps, 2) + 1)
    assert len(doubling) == (2 if name == "doubling" else 0)


@pytest.fixture
def doubling():
    """A backend that pools, doubles, and records its calls; it supports float64 only."""
    ran = []

    def pool(maps, size, dilation):
        ran.append("offset_max_pool")
        return 2 * eager.offset_max_pool(maps, size, dilation)

    def pool_backward(grad, maps, size, dilation):
        ran.append("offset_max_pool_backward")
        return 2 * eager.offset_max_pool_backward(grad, maps, size, dilation)

    functions = {"offset_max_pool": pool, "offset_max_pool_backward": pool_backward}

    def supports(op, device, dtype, num_classes=None):
        return None if dtype == torch.float64 else "float64 only"

    ops.register_backend(Backend("doubling", functions, supports))
    yield ran
    registry._backends.pop("doubling", None)


def test_a_registered_backend_takes_precedence(doubling):
    maps = numbers((1, 3, 7, 8)).requires_grad_()
    plain = reference.offset_max_pool(maps, 2)
    assert torch.equal(ops.offset_max_pool(maps, 2), 2 * plain)
    assert doubling == ["offset_max_pool"]
    (gradient,) = torch.autograd.grad(ops.offset_max_pool(maps, 2).sum(), maps)
    assert torch.equal(gradient, 2 * torch.autograd.grad(plain.sum(), maps)[0])
    assert doubling[1:] == ["offset_max_pool", "offset_max_pool_backward"]
    # inputs that it does not support, and ops that it does not have, run on the next backend
    ops.offset_max_pool(maps.float(), 2)
    ops.skip_classifier(maps, parameters(4, 3, 2)[0], None, 2)
    with ops.backend("torch"):
        assert torch.equal(ops.offset_max_pool(maps, 2), plain)
    assert len(doubling) == 3


def test_a_named_backend_refuses_unsupported_inputs(doubling):
    maps = numbers((1, 3, 7, 8))
    with ops.backend("doubling"):
        ops.offset_max_pool(maps, 2)
        words = "'doubling' does not run offset_max_pool on torch.float32 on cpu: float64 only"
        with pytest.raises(ValueError, match=words):
            ops.offset_max_pool(maps.float(), 2)
        assert ops.skip_classifier(maps, parameters(4, 3, 2)[0], None, 2).shape == (1, 4, 4, 5)  # it has no such op


def test_a_removed_backend_is_unknown(doubling):
    del registry._backends["doubling"]
    with pytest.raises(ValueError, match="no backend 'doubling'"), ops.backend("doubling"):
        pass
    ops.offset_max_pool(numbers((1, 3, 7, 8)), 2)
    assert doubling == []
