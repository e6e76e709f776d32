"""Candidates in files, merged by a sweep, give what all of them together give."""

import numpy as np
import pytest
import torch

from overfeat.dense.candidates import Candidates
from overfeat.dense.grid import Grid
from overfeat.detection.predict import DetectionRule, combine
from overfeat.errors import InputError
from overfeat.large import merge
from overfeat.ops.backends.numba_components import components
from overfeat.ops.boxes import iou, scoring

GRIDS = [Grid((40, 40), 4, (1000, 300), (1000, 300))]


def rule(**changes):
    own = {
        "postprocess": "vote", "match_threshold": 0.5, "nms_iou_threshold": 0.3, "class_iou_threshold": 1.0,
        "box_average": "counts", "score_threshold": 0.0, "max_candidates": None, "min_score": 0.0,
    }  # fmt: skip
    return DetectionRule(**own | changes)


def crowd(seed, objects=150, spread=5.0):
    """Boxes around objects in an image of 1000 x 300 px, some in chains, some equal, as their scores are."""
    generator = np.random.default_rng(seed)
    objects = np.concatenate(
        [generator.uniform(0, (260, 960), (objects, 2)), generator.uniform(15, 40, (objects, 2))], 1
    )
    boxes = np.repeat(objects, generator.integers(1, 8, len(objects)), axis=0)
    boxes += generator.normal(0, spread, boxes.shape) * (generator.random((len(boxes), 1)) < 0.9)
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].clip(0)
    order = generator.permutation(len(boxes))
    scores = generator.choice([0.5, 0.75, 1.0], len(boxes)) * generator.choice([1.0, 0.9], len(boxes))
    labels = torch.from_numpy(generator.integers(0, 2, len(boxes)))
    every = torch.from_numpy(boxes[order]).float(), torch.from_numpy(scores).float(), labels, torch.zeros_like(labels)
    return Candidates(*every)


def write(folder, candidates, count=12):
    """Candidates by rows in files, as blocks have them, and some strays."""
    part = (candidates.boxes[:, 1] // (1000 / count)).clamp(0, count - 1).long()
    part[::50] = (part[::50] + 5) % count
    paths = []
    for number in reversed(range(count)):
        own = (part == number).nonzero()[:, 0]
        paths.append(folder / f"{number}.safetensors")
        merge.save_candidates(paths[-1], candidates[own], own)
    merge.save_candidates(folder / "empty.safetensors", candidates[:0], torch.empty(0, dtype=torch.int64))
    return [*paths, folder / "empty.safetensors"]


def sorted_detections(detections):
    keys = [detections.boxes[:, 0], detections.boxes[:, 1], detections.labels, -detections.scores]
    return detections[torch.from_numpy(np.lexsort([key.numpy() for key in keys]))]


RULES = [
    {}, {"class_iou_threshold": 0.4}, {"postprocess": "nms", "nms_iou_threshold": 0.2, "min_score": (0.6, 0.8)},
    {"postprocess": "nms", "nms_iou_threshold": 0.0}, {"postprocess": "merge"},
    {"postprocess": "merge", "match_threshold": (0.9, 0.3), "class_iou_threshold": 0.3}, {"nms_iou_threshold": 1.0},
    {"postprocess": "merge", "match_threshold": 1.2},
]  # fmt: skip


@pytest.mark.parametrize("changes", RULES, ids=str)
@pytest.mark.parametrize("objects", [20, 150])
def test_the_sweep_gives_what_all_boxes_give(changes, objects, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "HELD", 20)
    held, own = [], merge._merge

    def counting(candidates, *arguments):
        held.append(len(candidates.labels))
        return own(candidates, *arguments)

    monkeypatch.setattr(merge, "_merge", counting)
    for seed in range(3):
        candidates, own_rule = crowd(seed, objects), rule(**changes)
        names = ("postprocess", "match_threshold", "nms_iou_threshold", "class_iou_threshold", "box_average")
        expected = combine(candidates, GRIDS, **{name: getattr(own_rule, name) for name in names})
        expected = sorted_detections(expected[scoring(expected.scores, expected.labels, own_rule.min_score)])
        (tmp_path / str(seed)).mkdir()
        actual = merge.merge_files(write(tmp_path / str(seed), candidates), GRIDS, own_rule)
        assert torch.equal(actual.labels, expected.labels)
        for name, value in vars(actual).items():
            assert torch.allclose(value.double(), getattr(expected, name).double(), rtol=1e-5, atol=1e-5), name
    if objects == 20 and changes.get("match_threshold") != 1.2:
        assert sum(count > 0 for count in held) > 6, "all at once: this compares the whole with itself"


def test_components_of_boxes():
    boxes = crowd(0).boxes.double()
    labels = torch.arange(len(boxes)) % 2
    for min_iou in (0.0, 0.3, 1.0):
        joined = iou(boxes, boxes)
        joined = (joined >= min_iou) & (joined > 0) & (labels[:, None] == labels)
        reached = torch.eye(len(boxes), dtype=torch.bool) | joined
        for _ in range(12):
            reached = (reached.float() @ reached.float()) > 0
        actual = torch.from_numpy(components(boxes.numpy(), labels.numpy(), min_iou))
        assert torch.equal(actual[:, None] == actual, reached)
        assert actual.max() + 1 == len(actual.unique())
    assert not len(components(np.empty((0, 4)), np.empty(0, np.int64), 0.5))


def test_a_file_that_is_none_of_a_block_is_named(tmp_path):
    (tmp_path / "1.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"1.safetensors: no result of a block .*; delete it, and run again"):
        merge.merge_files([tmp_path / "1.safetensors"], GRIDS, rule())


def test_no_candidates_at_all(tmp_path):
    paths = write(tmp_path, crowd(0)[torch.empty(0, dtype=torch.int64)])
    for postprocess in ("vote", "nms", "merge"):
        detections = merge.merge_files(paths, GRIDS, rule(postprocess=postprocess))
        assert len(detections) == 0 and detections.boxes.shape == (0, 4)
