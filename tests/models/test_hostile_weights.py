"""Files of weights with metadata that no program writes: one InputError, before memory is filled."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from weight_files import change_metadata, metadata_of

import overfeat
from overfeat.errors import InputError
from overfeat.models.architecture import Architecture, Conv
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.metadata import MAX_TEXT
from overfeat.models.multibox import MultiBox

ARCHITECTURE = Architecture("tiny", (Conv(2, 3, stride=2, pad=1, pool=2), Conv(2, 3)), 2, (3,), 20)
HUGE = 10**400
CONV = {"channels": 2, "kernel": 3}


@pytest.fixture
def path(tmp_path):
    """A file of a net with a box regressor."""
    net = overfeat.build(ARCHITECTURE, 2)
    overfeat.save(net, tmp_path / "net.safetensors", regressor=BoxRegressor(ARCHITECTURE))
    return tmp_path / "net.safetensors"


def refused(path, load=overfeat.load):
    """The reason why the file is refused, on one line that names it."""
    with pytest.raises(InputError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 600
    assert ".cpp" not in message and "Error(s)" not in message
    return message


ENTRIES = [
    ("convs", [{**CONV, "pad": 0.5}], "pad is 0.5, no whole number from 0 to 10,000"),
    ("convs", [{**CONV, "pad": True}], "pad is True"),
    ("convs", [{**CONV, "pad": 10**9}], "pad is 1000000000"),
    ("convs", [{**CONV, "pad": 50}], "a window sees no cell before a layer"),
    ("convs", [{**CONV, "stride": 0}], "stride is 0"),
    ("convs", [{**CONV, "kernel": HUGE}], "a number of 401 digits"),
    ("convs", [{**CONV, "padding": 1}], "has an unknown 'padding'"),
    ("convs", [{"channels": 2}], "a convolution lacks kernel"),
    ("convs", [CONV] * 100_000, "has 100,000 items, more than 1,000"),
    ("convs", [{**CONV, "stride": 10_000, "pool": 10_000}] * 900, "a window sees no cell"),
    ("convs", [], "no feature layers"),
    ("convs", [CONV], "without|with unknown"),
    ("convs", "conv", "convs is 'conv', no list"),
    ("hidden", [3] * 100_000, "has 100,000 items, more than 1,000"),
    ("hidden", [-3], "hidden is -3"),
    ("hidden", [1_000_000] * 99, "without fc_layers"),
    ("hidden", [4], "fc_layers.0.bias is .3., not .4.|fc_layers.0.weight is"),
    ("kernel", 10_000, "is .*, not .*10000, 10000"),
    ("kernel", None, "kernel is None"),
    ("scales", [[40, 40]], "scales are not six sizes of 15 px"),
    ("scales", [], "scales are not six"),
    ("scales", "none", "scales is 'none'"),
    ("scales", [["40", "40"]] * 6, "scales is '40'"),
    ("scales", [[40]] * 6, "not of two numbers"),
    ("scales", [[10, 10]] * 6, "scales are not six sizes of 15 px"),
    ("mean", None, "mean is None"),
    ("mean", [1.0, 2.0], "mean and std are not of the image's channels"),
    ("mean", HUGE, "a number of 401 digits"),
    ("mean", float("inf"), "mean is inf"),
    ("std", [], "mean and std are not"),
    ("std", 0, "std is 0, no number"),
    ("std", "61", "std is '61'"),
    ("init_std", -1, "init_std is -1"),
    ("short_side", 0.5, "short_side is 0.5"),
    ("name", ["tiny"], "name is"),
    ("name", "n" * 201, "no line of 200 characters or fewer"),
    ("name", "\x1b[2J", "no line of 200 characters"),
    ("backbone", {}, "a backbone lacks in_channels"),
    ("backbone_pool", "2", "backbone_pool is '2'"),
    ("more", 1, "the architecture has an unknown 'more'"),
]


@pytest.mark.parametrize(("entry", "value", "words"), ENTRIES, ids=lambda value: str(value)[:30])
def test_architectures(path, entry, value, words):
    data = json.loads(metadata_of(path)["architecture"]) | {entry: value}
    change_metadata(path, architecture=json.dumps(data))
    assert "do not fit together" in refused(path)
    with pytest.raises(InputError, match=words):
        overfeat.load(path)
    if not {"fc_layers", "without"} & set(re.split(r"[ .|]", words)):  # others are of the classifier alone
        refused(path, overfeat.load_regressor)


TEXTS = [
    ("architecture", "[" * 100_000, "nested too deeply"),
    ("architecture", '{"name": ' * 100_000, "nested too deeply"),
    ("architecture", '{"name": "a", "name": "b"}', "'name' is given twice"),
    ("architecture", '"' + "x" * MAX_TEXT + '"', "8,388,610 characters of metadata"),
    ("architecture", '{"mean": NaN}', "NaN in the metadata"),
    ("architecture", "\x1b[31m", "Expecting value"),
    ("class_names", '["a", 5]', "a class name is 5"),
    ("class_names", json.dumps(["a", "n" * 20_000]), "no text of 10,000"),
    ("class_names", json.dumps(["a"] * 1_000_001), "1,000,001 items"),
    ("class_names", json.dumps(["a"] * 1_000_000), "fc_layers.1.*is .*, not .1000000"),
    ("class_names", None, "class_names is missing"),
    ("flip", "1", "flip is 1, neither true nor false"),
    ("background", '"yes"', "background is 'yes'"),
    ("context", "null", "context is None"),
    ("context", "true", "without context.weight"),
    ("scale_factors", f"[{HUGE}]", "a number of 401 digits"),
    ("scale_factors", "[1e999]", "scale_factors is inf"),
    ("scale_factors", "[-Infinity]", "scale_factors is -inf"),
    ("scale_factors", "[0]", "scale_factors is 0"),
    ("scale_factors", "[]", "scale_factors are none"),
    ("scale_factors", '["1"]', "scale_factors is '1'"),
    ("scale_factors", "5", "scale_factors is 5, no list"),
    ("scale_factors", json.dumps([1] * 101), "101 items, more than 100"),
    ("reach", "true", "reach is True"),
    ("reach", "1.01", "reach is 1.01, no number from 0 to 1"),
    ("thresholds", '{"min_score": true}', "min_score is True"),
    ("thresholds", json.dumps({"postprocess": "x" * 5000}), "postprocess must be one of"),
    ("thresholds", json.dumps({"min_score": [0.5] * 100_000}), "one for each class"),
]


@pytest.mark.parametrize(("entry", "text", "words"), TEXTS, ids=lambda value: str(value)[:30])
def test_other_entries(path, entry, text, words):
    change_metadata(path, **{entry: text})
    refused(path)
    with pytest.raises(InputError, match=words):
        overfeat.load(path)


@pytest.mark.parametrize(
    ("dtype", "words"), [(torch.int8, "torch.int8, not of"), (torch.bool, "bool"), (torch.complex64, "complex64")]
)
def test_weights_of_another_kind(path, dtype, words):
    metadata = metadata_of(path)
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, metadata)
    assert words in refused(path) and words in refused(path, overfeat.load_regressor)


def test_messages_escape_names(path):
    metadata, tensors = metadata_of(path), load_file(path)
    save_file({**tensors, "conv_layers.0.\x1b[2J\nweight": torch.ones(1)}, path, metadata)
    assert r"with unknown conv_layers.0.\x1b[2J\nweight" in refused(path)


# Backbones and DeepMultiBox


RELU = {"name": "relu", "inputs": [1], "weights": [], "args": []}
CONV2D = {"name": "conv2d", "inputs": [0], "weights": [0, 1], "args": [[1, 1], [1, 1], [1, 1], 1]}
BACKBONE = {"in_channels": 3, "ops": [CONV2D, RELU], "weights": [[4, 3, 3, 3], [4]]}
GRAPHS = {
    "good": (BACKBONE, ""),
    "arguments that the operator lacks": ({**BACKBONE, "ops": [CONV2D, RELU, {**RELU, "args": [1]}]}, "torch has no"),
    "channels that differ": ({**BACKBONE, "weights": [[4, 5, 3, 3], [4]]}, "torch has no"),
    "a bias of another size": ({**BACKBONE, "weights": [[4, 3, 3, 3], [7]]}, "operation 1"),
    "huge weights": ({**BACKBONE, "weights": [[10**6] * 8, [4]]}, "operation 1"),
    "large weights": ({**BACKBONE, "weights": [[10**6, 3, 10**6, 10**6], [10**6]]}, "torch has no|cells|maps"),
    "20,000 operations": ({**BACKBONE, "ops": [CONV2D, *[RELU] * 20_000]}, "20,001 items"),
    "9,000 operations that stride": (
        {**BACKBONE, "ops": [{**CONV2D, "inputs": [i], "args": [[9999, 9999], [0, 0], [9999, 9999], 1]}
                             for i in range(9000)]},
        "cells of a map are more than 1,000,000 pixels apart",
    ),
    "an input 10,000 times": ({**BACKBONE, "ops": [CONV2D, {**RELU, "name": "cat", "inputs": [1] * 10_001}]}, "inputs"),
    "a stride of 1e9": ({**BACKBONE, "ops": [{**CONV2D, "args": [[10**9] * 2, [1, 1], [1, 1], 1]}]}, "operation 1"),
    "groups of 0.5": ({**BACKBONE, "ops": [{**CONV2D, "args": [[1, 1], [1, 1], [1, 1], 0.5]}]}, "operation 1"),
}  # fmt: skip


@pytest.mark.parametrize(("graph", "words"), GRAPHS.values(), ids=GRAPHS)
def test_backbones(path, graph, words):
    data = json.loads(metadata_of(path)["architecture"]) | {"convs": [], "backbone": graph}
    change_metadata(path, architecture=json.dumps(data))
    refused(path)  # the weights are those of another net
    with pytest.raises(InputError, match=words or "without backbone.weights.0"):
        overfeat.load(path)


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("num_boxes", 10**9, "num_boxes is 1000000000, no whole number from 1 to 100,000"),
        ("num_boxes", 100_000, "net.fc_layers.1.*, not .500000"),
        ("num_boxes", True, "num_boxes is True"),
        ("class_names", ["a"] * 100_000, "more than 33,333"),
        ("class_names", [5], "a class name is 5"),
        ("priors", "x", "priors is 'x', neither true nor false"),
        ("priors", True, "without priors"),
        ("flip", None, "flip is None"),
        ("more", None, "the DeepMultiBox has an unknown 'more'"),
    ],
)
def test_multibox(tmp_path, entry, value, words):
    path = tmp_path / "boxes.safetensors"
    overfeat.save_multibox(MultiBox(ARCHITECTURE, 3), path)
    change_metadata(path, multibox=json.dumps(json.loads(metadata_of(path)["multibox"]) | {entry: value}))
    refused(path, overfeat.load_multibox)
    with pytest.raises(InputError, match=words):
        overfeat.load_multibox(path)


# Saving


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn, "float16"])
def test_dtypes_that_would_lose_the_weights(tmp_path, dtype):
    net, model = overfeat.build(ARCHITECTURE, 2), MultiBox(ARCHITECTURE, 3)
    for save, module in ((overfeat.save, net), (overfeat.save_multibox, model)):
        with pytest.raises(InputError, match=f"dtype must be None or one of torch.float16, .*, not {dtype}"):
            save(module, tmp_path / "net.safetensors", dtype=dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("class_names", ["a"], r"fc_layers.1.weight is \[2, 3, 1, 1\], not \[1, 3, 1, 1\]"),
        ("class_names", ["a", "n" * 20_000], "no text of 10,000 characters or fewer"),
        ("scale_factors", (1.0, float("nan")), "NaN in the metadata"),
        ("scale_factors", 1.0, "not iterable"),
        ("reach", 2, "reach is 2.0, no number from 0 to 1"),
        ("reach", None, "float"),
        ("thresholds", {"min_score": 0.5}, "to_json"),
    ],
)
def test_attributes_that_could_not_be_read(tmp_path, attribute, value, words):
    net = overfeat.build(ARCHITECTURE, 2)
    setattr(net, attribute, value)
    with pytest.raises(InputError, match=words):
        overfeat.save(net, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_attributes_of_numpy_are_written(tmp_path):
    import numpy as np

    net = overfeat.build(ARCHITECTURE, 2)
    net.class_names, net.scale_factors = np.array(["a", "b"]), np.array([0.5, 1], np.float32)
    net.flip, net.reach = np.bool_(False), np.float64(0.25)
    overfeat.save(net, tmp_path / "net.safetensors")
    loaded = overfeat.load(tmp_path / "net.safetensors")
    assert (loaded.class_names, loaded.scale_factors) == (["a", "b"], (0.5, 1.0))
    assert (loaded.flip, loaded.reach) == (False, 0.25)
