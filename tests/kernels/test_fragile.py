"""What may take a GPU down where it fails; `make gpu` runs these last."""

import pytest
import torch
from kernel_checks import DEVICE, INTERPRETED, SCALES, made

from overfeat import ops

if INTERPRETED:
    pytest.skip("streams and graphs are a GPU's", allow_module_level=True)


@pytest.mark.parametrize("others", [0, 80])
def test_a_graph_keeps_its_tables(others):
    """A captured call gives the result of a call on new inputs, also after other shapes evicted its tables."""
    weight, bias = made((256, 128, 5, 5), torch.float16, 8, last=True) / 50, made((256,), torch.float16, 9)
    maps = [made((1, 128, *size), torch.float16, i, last=True) for i, size in enumerate(SCALES)]
    for _ in range(3):
        ops.skip_classifier_flat(maps, weight, bias, 3)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        actual = ops.skip_classifier_flat(maps, weight, bias, 3)
    small = made((16, 16, 5, 5), torch.float16)
    for i in range(others):
        ops.skip_classifier_flat([made((1, 16, 15 + i, 16), torch.float16)], small, None, 3)
    filler = [torch.full((1 << n,), torch.nan, device=DEVICE) for n in range(4, 20) for _ in range(8 if others else 0)]
    for i, m in enumerate(maps):
        m.copy_(made(m.shape, torch.float16, 20 + i))
    graph.replay()
    replayed = actual.clone()
    assert torch.equal(replayed, ops.skip_classifier_flat(maps, weight, bias, 3))
    del filler


def test_two_streams():
    """Concurrent calls of unequal size give exactly the results of calls one after the other."""
    inputs = []
    for sizes, outputs in ((SCALES, 256), (SCALES[:2], 136)):
        maps = [made((1, 128, *size), torch.float16, i, last=True) for i, size in enumerate(sizes)]
        inputs.append((maps, made((outputs, 128, 5, 5), torch.float16, 8, last=True) / 50))
    expected = [ops.skip_classifier_flat(maps, weight, None, 3) for maps, weight in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    actual = []
    for _ in range(20):
        for stream, (maps, weight) in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                actual.append(ops.skip_classifier_flat(maps, weight, None, 3))
    torch.cuda.synchronize()
    for i, result in enumerate(actual):
        assert torch.equal(result, expected[i % 2]), f"call {i}"
