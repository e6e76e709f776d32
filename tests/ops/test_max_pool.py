"""Max pooling without indices equals PyTorch's, in every memory format."""

import pytest
import torch
import torch.nn.functional as F

from overfeat.ops.max_pool import max_pool


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [((2, 2), (2, 2), (1, 1)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 3), (2, 4)), ((1, 5), (2, 1), (1, 2))],
)
def test_equals_max_pool2d(device, kernel, stride, dilation, memory_format):
    torch.manual_seed(0)
    maps = torch.randn(2, 5, 13, 17, device=device).to(memory_format=memory_format)
    maps[0, 1, 4, 6], maps[1, 2, 3, 3], maps[1, 0, :6] = torch.nan, torch.inf, -torch.inf
    expected = F.max_pool2d(maps, kernel, stride, 0, dilation)
    before = maps.clone()
    actual = max_pool(maps, kernel, stride, dilation)
    assert torch.equal(actual.nan_to_num(7), expected.nan_to_num(7)) and actual.isnan().any()
    assert torch.equal(before.nan_to_num(7), maps.nan_to_num(7))
    assert actual.is_contiguous(memory_format=memory_format)
    inside = maps[:, :, 1:, 2:]  # a view
    assert torch.equal(max_pool(inside, kernel, stride, dilation).nan_to_num(7),
                       F.max_pool2d(inside, kernel, stride, 0, dilation).nan_to_num(7))  # fmt: skip
