"""What all kernels of lists of maps share: tuples of pointers, tables cached per shape."""

from unittest.mock import MagicMock

import pytest
import torch
from kernel_checks import made

from overfeat.kernels.maps import DeviceTableCache, pointers


def test_few_lengths_of_pointer_tuples():
    maps = [made((1, 2, 3, 3), seed=seed) for seed in range(9)]
    assert [len(pointers(maps[:count])) for count in range(1, 10)] == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert all(one is other for one, other in zip(pointers(maps), maps + [maps[-1]] * 7, strict=True))


def test_streams_and_graphs_that_use_tables(monkeypatch):
    """Each stream is recorded with the allocator once; a graph pins the tables that it was captured with."""
    cuda, table = torch.device("cuda"), MagicMock()
    cache = DeviceTableCache(lambda shape, device: (table,))
    capturing, stream = MagicMock(return_value=False), MagicMock(side_effect=["first", "first", "second", "first"])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    assert all(cache((3, 4), cuda) == (table,) for _ in range(4))
    assert [call.args for call in table.record_stream.call_args_list] == [("first",), ("second",)]
    capturing.return_value = True
    assert cache((3, 4), cuda) == (table,)
    assert cache.pinned_by_graph == {((3, 4), cuda): (table,)}
    with pytest.raises(RuntimeError, match="captured with maps of new shapes"):
        cache((4, 3), cuda)
