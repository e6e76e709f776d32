"""Box merging: every backend bit for bit against the paper's loop, and unusual input."""

import itertools
import os

import pytest
import torch

from overfeat import InputError, backend, merge_boxes, ops
from overfeat.ops import BOX_AVERAGES, boxes

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
KERNELS = INTERPRETED or torch.cuda.is_available()
# Where Triton is interpreted, another run has tested eager PyTorch.
BACKENDS = [*(["torch"] if not INTERPRETED else []), *(["triton"] if KERNELS else [])]
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
KINDS = ("anywhere", "clustered", "tied", "lattice", "all sizes", "equal")
THRESHOLDS = {"normalised": (0.0, 0.3, 0.9, 1.4, float("inf")), "sum": (0.0, 5.0, 400.0), "centres": (0.1, 0.5, 3.0)}
ROUNDS = 2 if INTERPRETED else 20


@pytest.fixture(params=BACKENDS)
def any_backend(request):
    with backend(request.param):
        yield request.param


def draw(kind, count, seed, dtype=torch.float32):
    """Boxes of a kind, scores, and unsorted groups."""
    g = torch.Generator().manual_seed(seed)

    def rand(low, high):
        return low + (high - low) * torch.rand(count, 2, generator=g, dtype=torch.float64)

    if kind == "clustered":
        centres = 200 * torch.rand(4, 2, generator=g, dtype=torch.float64)
        corner, size = centres[torch.randint(4, (count,), generator=g)] + rand(-4, 4), rand(36, 44)
    elif kind == "tied":
        corner, size = rand(0, 12).floor(), rand(0, 5).floor()
    elif kind == "lattice":
        corner, size = 8 * rand(0, 6).floor(), torch.full((count, 2), 16.0, dtype=torch.float64)
    elif kind == "all sizes":
        corner, size = rand(-50, 50), rand(-6, 8).exp()
    elif kind == "equal":
        corner, size = torch.ones(count, 2, dtype=torch.float64), torch.full((count, 2), 7.5, dtype=torch.float64)
    else:
        corner, size = rand(0, 200), rand(0, 60)
    corners = torch.cat([corner, corner + size], dim=1).to(DEVICE, dtype)
    scores = torch.rand(count, generator=g, dtype=torch.float64).to(DEVICE, dtype)
    groups = torch.randint(-1, 3, (count,), generator=g).to(DEVICE)
    return corners, scores, groups


def check_sums(merged, corners, scores, groups):
    """Counts, members, sums and maxima are consistent with the input."""
    assert merged.counts.sum() == len(corners)
    assert torch.equal(merged.members.bincount(minlength=len(merged.counts)), merged.counts)
    assert torch.equal(merged.groups[merged.members], groups)
    sums = torch.zeros_like(merged.scores).index_add(0, merged.members, scores)
    torch.testing.assert_close(merged.scores, sums)
    best = torch.zeros_like(sums).scatter_reduce(0, merged.members, scores, "amax", include_self=True)
    assert torch.equal(merged.max_score, best)


@pytest.mark.parametrize("average", ops.BOX_AVERAGES)
@pytest.mark.parametrize("match", boxes.MATCH_METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference(any_backend, kind, match, average):
    """Bit for bit, on thousands of random problems with ties."""
    merges = 0
    for seed, threshold in itertools.product(range(ROUNDS), THRESHOLDS[match]):
        dtype = (torch.float32, torch.float64)[seed % 2]
        given = draw(kind, (7 * seed) % 61 % (25 if INTERPRETED else 61), seed, dtype)
        options = {"match_threshold": threshold, "match_metric": match, "box_average": average, "min_iou": 0.1}
        actual = merge_boxes(*given, **options)
        with backend("reference"):
            expected = merge_boxes(*given, **options)
        for name, value in vars(expected).items():
            assert torch.equal(getattr(actual, name), value), (name, seed, threshold)
        check_sums(actual, *given)
        merges += len(given[0]) - len(actual.boxes)
    assert INTERPRETED or merges > 4  # the interpreter's small problems may contain no match


def test_a_larger_problem(any_backend):
    """Hundreds of boxes that all overlap merge in the reference's order."""
    count = 60 if INTERPRETED else 400
    corners, scores, _ = draw("clustered", count, 5)
    merged = merge_boxes(corners, scores, match_threshold=0.6)
    with backend("reference"):
        expected = merge_boxes(corners, scores, match_threshold=0.6)
    assert all(torch.equal(getattr(merged, name), value) for name, value in vars(expected).items())
    assert len(merged.boxes) < count / 4


def test_groups_are_independent(any_backend):
    """The result of a group does not depend on the others."""
    corners, scores, groups = draw("tied", 40, 3)
    whole = merge_boxes(corners, scores, groups)
    for group in groups.unique():
        of_group = groups == group
        alone = merge_boxes(corners[of_group], scores[of_group])
        assert torch.equal(whole.boxes[whole.groups == group], alone.boxes)
        assert torch.equal(whole.scores[whole.groups == group], alone.scores)


def test_two_boxes_by_hand(any_backend):
    corners = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [2, 0, 12, 10], [1, 0, 11, 10]], device=DEVICE)
    scores = torch.tensor([0.25, 0.5, 0.5, 0.125], device=DEVICE)
    # The first pair is (0, 3), which ties with (2, 3): then their mean with 2.
    merged = merge_boxes(corners, scores)
    assert merged.boxes.tolist() == [[1.25, 0, 11.25, 10], [50, 50, 60, 60]]
    assert merged.scores.tolist() == [0.875, 0.5]
    assert (merged.counts.tolist(), merged.max_score.tolist()) == ([3, 1], [0.5, 0.5])
    assert merged.members.tolist() == [0, 1, 0, 0]
    weighted = merge_boxes(corners, scores, box_average="counts")
    assert weighted.boxes[0].tolist() == [1, 0, 11, 10]


def test_none_one_and_equal_boxes(any_backend):
    none = merge_boxes(torch.empty(0, 4, device=DEVICE), torch.empty(0, device=DEVICE))
    assert none.boxes.shape == (0, 4) and none.members.shape == (0,)
    one = merge_boxes(torch.tensor([[1.0, 2, 3, 4]], device=DEVICE), torch.ones(1, device=DEVICE))
    assert one.boxes.tolist() == [[1, 2, 3, 4]] and one.counts.tolist() == [1]
    same = torch.tensor([[0.1, 0.2, 77.7, 33.3]], device=DEVICE).repeat(30, 1)
    for threshold, average in itertools.product((0.0, 0.5), BOX_AVERAGES):
        merged = merge_boxes(same, torch.ones(30, device=DEVICE), match_threshold=threshold, box_average=average)
        assert torch.equal(merged.boxes, same[:1])
        assert (merged.scores.tolist(), merged.counts.tolist()) == ([30], [30])


@pytest.mark.skipif(INTERPRETED, reason="of eager PyTorch's search in cells")
def test_distances_whose_squares_are_zero():
    """Two boxes on both sides of a cell's edge."""
    tiny = torch.tensor([[0.0, -3e-45, 2e-20, 0.0], [1e-45, -1e-45, 2e-20, 1e-45]])
    merged = merge_boxes(tiny, torch.ones(2), match_metric="sum", match_threshold=0.0)
    assert merged.counts.tolist() == [2]


def test_inputs_are_unchanged(any_backend):
    corners, scores, groups = draw("clustered", 20, 0)
    before = corners.clone(), scores.clone(), groups.clone()
    merge_boxes(corners, scores, groups)
    assert all(torch.equal(a, b) for a, b in zip(before, (corners, scores, groups), strict=True))
    turned = merge_boxes(corners.t().contiguous().t(), scores.repeat_interleave(2)[::2], groups)
    assert torch.equal(turned.boxes, merge_boxes(corners, scores, groups).boxes)


@pytest.mark.skipif(INTERPRETED, reason="takes minutes under the interpreter")
@pytest.mark.parametrize("average", BOX_AVERAGES)
def test_tens_of_thousands_of_equal_boxes(average):
    """Copies of three boxes, of which two match; the third does not."""
    three = torch.tensor([[0.0, 0, 100, 100], [50, 0, 150, 100], [4, 0, 104, 100]], device=DEVICE)
    corners, scores = three.repeat(11_000, 1), torch.full((33_000,), 0.5, device=DEVICE)
    merged = merge_boxes(corners, scores, match_threshold=0.3, box_average=average)
    assert merged.boxes.tolist() == [[2, 0, 102, 100], [50, 0, 150, 100]]
    assert merged.counts.tolist() == [22_000, 11_000] and merged.scores.tolist() == [11_000, 5_500]
    assert torch.equal(merged.members, (torch.arange(33_000, device=DEVICE) % 3 == 1).long())


@pytest.mark.skipif(INTERPRETED, reason="takes minutes under the interpreter")
def test_tens_of_thousands_of_boxes():
    """Boxes in clusters: one result a cluster, and no box lost."""
    g = torch.Generator().manual_seed(0)
    origins = torch.cartesian_prod(torch.arange(100.0), torch.arange(50.0)) * 100
    corner = origins.repeat(6, 1) + 3 * torch.rand(30000, 2, generator=g)
    corners = torch.cat([corner, corner + 50], dim=1)[torch.randperm(30000, generator=g)].to(DEVICE)
    scores = torch.ones(len(corners), device=DEVICE)
    merged = merge_boxes(corners, scores)
    assert merged.counts.tolist() == [6] * 5000
    check_sums(merged, corners, scores, torch.zeros(len(corners), dtype=torch.int64, device=DEVICE))


@pytest.mark.skipif(KERNELS, reason="the CPU's threads do not concern the kernels")
def test_threads_share_groups():
    """The result does not depend on the number of threads."""
    corners, scores, _ = draw("clustered", 3000, 1)
    groups = torch.arange(3000) // 7 % 100
    threads = torch.get_num_threads()
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append(merge_boxes(corners, scores, groups))
    torch.set_num_threads(threads)
    assert all(torch.equal(value, getattr(results[1], name)) for name, value in vars(results[0]).items())


@pytest.mark.parametrize(
    ("box", "score", "message"),
    [
        ([0, 0, float("nan"), 1], 1, "NaN, infinite or beyond"),
        ([0, 0, float("inf"), 1], 1, "NaN, infinite or beyond"),
        ([0, 0, 2e9, 1], 1, "NaN, infinite or beyond"),
        ([3, 0, 2, 1], 1, "x2 < x1"),
        ([0, 5, 2, 1], 1, "y2 < y1"),
        ([0, 0, 1, 1], -0.5, "score that is NaN, infinite or negative"),
        ([0, 0, 1, 1], float("nan"), "score that is NaN, infinite or negative"),
        ([0, 0, 1, 1], float("inf"), "score that is NaN, infinite or negative"),
    ],
)
def test_invalid_values(any_backend, box, score, message):
    corners = torch.tensor([[0.0, 0, 1, 1], box], dtype=torch.float32, device=DEVICE)
    with pytest.raises(InputError, match=f"1 of 2 boxes have .*{message}.*number 1"):
        merge_boxes(corners, torch.tensor([1.0, score], device=DEVICE))


def test_wrong_arguments():
    corners, scores = torch.zeros(3, 4), torch.ones(3)
    for arguments in ((corners[0], scores), (corners[:, :3], scores), (corners, scores[:2])):
        with pytest.raises(ValueError, match=r"boxes must be \[T, 4\]"):
            merge_boxes(*arguments)
    with pytest.raises(ValueError, match="float32 or both float64"):
        merge_boxes(corners.half(), scores.half())
    with pytest.raises(ValueError, match="groups int64"):
        merge_boxes(corners, scores, torch.zeros(3))
    invalid = {"match_metric": "iou", "box_average": "median", "match_threshold": -1.0, "min_iou": 2.0}
    for name, value in [*invalid.items(), ("match_threshold", float("nan")), ("min_iou", "0.5")]:
        with pytest.raises(InputError, match=f"{name} must be"):
            merge_boxes(corners, scores, **{name: value})


def test_in_a_compiled_graph(any_backend):
    corners, scores, _ = draw("clustered", 12, 0)
    compiled = torch.compile(lambda b, s: merge_boxes(b, s).scores * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(corners, scores), merge_boxes(corners, scores).scores * 2)
    with pytest.raises(InputError, match="NaN"):
        compiled(corners * float("nan"), scores)
