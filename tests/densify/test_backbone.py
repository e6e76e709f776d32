"""Feature maps of a converted module as the feature layers of nets: against the module, in tiles, trained, saved."""

import pytest
import torch
from torch import nn
from weight_files import change_metadata

import overfeat
from overfeat.classification.config import ClassifierConfig
from overfeat.data.random_tiles import collate_list
from overfeat.data.readers.coco import read_coco
from overfeat.dense.config import DenseConfig
from overfeat.dense.grid import grids
from overfeat.dense.tiling import plan_tiles
from overfeat.densify.backbone import Backbone
from overfeat.densify.initial_net import new_net
from overfeat.detection.build import build_detector
from overfeat.detection.config import DetectorConfig
from overfeat.detection.train import DetectorTask
from overfeat.errors import ArgumentError, InputError
from overfeat.models import checkpoint
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat
from overfeat.models.squeezenet import MEAN, pretrained
from overfeat.multibox.build import build_multibox
from overfeat.multibox.config import MultiBoxConfig
from overfeat.regions import collect_timings


class Branches(nn.Module):
    """Padding, batch normalisation, an activation in place, a sum, a concatenation and a pool that rounds up."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def block(self, x):
        x = self.pool(self.stem(x))
        y = torch.cat([self.left(x).relu(), self.right(x).relu()], dim=1)
        y += x
        return self.norm(y)

    def forward(self, x):
        return self.head(self.block(x).mean(dim=(2, 3)))


@pytest.fixture
def module():
    torch.manual_seed(0)
    net = Branches().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean), nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    return net


@pytest.fixture
def net(module):
    return overfeat.densify(module, 33, mean=(100, 110, 120), std=(50, 60, 70), name="branches", check=False)


@pytest.fixture
def on_backbone(net):
    """A net of two classes on the maps of `norm`."""
    backbone = Backbone(net, node="norm", window=20, hidden=(16,))
    torch.manual_seed(1)
    return OverFeat(backbone.architecture, 2, backbone=backbone).eval()


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_maps_are_the_module_s_on_whole_images(module, order):
    numbers = {"mean": (100, 110, 120), "std": (50, 60, 70)}
    net = overfeat.densify(module, 33, channel_order=order, name="branches", check=False, **numbers)
    backbone = Backbone(net, node="norm", window=20)
    own = OverFeat(backbone.architecture, 2, backbone=backbone).double()
    images = torch.randint(0, 256, (2, 3, 53, 46), dtype=torch.uint8)
    x = images.double().flip(1) if order == "BGR" else images.double()
    mean, std = (torch.tensor(numbers[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = module.double().block((x - mean) / std) * backbone.graph.ops[-1].args[0]
        maps = own.features(images)
    torch.testing.assert_close(maps, expected[:, :, : maps.shape[2], : maps.shape[3]], rtol=0, atol=1e-5)
    assert 0.2 < maps.square().mean().sqrt() < 5  # whatever the module's scale


def test_a_grey_network_trains_on_rgb_images():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    backbone = Backbone(overfeat.densify(module, 8, std=255, check=False), node="1", window=10)
    net = OverFeat(backbone.architecture, 2, backbone=backbone)
    assert net.in_channels == 1
    grey = torch.randint(0, 256, (1, 1, 20, 20), dtype=torch.uint8)
    torch.testing.assert_close(net.features(grey.expand(1, 3, 20, 20)), net.features(grey))


def test_the_window_is_the_nearest_that_the_maps_have(net):
    windows = {size: Backbone(net, node="norm", window=size).architecture for size in (4, 8, 20, 30)}
    actual = {size: (a.window, a.pool, a.kernel) for size, a in windows.items()}
    assert actual == {4: (5, 1, 1), 8: (9, 1, 2), 20: (17, 2, 2), 30: (33, 2, 4)}
    assert windows[20].geometry.stride("fine") == 4 and windows[20].geometry.stride("coarse") == 8


def test_what_cannot_be_a_backbone(net):
    with pytest.raises(InputError, match="no submodule or node 'nowhere'"):
        Backbone(net, node="nowhere", window=20)
    with pytest.raises(InputError, match=r"the layers up to head hold mean, which .* choose an earlier node"):
        Backbone(net, node="head", window=20)
    with pytest.raises(ArgumentError, match="net must be a converted module, see densify; not Sequential"):
        Backbone(nn.Sequential(nn.Conv2d(3, 4, 3)), node="0", window=20)
    wide = nn.Sequential(nn.Conv2d(3, 4, (3, 1)), nn.Flatten(), nn.Linear(192, 2))
    with pytest.raises(InputError, match=r"the layers up to 0 have no square windows: .* differ in stride or size"):
        Backbone(overfeat.densify(wide, 8, check=False), node="0", window=20)
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(InputError, match=r"the layers up to 2 hold (view|reshape|flatten) at 1, which"):
        Backbone(overfeat.densify(flat, 8, check=False), node="2", window=20)
    with pytest.raises(ArgumentError, match="window must be at least 5 px at norm, not 2"):
        Backbone(net, node="norm", window=2)
    with pytest.raises(ArgumentError, match=r"window must be at most [0-9]+ px at norm, not 50000"):
        Backbone(net, node="norm", window=50000)
    other = Backbone(net, node="pool", window=20)
    with pytest.raises(InputError, match="the backbone is not that of the architecture"):
        OverFeat(Backbone(net, node="norm", window=20).architecture, 2, backbone=other)


@pytest.mark.parametrize("context", [False, True])
def test_tiles_give_the_scores_of_whole_images(on_backbone, context):
    net = on_backbone.double()
    if context:
        net.add_context()
        nn.init.normal_(net.context.weight)
    images = torch.rand(2, 3, 75, 62, dtype=torch.float64) * 255
    whole = overfeat.score_maps(net, images, scales=[1.0, 0.8], flip=True)
    own_grids = grids(net, (75, 62), DenseConfig([1.0, 0.8], True))
    limit = 1 << 17
    assert len(list(plan_tiles(net, 1, own_grids[0], 0, limit))) > 4
    tiled = overfeat.score_maps(net, images, scales=[1.0, 0.8], flip=True, memory_limit=limit)
    for a, b in zip(whole, tiled, strict=True):
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-6)
        assert a.scores.std() > 0.01


def test_work_is_counted(on_backbone):
    macs, positions = on_backbone.region_macs((47, 43), "fine")
    assert positions == 8 * 7
    assert macs["conv 1"] == 24 * 22 * 8 * 75 and macs["first full layer"] == positions * 8 * 4 * 16
    with collect_timings(torch.device("cpu")) as timer:
        overfeat.score_maps(on_backbone, torch.zeros(3, 47, 43), scales=[1.0], flip=False)
    assert macs.keys() <= timer.seconds().keys()


def test_layers_by_number(on_backbone):
    images = torch.rand(1, 3, 40, 40) * 255
    maps = on_backbone.features(images)
    kinds = [layer.kind for layer in on_backbone.architecture.layers]
    assert kinds == ["normalise", "backbone", "pool", "full", "threshold", "full"]
    assert torch.equal(on_backbone.layer_output(images, 1), maps)
    assert torch.equal(on_backbone.layer_output(images, 2), nn.functional.max_pool2d(maps, 2))
    assert on_backbone.layer_output(images, 4).min() == 0


def test_files_load_without_the_module(on_backbone, tmp_path):
    net = on_backbone
    net.class_names, net.background, net.scale_factors = ["cell", "background"], True, (0.5, 1.0)
    regressor = BoxRegressor(net.architecture).eval()
    overfeat.save(net, tmp_path / "net.safetensors", regressor=regressor)
    loaded, boxes = overfeat.load(tmp_path / "net.safetensors"), overfeat.load_regressor(tmp_path / "net.safetensors")
    assert loaded.architecture == net.architecture
    image = torch.randint(0, 256, (3, 60, 50), dtype=torch.uint8)
    (expected,), (actual,) = (overfeat.score_maps(n, image, scales=[1.0], flip=False) for n in (net, loaded))
    assert torch.equal(expected.scores, actual.scores)
    pairs = (net, regressor), (loaded, boxes)
    detections = [overfeat.detect(n, r, image, postprocess="nms", score_threshold=0.01, min_score=0) for n, r in pairs]
    assert len(detections[0]) and torch.equal(detections[0].boxes, detections[1].boxes)
    model = MultiBox(net.architecture.with_input_size(40), 3)
    overfeat.save_multibox(model, tmp_path / "boxes.safetensors")
    again = overfeat.load_multibox(tmp_path / "boxes.safetensors")
    images = torch.rand(2, 3, model.image_size, model.image_size) * 255
    assert torch.equal(model.eval()(images)[0], again(images)[0])


def test_a_broken_file_is_refused(on_backbone, tmp_path):
    path = tmp_path / "net.safetensors"
    text = on_backbone.architecture.to_json()
    for old, new in (('"conv2d"', '"save"'), ('"inputs": [0]', '"inputs": [9]'), ("[8, 3, 5, 5]", "[8, 3, 5, 4]")):
        assert old in text
        checkpoint.save(on_backbone, path)
        change_metadata(path, architecture=text.replace(old, new))
        with pytest.raises(InputError, match="do not fit together"):
            checkpoint.load(path)


# Nets on the SqueezeNet that ships


def test_features_of_squeezenet():
    net = new_net(DetectorConfig(net="squeezenet"), "small", 3, ("fire5", 55))
    assert net.architecture.window == 55 and net.geometry.fine_stride == 8
    images = torch.randint(0, 256, (1, 3, 90, 80), dtype=torch.uint8)
    module = pretrained()
    x = images.flip(1) - torch.tensor(MEAN).view(3, 1, 1)
    with torch.no_grad():
        x = module.pool3(module.fire3(module.fire2(module.pool1(module.conv1(x).relu()))))
        expected = module.fire5(module.fire4(x))
        maps = net.features(images)
    factor = net.architecture.backbone.ops[-1].args[0]
    torch.testing.assert_close(maps, expected * factor, rtol=1e-4, atol=1e-4)


def test_options_of_the_backbone(multi_object):
    with pytest.raises(InputError, match="no net is called 'squeeze'; there are fast, accurate, small, squeezenet"):
        new_net(DetectorConfig(net="squeeze"), "small", 3, ("fire5", 55))
    with pytest.raises(InputError, match="no net is called 'squeeze'"):
        build_multibox(read_coco(multi_object / "train.json"), MultiBoxConfig(net="squeeze"))
    refused = [(ClassifierConfig, {"node": "fire3"}), (MultiBoxConfig, {"window": 80})]
    refused += [(DetectorConfig, {"node": "fire3"} | other) for other in ({"net": "small"}, {"from_scratch": True})]
    for config, values in refused:
        with pytest.raises(ArgumentError, match=r"net must be squeezenet where (node|window) is given"):
            config(**values)
    with pytest.raises(ArgumentError, match="from_scratch does not go with net squeezenet"):
        DetectorConfig(net="squeezenet", from_scratch=True)
    net = new_net(ClassifierConfig(net="squeezenet", node="fire3", window=50), "fast", 3, ("fire9", 143))
    assert net.architecture.name == "SqueezeNet fire3" and net.geometry.fine_stride == 4
    with pytest.raises(ArgumentError, match="freeze_features needs the weights"):
        new_net(ClassifierConfig(freeze_features=True), "fast", 3, ("fire9", 143))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_detector_learns_on_squeezenet(multi_object, frozen):
    data = read_coco(multi_object / "train.json")
    options = DetectorConfig(net="squeezenet", freeze_features=frozen, stride="coarse", flip=False)
    torch.manual_seed(0)
    net, regressor, init = build_detector(data, options)
    assert init is None and net.background
    before = [weight.clone() for weight in net.backbone.parameters()]
    task = DetectorTask(net, regressor, data, options=options)
    items = collate_list([task.dataset[(0, number)] for number in range(3)])
    weights = [weight for weight in task.module.parameters() if weight.requires_grad]
    optimizer, losses = torch.optim.Adam(weights, 1e-3), []
    for _ in range(6):
        torch.manual_seed(0)
        loss, _ = task.loss(task.module, items)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    changed = [not torch.equal(a, b) for a, b in zip(before, net.backbone.parameters(), strict=True)]
    assert all(changed) if not frozen else not any(changed)
