"""Compiled, parallel and half-precision nets, other default dtypes, and what is no net."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

import overfeat
from overfeat.errors import InputError
from overfeat.files import ASSETS
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.multibox import MultiBox
from overfeat.models.wrappers import as_nets, unwrap

WEIGHTS = ASSETS / "small.safetensors"


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 60, 70), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def pair(make_net):
    net = make_net("small")
    net.background = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return net, BoxRegressor(net.architecture).eval()


def values(detections):
    return torch.cat([getattr(detections, name).double().flatten() for name in asdict(detections)])


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: torch.compile(nn.DataParallel(m))])
def test_wrapped_nets_give_the_same_results(pair, image, wrap, tmp_path):
    net, regressor = pair
    model = MultiBox(net.architecture, 5).eval()
    wrapped, of_boxes = wrap(net), wrap(regressor)
    assert unwrap(wrapped) is net
    options = {"scales": [1.0], "min_score": 0.0}
    expected = values(overfeat.detect(net, regressor, image, **options))
    assert len(expected) > 8
    assert torch.equal(values(overfeat.detect(wrapped, of_boxes, image, **options)), expected)
    for name in ("classify", "centre_crop", "ten_views"):
        function = getattr(overfeat, name)
        assert torch.equal(function([wrapped, net], image), function(net, image)), name
    assert torch.equal(overfeat.score_maps(wrapped, image)[0].scores, overfeat.score_maps(net, image)[0].scores)
    assert torch.equal(values(overfeat.propose(wrap(model), image)), values(overfeat.propose(model, image)))
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    assert overfeat.densify(wrap(module), 8, check=False).num_classes == 2
    overfeat.save(wrapped, tmp_path / "net.safetensors", regressor=of_boxes)
    saved = overfeat.load(tmp_path / "net.safetensors"), overfeat.load_regressor(tmp_path / "net.safetensors")
    assert torch.equal(values(overfeat.detect(*saved, image, **options)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("changed", ["net", "regressor", "both"])
def test_a_regressor_of_another_dtype(pair, image, dtype, changed):
    """The boxes are computed in the regressor's dtype, whatever the net's is."""
    net, regressor = pair
    options = {"scales": [1.0], "top_k": None, "relative_threshold": 0.0}
    expected = overfeat.candidates(net, regressor, image, **options)
    net = net.to(dtype) if changed != "regressor" else net
    regressor = regressor.to(dtype) if changed != "net" else regressor
    actual = overfeat.candidates(net, regressor, image, **options)
    assert actual.boxes.dtype == actual.scores.dtype == torch.float32
    torch.testing.assert_close(actual.scores, expected.scores, atol=0.1, rtol=0.1)
    torch.testing.assert_close(actual.boxes, expected.boxes, atol=3, rtol=0.1)
    assert overfeat.detect(net, regressor, image, scales=[1.0], min_score=0.0).boxes.dtype == torch.float32


def results():
    """Of files, nets and images that are made here."""
    net, image = overfeat.load(WEIGHTS), torch.arange(3 * 50 * 60).view(3, 50, 60).remainder(251).to(torch.uint8)
    regressor, net.background = BoxRegressor(net.architecture).float(), True
    for parameter in regressor.parameters():
        nn.init.constant_(parameter, 0.003)
    last_bias = [*regressor.parameters()][-1].data
    last_bias.copy_(torch.tensor([0.2, 0.2, 0.8, 0.8], dtype=torch.float32))  # boxes within the image
    boxes = torch.tensor([[1.0, 2, 50, 60], [2, 2, 50, 50]], dtype=torch.float32)
    yield overfeat.classify(net, image)
    yield from (score_map.scores for score_map in overfeat.score_maps(net, image.float(), flip=True))
    yield overfeat.classify(net, image[:, :40, :40], value_range=(0, 100))
    yield overfeat.ten_views(net, image)
    yield overfeat.classify_boxes(net, image, boxes)
    for postprocess in ("vote", "merge", "nms"):
        yield overfeat.detect(net, regressor, image, postprocess=postprocess, min_score=0, score_threshold=0).scores
    yield overfeat.localize(net, regressor, image).boxes
    yield overfeat.iou(boxes, boxes)
    yield overfeat.merge_boxes(boxes, boxes[:, 0] / 2, torch.tensor([0, 0]), match_threshold=0.5).boxes
    yield overfeat.classify(overfeat.squeezenet(), image, scales=[(227, 227)], flip=False)


def test_results_do_not_depend_on_the_default_dtype():
    expected = list(results())
    assert all(len(result) for result in expected)
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            actual = list(results())
        finally:
            torch.set_default_dtype(torch.float32)
        for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert one.dtype == other.dtype and torch.equal(one, other), (dtype, number)


def test_what_is_no_net_is_refused_in_words(pair, image):
    net, regressor = pair
    module, model = nn.Conv2d(3, 4, 3), MultiBox(net.architecture, 5)
    a_net = "net must be a net of overfeat.build, load or densify, not "
    calls = {
        lambda: overfeat.detect(regressor, net, image): rf"^{a_net}a box regressor; are the arguments in another order",
        lambda: overfeat.detect(net, image, regressor): "^regressor must be a box regressor of .*, not Tensor$",
        lambda: overfeat.localize(net, module, image): "^regressor must be .*, not the module Conv2d",
        lambda: overfeat.classify("net.safetensors", image): rf"^{a_net}the path 'net.safetensors'; overfeat.load",
        lambda: overfeat.classify(module, image): rf"^{a_net}the module Conv2d; overfeat.densify\(module, window\)",
        lambda: overfeat.classify([net, image], image): rf"^{a_net}Tensor$",
        lambda: overfeat.score_maps(None, image): rf"^{a_net}NoneType$",
        lambda: overfeat.propose(net, image): "^model must be a model of load_multibox, not a net; are the",
        lambda: overfeat.classify_boxes(model, image, torch.zeros(0, 4)): rf"^{a_net}a DeepMultiBox model; are the",
        lambda: overfeat.classify_boxes(
            net, image, [[1, 2, 3, 4]]
        ): r"^boxes must be a tensor \[n, 4\], not list; torch",
        lambda: net("photo.jpg"): "^images must be a tensor, not str; .*as_tensor makes one of a path",
        lambda: overfeat.classify(net, {"image": image}): "^the image must be a path, .* or a list of them, not dict$",
        lambda: overfeat.score_maps(net, 3): "^the image must be a path, .* or a list of them, not int$",
    }
    for call, message in calls.items():
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(InputError, match="at least one net"):
        as_nets([])
