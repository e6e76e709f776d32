"""ONNX Runtime and OpenVINO in the suite: the library's scores at any size; skipped with the reason."""

import gc
import shutil
import sys
from types import ModuleType

import pytest
import torch

from bench.detect import equal, implementations
from bench.suite import runtimes
from bench.suite.machine import Machine
from bench.suite.names import FROZEN, ONNXRUNTIME, OPENVINO
from bench.suite.runner import Run
from bench.suite.runtimes import EXPORTER, IMAGE_SIZE, Exported
from bench.tolerance import assert_matches
from overfeat.data.images import read_image
from overfeat.detection.predict import detect
from overfeat.files import ASSETS
from overfeat.models.checkpoint import load, load_regressor
from overfeat.models.overfeat import ContextFeatures
from overfeat.models.plain import PlainHead, PlainNet

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def machine():
    return Machine(Run(None, CPU, None, "", peaks=False))


def need(*names):
    for name in (EXPORTER, *names):
        pytest.importorskip(name, reason="it is in the extra bench alone")


def test_frozen_weights_are_constants(machine):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler")
    layer, images = torch.nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)
    frozen = machine.frozen(lambda net, images: net(images), lambda run: run(layer, images))
    expected = layer(images)
    assert_matches(frozen[FROZEN].run(), expected, torch.float32)
    layer.weight.add_(1)
    assert_matches(frozen[FROZEN].run(), expected, torch.float32)
    assert not torch.allclose(layer(images), expected)


def images_of(net, *more):
    sides = [net.architecture.window + net.architecture.fine_stride * side for side in more]
    return torch.randint(0, 256, (1, 3, *sides), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def reasons(machine):
    return {entry["what"]: entry["why"] for entry in machine.run.results["skipped"]}


def test_runtimes_give_the_scores_of_the_net_at_any_size(make_net):
    need(ONNXRUNTIME, OPENVINO)
    net = make_net("thin accurate")
    exported = Exported(lambda: PlainNet(net), lambda: [images_of(net, 3, 5)], [IMAGE_SIZE])
    for name in (ONNXRUNTIME, OPENVINO):
        for sides in ((3, 5), (6, 0)):
            images = images_of(net, *sides)
            assert_matches(exported.run(name, torch.float32, images), net(images, "fine"), torch.float32)
    path = exported.path
    assert path.is_file()
    del exported
    gc.collect()
    assert not path.parent.exists(), "its file is deleted with the module"


def test_runtimes_take_maps_with_context(make_net):
    need(ONNXRUNTIME)
    net = make_net("small")
    net.add_context()
    torch.nn.init.normal_(net.context.weight, 0.0, 0.05)

    def inputs(rows, columns):
        maps, seen = net.features(images_of(net, rows, columns)), net.features(images_of(net, 1, 2))
        return maps, seen, torch.randint(0, 6, ((rows + 1) * (columns + 1),), generator=torch.Generator())

    exported = Exported(lambda: PlainHead(net), lambda: inputs(3, 5), [IMAGE_SIZE, IMAGE_SIZE, (0,)])
    maps, seen, positions = inputs(7, 4)
    expected, _ = net.forward_head_flat([maps], "fine", [ContextFeatures(seen, positions)])
    logits = exported.run(ONNXRUNTIME, torch.float32, maps, seen, positions)
    assert_matches(logits.permute(0, 2, 3, 1).flatten(0, 2), expected, torch.float32)


def install(monkeypatch, *names):
    """Of the packages that the runtimes need, these alone can be imported."""
    for name in (EXPORTER, ONNXRUNTIME, OPENVINO):
        monkeypatch.setitem(sys.modules, name, ModuleType(name) if name in names else None)


def test_runtimes_that_are_not_installed_are_skipped_with_the_reason(machine, monkeypatch):
    exported = machine.exported("small", 10)
    install(monkeypatch, EXPORTER, OPENVINO)
    implementations = machine.runtimes(exported, lambda run: run(), torch.float32, "-exact")
    assert list(implementations) == ["openvino-exact"] and implementations["openvino-exact"].baseline
    assert ONNXRUNTIME in reasons(machine)[ONNXRUNTIME] and "in the extra bench" in reasons(machine)[ONNXRUNTIME]
    install(monkeypatch, ONNXRUNTIME, OPENVINO)
    other = Machine(Run(None, CPU, None, "", peaks=False))
    assert not other.runtimes(exported, lambda run: run())
    assert EXPORTER in reasons(other)["onnxruntime, openvino"]


def test_bfloat16_where_the_processor_has_it(machine, monkeypatch):
    install(monkeypatch, EXPORTER, ONNXRUNTIME, OPENVINO)
    exported = machine.exported("small", 10)
    for answer, expected in ((False, []), (True, [OPENVINO])):
        monkeypatch.setattr("bench.suite.machine.has_bfloat16", lambda answer=answer: answer)
        assert list(Machine(machine.run).runtimes(exported, lambda run: run(), torch.bfloat16)) == expected
    assert set(reasons(machine)) == {"onnxruntime, bfloat16", "openvino, bfloat16"}


@pytest.fixture
def detector():
    return load(ASSETS / "detector.safetensors"), load_regressor(ASSETS / "detector.safetensors")


def in_torch(exported, runtime, dtype, *inputs):
    """What a runtime computes, by the module itself, which its example must fit too."""
    exported.module()(*map(runtimes._as_input, exported.inputs()))
    return exported.module()(*map(runtimes._as_input, inputs)).contiguous()


def test_detection_with_the_net_in_another_runtime(detector, monkeypatch):
    monkeypatch.setattr(Exported, "run", in_torch)
    image = read_image(ASSETS / "scenes" / "00012.png")[:, :150, :200]
    expected = detect(*detector, image)
    assert len(expected) and equal(detect(*runtimes.detector_in(ONNXRUNTIME, *detector), image), expected)
    low = {"scales": [0.4, 0.9], "score_threshold": 0.0, "min_score": 0.0}  # the first has no context
    boxes, expected = detect(*runtimes.detector_in(OPENVINO, *detector), image, **low), detect(*detector, image, **low)
    assert len(boxes) == len(expected) > 1
    assert not equal(boxes, expected[:-1]) and not equal(boxes, detect(*detector, image.flip(1), **low))


def test_implementations_of_detection_that_are_installed(detector, monkeypatch, capsys):
    monkeypatch.setattr("bench.detect.find_spec", lambda name: None if name == OPENVINO else object())
    assert list(implementations(*detector)) == ["eager", "fast", ONNXRUNTIME]
    assert "skipped: openvino: openvino is not installed" in capsys.readouterr().out


def test_arithmetic_of_a_session():
    need(OPENVINO)
    if not runtimes.has_bfloat16():
        pytest.skip("OpenVINO has no bfloat16 on this processor")
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 8, 3)
    exported = Exported(lambda: layer, lambda: [torch.rand(1, 3, 8, 8)], [IMAGE_SIZE])
    image = torch.rand(1, 3, 9, 7)
    assert_matches(exported.run(OPENVINO, torch.bfloat16, image), layer(image), torch.bfloat16)
    assert not torch.allclose(exported.run(OPENVINO, torch.bfloat16, image), layer(image), rtol=1e-5)
