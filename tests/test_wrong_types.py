"""Every argument of every public function with values of other types: a result, or one line that says what is wrong."""

import linecache
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import overfeat
from overfeat.dense.config import DenseConfig
from overfeat.dense.grid import grids
from overfeat.densify.convert import _preparation
from overfeat.errors import InputError
from overfeat.files import ASSETS
from overfeat.large import LargeConfig, detect_large, open_image, write_layer_output, write_score_maps

VALUES = [
    None, "no such", 3, 3.5, -1, float("nan"), True, [], [None], {}, object(), b"x", np.zeros((2, 2)), torch.empty(0),
    nn.Identity(), ["a", "b"], 10**400, 1j,
]  # fmt: skip
NOT_CALLED = {
    "BorderComparison", "Candidates", "DensifiedNet", "Detections", "InputError", "Merged", "ScoreMap", "ScoreMaps",
    "ops", "Architecture", "cluster", "squeezenet",
}  # fmt: skip


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """name: (function, its arguments with values that are right)."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = overfeat.load(ASSETS / "small.safetensors")
        net.background = True
        architecture, image = net.architecture, torch.randint(0, 256, (3, 50, 52), dtype=torch.uint8)
        regressor, model = overfeat.BoxRegressor(architecture), overfeat.MultiBox(architecture, 5)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    boxes, scores, groups = torch.tensor([[1.0, 2, 30, 40]] * 2), torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    maps, weight, bias = torch.ones(1, 4, 9, 9), torch.ones(5, 4, 2, 2), torch.ones(5)
    dense = {"scales": [1.0], "flip": False, "stride": "fine", "memory_limit": 1 << 28, "value_range": (0, 255)}
    own = overfeat.densify(module, 8, check=False)
    boxed = {"net": net, "regressor": regressor, "image": image, "match_threshold": None}
    ops = {"weight": weight, "bias": bias, "size": 3, "tap": None}
    arguments = {
        "classify": {"nets": net, "images": image, **dense},
        "centre_crop": {"nets": net, "images": image, "value_range": None},
        "ten_views": {"nets": net, "images": image, "flip": False, "value_range": None},
        "score_maps": {"net": net, "images": image, **dense},
        "candidates": {
            "net": net, "regressor": regressor, "image": image, "top_k": 2, "relative_threshold": 0.5,
            "score_threshold": 0.1, "scales": [1.0],
        },
        "localize": {**boxed, "top_k": 2, "relative_threshold": 0.5, "scales": [1.0]},
        "detect": {
            **boxed, "postprocess": "vote", "nms_iou_threshold": 0.3, "class_iou_threshold": 0.5, "min_score": 0.1,
            "box_average": "counts", "score_threshold": 0.1, "max_candidates": 100, "scales": [1.0],
        },
        "detect_large": {
            "net": net, "regressor": regressor, "image": open_image(image.permute(1, 2, 0).numpy()),
            "large": LargeConfig(), "folder": None, "progress": False, "match_threshold": None, "scales": [1.0],
        },
        "detect merge": {**boxed, "postprocess": "merge", "box_average": "counts", "scales": [1.0]},
        "propose": {"model": model, "image": image, "crops": "both", "nms_iou_threshold": 0.5, "value_range": None},
        "classify_boxes": {"net": net, "image": image, "boxes": boxes, "square": "maximum"},
        "detect_multibox": {
            "model": model, "net": net, "image": image, "crops": "both", "max_detections": 3,
            "nms_iou_threshold": 0.5, "score_threshold": 0.1, "square": "maximum",
        },
        "compare_borders": {"net": own, "images": image[:, :12, :12], "scales": [1.0], "stride": 4},
        "densify": {
            "module": module, "window": 8, "borders": "exact", "check": False, "channels": 3, "box_coder": "xyxy",
        },
        "build": {"architecture": "small", "classes": 3},
        "OverFeat": {"architecture": architecture, "classes": 3, "context": False, "backbone": None},
        "BoxRegressor": {
            "architecture": architecture, "num_classes": 2, "box_coder": "xyxy", "hidden": [4, 4],
            "box_features": "pooled",
        },
        "MultiBox": {"architecture": architecture, "num_boxes": 2, "class_names": ["a"], "priors": boxes / 50},
        "Backbone": {"net": own, "node": "0", "window": 8, "hidden": (8,)},
        "Prototypes": {"net": own, "layer": None, "cells": 2, "threshold": 0.5},
        "load": {"path": ASSETS / "small.safetensors"},
        "load_regressor": {"path": ASSETS / "cells.safetensors"},
        "load_multibox": {"path": folder / "model.safetensors"},
        "load_released": {"path": ASSETS / "small.safetensors", "name": "fast"},
        "save": {"net": net, "path": folder / "net.safetensors", "dtype": torch.float16, "regressor": regressor},
        "save_multibox": {"model": model, "path": folder / "model.safetensors", "dtype": None},
        "merge_boxes": {
            "boxes": boxes, "scores": scores, "groups": groups, "match_threshold": 0.5,
            "match_metric": "normalised", "box_average": "pairwise", "min_iou": 0.5,
        },
        "nms": {
            "boxes": boxes, "scores": scores, "groups": groups, "iou_threshold": 0.5, "across_iou_threshold": 0.5,
        },
        "iou": {"a": boxes, "b": boxes},
        "match_score": {"a": boxes, "b": boxes},
        "offset_max_pool": {"maps": maps, "size": 3, "dilation": 1},
        "skip_classifier": {"maps": maps, **ops},
        "skip_classifier_scales": {"maps": [maps], **ops},
        "backend": {"name": "torch"},
        "SixScales": {"number": 1},
        "normalize_scores": {
            "confidence_sum": scores, "boxes": boxes, "grids": grids(net, (50, 52), DenseConfig([1.0])),
        },
        "DetectionThresholds": {
            "match_threshold": None, "nms_iou_threshold": None, "class_iou_threshold": None, "score_threshold": None,
            "postprocess": None, "min_score": None,
        },
    }  # fmt: skip
    functions = {name: getattr(overfeat, name.split()[0], detect_large) for name in arguments}
    functions["SixScales"] = lambda number: overfeat.SixScales(number)
    overfeat.save_multibox(model, folder / "model.safetensors")
    np.save(folder / "image.npy", image.permute(1, 2, 0).numpy())
    large = folder / "image.npy"
    written = {"folder": folder / "blocks", "progress": False, "large": None, "memory_limit": 1 << 28}
    prototypes = overfeat.Prototypes(own)
    prototypes.add("a", image)
    prototypes.save(folder / "prototypes.safetensors")
    return {
        **{name: (functions[name], arguments[name]) for name in arguments},
        "numbers of densify": (
            partial(_preparation, channels=3),
            {"mean": 0.0, "std": 1.0, "channel_order": "RGB"},
        ),
        "Prototypes.add": (
            prototypes.add,
            {"name": "a", "image": image, "box": (2, 3, 20, 30), "flip": True, "value_range": None},
        ),
        "Prototypes.remove": (prototypes.remove, {"name": "b"}),
        "Prototypes.direction": (prototypes.direction, {"image": image, "box": None, "flip": True}),
        "Prototypes.classify": (prototypes.classify, {"image": image, **dense}),
        "Prototypes.score_maps": (prototypes.score_maps, {"image": image, **dense}),
        "Prototypes.save": (prototypes.save, {"path": folder / "prototypes.safetensors"}),
        "Prototypes.load": (overfeat.Prototypes.load, {"path": folder / "prototypes.safetensors", "net": own}),
        "a net": (net, {"images": image[None].float(), "stride": "coarse"}),
        "features": (net.features, {"images": image[None].float()}),
        "layer_output": (net.layer_output, {"images": image[None].float(), "number": 3}),
        "write_score_maps": (
            write_score_maps,
            {"net": net, "image": large, "path": folder / "a.zarr", "scales": [1.0], **written},
        ),
        "write_layer_output": (
            write_layer_output,
            {"net": net, "image": large, "path": folder / "b.zarr", "layer": 5, **written},
        ),
        "a converted net": (own, {"images": image, "stride": "coarse"}),
        "layer_output of a converted net": (own.layer_output, {"images": image, "name": "0", "stride": "coarse"}),
    }


def problem_of(call):
    """What is wrong with the error of a call, or None."""
    try:
        call()
    except (InputError, TypeError, ValueError) as error:
        trace = error.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        path = trace.tb_frame.f_code.co_filename
        line = linecache.getline(path, trace.tb_lineno).strip()
        in_words = isinstance(error, InputError) or ("overfeat" in path and line.startswith("raise"))
        return None if in_words and "\n" not in str(error) and str(error) else f"{error!r} from {path}: {line}"
    except Exception as error:
        return repr(error)
    return None


def test_every_argument_with_values_of_other_types(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one of the values is the name of a file
    assert {name.split()[0] for name in calls} >= set(overfeat.__all__) - NOT_CALLED
    problems = []
    for name, (function, arguments) in calls.items():
        for argument in arguments:
            for value in [*VALUES, (i for i in range(2))]:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    problem = problem_of(partial(function, **{**arguments, argument: value}))
                if problem:
                    problems.append(f"{name}({argument}={str(value)[:40]}): {problem}")
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems)
