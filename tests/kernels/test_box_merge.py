"""Box merging in every variant, bit for bit."""

import pytest
import torch
from kernel_checks import DEVICE
from op_checks import numbers

from overfeat.kernels import box_merge, launch
from overfeat.kernels.launch import MergeTile
from overfeat.ops import reference


@pytest.mark.parametrize(
    "tiles",
    [
        (MergeTile(4, 4, 1), MergeTile(16, 16, 1), MergeTile(launch.ANY, 32, 2)),
        (MergeTile(4, 4, 1, levels=2), MergeTile(16, 16, 1, levels=3), MergeTile(launch.ANY, 32, 2, levels=5)),
        (MergeTile(launch.ANY, 16, 1, tiled=True),),
        (MergeTile(8, 8, 1), MergeTile(launch.ANY, 8, 1, tiled=True)),
    ],
    ids=["in registers", "levels", "tiled", "both"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_merging_in_every_variant(monkeypatch, tiles, dtype):
    """Groups of one box, of a tile, of one more, and of many, some of them tied, bit for bit; few left or one."""
    monkeypatch.setattr(box_merge, "MERGE_TILES", {dtype: tiles})
    lengths = [1, 4, 5, 16, 17, 9, 1]
    corner = (numbers((sum(lengths), 2), DEVICE, 0, torch.float32) * 4).round().to(dtype)
    side = (numbers((sum(lengths), 2), DEVICE, 1, torch.float32).abs() * 6).round().to(dtype)
    boxes, scores = torch.cat([corner, corner + side], dim=1), torch.rand(sum(lengths), dtype=dtype, device=DEVICE)
    rules = (("normalised", 1.4, "pairwise"), ("sum", 12, "counts"), ("centres", 2, "counts"))
    for match, threshold, average in (*rules, ("normalised", float("inf"), "counts")):
        rule = {"match_threshold": threshold, "match_metric": match, "box_average": average, "min_iou": 0.05}
        actual, expected = (f(boxes, scores, lengths, **rule) for f in (box_merge.merge, reference.merge_boxes))
        assert torch.equal(actual[3], expected[3]) and torch.equal(actual[4], expected[4])
        left = expected[3] > 0
        assert all(torch.equal(a[left], b[left]) for a, b in zip(actual[:3], expected[:3], strict=True))
        assert (left.sum() - len(lengths) < 3) if threshold == float("inf") else (left.sum() < 0.9 * sum(lengths))
