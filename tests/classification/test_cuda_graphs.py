"""Captured classification with simulated graphs, and `classify` as its twin; tests/test_fast.py has those of a GPU."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from overfeat import InputError, classify, densify
from overfeat.classification import graphs
from overfeat.classification.graphs import CapturedClassifier, capture
from overfeat.dense.config import DenseConfig

SIZES = [(1, 3, 70, 90), (2, 3, 64, 64), (3, 70, 90)]
SCALES = [0.8, 1.0]


def drawn(*shape, seed=0):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def simulated(monkeypatch):
    """Graphs that run on the CPU as on a GPU: a replay reads the same inputs and overwrites the same result."""
    replays = []

    def record(run, device, pool):
        result = run()
        return result, lambda: replays.append(1) or result.copy_(run())

    monkeypatch.setattr(graphs, "_on_gpu", lambda net: True)
    monkeypatch.setattr(graphs, "_record", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return replays


def test_without_a_gpu_classify_runs(make_net):
    net = make_net("small")
    captured = capture(net, SIZES, scales=SCALES, flip=True)
    assert captured.shapes == []
    for seed, shape in enumerate([*SIZES, (1, 3, 81, 77)]):
        images = drawn(*shape, seed=seed)
        assert torch.equal(captured(images), classify(net, images, scales=SCALES, flip=True))


def test_replays_equal_classify(simulated, make_net):
    net = make_net("small")
    captured = capture(net, SIZES, scales=SCALES, flip=True)
    assert captured.shapes == [(1, 3, 70, 90), (2, 3, 64, 64)]
    images = [drawn(*SIZES[i % 3], seed=i) for i in range(6)]
    actual = [captured(batch) for batch in images]
    assert len(simulated) == 6
    for scores, batch in zip(actual, images, strict=True):  # a later replay changes no earlier result
        assert torch.equal(scores, classify(net, batch, scales=SCALES, flip=True))


class HostTensors(TorchDispatchMode):
    """Counts the operators inside the block, and lists those that read or write a tensor on the host."""

    def __init__(self):
        super().__init__()
        self.count, self.on_host = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        self.count += 1
        if any(t.device.type == "cpu" for t in tensors) or func is torch.ops.aten._local_scalar_dense.default:
            self.on_host.append(str(func))
        return result


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_nothing_is_copied_from_the_host(make_net, dtype):
    """A graph holds no copy from the host and reads no value; the device of meta tensors stands for a GPU."""
    classifier, net = CapturedClassifier([], DenseConfig(flip=True)), make_net("thin accurate").to("meta")
    net.architecture = replace(net.architecture, mean=(120.0, 110.0, 100.0))
    images = torch.empty(2, 3, 375, 500, dtype=dtype, device="meta")
    with HostTensors() as operators:
        assert classifier._eager(net, images).shape == (2, 5)
    assert operators.count > 100
    assert not operators.on_host


def test_other_images_are_classified_eagerly(simulated, make_net):
    net = make_net("small")
    captured = capture(net, SIZES, scales=SCALES)
    others = [drawn(1, 3, 81, 77), drawn(3, 3, 64, 64), drawn(1, 3, 70, 90).float(), drawn(1, 1, 70, 90)]
    assert all(torch.equal(captured(batch), classify(net, batch, scales=SCALES)) for batch in others)
    assert not simulated
    sizes = [(3, 64, 64), (3, 70, 90), (3, 64, 64), (3, 81, 77)]
    images = [drawn(*size, seed=i) for i, size in enumerate(sizes)]
    assert torch.equal(captured(images), classify(net, images, scales=SCALES))
    assert len(simulated) == 2  # the batch of two and that of one


def test_ensembles_and_other_dtypes(simulated, make_net):
    nets = [make_net("small", seed=0), make_net("small", seed=1)]
    captured = capture(nets, [(1, 64, 64)], dtype=torch.float32, scales=[1.0])
    images = drawn(1, 64, 64).float()
    assert torch.equal(captured(images), classify(nets, images, scales=[1.0]))
    assert len(simulated) == 2


def test_what_cannot_be_captured(make_net):
    net = make_net("small")
    for shapes, dtype in (([(64, 64)], torch.uint8), ([(1, 4, 64, 64)], torch.uint8), ([(3, 64, 64)], torch.int64)):
        with pytest.raises(ValueError, match="images must be"):
            capture(net, shapes, dtype=dtype)
    with pytest.raises(InputError):
        capture(net, [(3, 64, 64)], scales=[(10, 10)])
    net.reach = 0.5
    with pytest.raises(InputError, match="cannot be captured: it has a margin"):
        capture(net, [(3, 64, 64)])
    net.reach = 0.0
    net.add_context()
    with pytest.raises(InputError, match="context"):
        capture(net, [(3, 64, 64)])
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2)).eval()
    with pytest.raises(InputError, match="converted module"):
        capture(densify(module, 8), [(3, 64, 64)])
