"""A user's program with every public name, for mypy: `make lint` checks it strictly. It is not run."""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import overfeat
import overfeat.fast


def own_network(module: nn.Module, photo: Path) -> None:
    net = assert_type(
        overfeat.densify(module, (96, 64), std=255, class_names=["sound", "cracked"]), overfeat.DensifiedNet
    )
    maps = assert_type(overfeat.score_maps(net, photo, scales=[1.0, (300, 400)], stride=8), overfeat.ScoreMaps)
    first = assert_type(maps[0], overfeat.ScoreMap)
    assert_type(first.scores, Tensor)
    assert_type(first.grid.boxes(), np.ndarray)
    assert_type(maps.picture("cracked"), Image.Image)
    listed: list[overfeat.ScoreMap] = maps
    assert_type(len(listed), int)
    borders = assert_type(overfeat.compare_borders(net, [photo]), overfeat.BorderComparison)
    assert_type(borders.agreement, float)
    backbone = overfeat.Backbone(net, node="4", window=64)
    assert_type(overfeat.OverFeat(backbone.architecture, 10, backbone=backbone), overfeat.OverFeat)


def classification(photos: list[Path], picture: Image.Image, array: np.ndarray) -> Tensor:
    net = overfeat.squeezenet()
    for scores in (
        overfeat.classify(net, photos, scales="six"),
        overfeat.classify([net, net], picture, scales=overfeat.SixScales(1, 2, 4, 6)),
        overfeat.centre_crop(net, array),
        overfeat.ten_views(net, torch.zeros(2, 3, 300, 300), value_range=(0, 1)),
    ):
        assert_type(scores, Tensor)
    with overfeat.backend("torch"):
        return overfeat.classify(net, picture)


def nets(path: Path) -> None:
    net = assert_type(overfeat.build("accurate", classes=10), overfeat.OverFeat)
    architecture: overfeat.Architecture = net.architecture
    regressor = overfeat.BoxRegressor(architecture, 10)
    net.thresholds = overfeat.DetectionThresholds(min_score=(0.5, 0.4), postprocess="vote")
    overfeat.save(net, path, dtype=torch.float16, regressor=regressor)
    assert_type(overfeat.load(path), overfeat.OverFeat)
    assert_type(overfeat.load_regressor(str(path)), overfeat.BoxRegressor)
    assert_type(overfeat.load_released("net_weight_0", "fast"), overfeat.OverFeat)
    model = overfeat.MultiBox(architecture, 100, ["car", "person"])
    overfeat.save_multibox(model, path)
    assert_type(overfeat.load_multibox(path), overfeat.MultiBox)


def objects(path: Path, photo: Path) -> list[str]:
    net, regressor = overfeat.load(path), overfeat.load_regressor(path)
    try:
        detections = overfeat.detect(net, regressor, photo, scales=[0.5, 1.0], min_score=[0.5, 0.4])
    except overfeat.InputError as error:
        return [str(error)]
    assert_type(detections, overfeat.Detections)
    assert_type(detections[detections.scores > 0.9].boxes, Tensor)
    assert_type(detections.picture(photo), Image.Image)
    assert_type(overfeat.localize(net, regressor, photo, top_k=3), overfeat.Detections)
    raw = assert_type(overfeat.candidates(net, regressor, photo, top_k=None), overfeat.Candidates)
    merged = assert_type(overfeat.merge_boxes(raw.boxes, raw.scores, raw.labels, match_threshold=0.4), overfeat.Merged)
    grids = [score_map.grid for score_map in overfeat.score_maps(net, photo)]
    scores = assert_type(overfeat.normalize_scores(merged.scores, merged.boxes, grids), Tensor)
    kept = assert_type(overfeat.nms(merged.boxes, scores, merged.groups), Tensor)
    assert_type(overfeat.iou(merged.boxes[kept], raw.boxes), Tensor)
    assert_type(overfeat.match_score(merged.boxes, raw.boxes, match_metric="centres"), Tensor)
    return detections.names


def multibox(model: overfeat.MultiBox, net: overfeat.OverFeat, photo: Path) -> overfeat.Detections:
    proposals = assert_type(overfeat.propose(model, photo), overfeat.Detections)
    assert_type(overfeat.classify_boxes(net, photo, proposals.boxes), Tensor)
    return overfeat.detect_multibox(model, net, photo, max_detections=20)


def prototypes(net: overfeat.DensifiedNet, photo: Path) -> list[tuple[str, float]]:
    own = overfeat.Prototypes(net, threshold=0.5)
    own.add("mug", photo, box=(10, 20, 200, 220))
    own.save("mug.safetensors")
    assert_type(own.score_maps(photo), overfeat.ScoreMaps)
    return overfeat.Prototypes.load("mug.safetensors", net=net).classify(photo)


def operators(maps: Tensor, weight: Tensor) -> None:
    assert_type(overfeat.offset_max_pool(maps, 3), Tensor)
    assert_type(overfeat.skip_classifier(maps, weight, None, 3, tap=2), Tensor)
    assert_type(overfeat.skip_classifier_scales([maps, maps], weight, None, 3), list[Tensor])
    overfeat.ops.register_backend(overfeat.ops.Backend("mine", {"offset_max_pool": overfeat.ops.offset_max_pool}))


def size_of(path: Path) -> int:
    return path.stat().st_size


def many_machines(photos: list[Path]) -> int:
    return sum(result.result() for _, result in overfeat.cluster.run(lambda: size_of, photos, dask="local:2"))


def fast(net: overfeat.OverFeat, photo: Path) -> str:
    captured = assert_type(overfeat.fast.capture(net, [(1, 3, 375, 500)]), overfeat.fast.CapturedClassifier)
    assert_type(captured(torch.zeros(1, 3, 375, 500, dtype=torch.uint8)), Tensor)
    assert_type(overfeat.fast.classify(net, photo), Tensor)
    detections = overfeat.fast.detect(net, overfeat.fast.load_regressor("net.safetensors"), photo)
    assert_type(detections, overfeat.Detections)
    return overfeat.__version__ + "\n".join(row.reason for row in overfeat.fast.status())
