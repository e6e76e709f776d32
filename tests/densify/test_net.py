"""What a converted net is besides its scores: images, weights, modes, layers, boxes, costs."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from cropping import Apply, assert_like_crops, cropped, numbers, randomise
from torch import nn

import overfeat
from bench.tolerance import assert_matches
from overfeat.ops.boxes import decode, mirrored

WINDOW = (14, 12)


def make(channels=3, classes=4, dtype=torch.float64):
    """Ends in pool, flatten, Linear."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 6 * 5, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, classes)]
    return randomise(nn.Sequential(*layers)).to(dtype)


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# Images


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_mean_and_deviation_are_of_the_modules_channels(order):
    module, images = make(), pixels(2, 3, 21, 20)
    mean, std = (10.0, 120.0, 200.0), (50.0, 60.0, 75.0)
    net = overfeat.densify(module, WINDOW, mean=mean, std=torch.tensor(std), channel_order=order)
    prepared = images.flip(1) if order == "BGR" else images
    prepared = (prepared.double() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    for given in (images, images.float(), images.double()):
        assert_matches(net(given, 2), cropped(module, prepared, WINDOW, 2)[0], torch.float64)
    assert torch.equal(net(images[0], 2), net(images[:1], 2))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels):
    module, images = make(channels), pixels(1, channels, 21, 20)
    net = overfeat.densify(module, WINDOW, mean=range(channels), std=127.5)
    prepared = (images.double() - torch.arange(channels).view(-1, 1, 1)) / 127.5
    assert net.in_channels == channels
    assert_matches(net(images, 3), cropped(module, prepared, WINDOW, 3)[0], torch.float64)


def test_layouts_of_the_image():
    net = overfeat.densify(make(), WINDOW)
    images = numbers(2, 3, 23, 25)
    expected = net(images, 3)
    for laid_out in (
        images.to(memory_format=torch.channels_last),
        images.transpose(2, 3).contiguous().transpose(2, 3),
        torch.full((4, 5, 25, 27), float("nan")).double()[:2, 1:4, 1:24, 1:26].copy_(images),
        images[:1].expand(2, -1, -1, -1),
    ):
        whole = torch.equal(laid_out, images)
        assert_matches(net(laid_out, 3), expected if whole else expected[:1].expand_as(expected), torch.float64)


def test_strides():
    net = overfeat.densify(make(), WINDOW)
    images = numbers(1, 3, 40, 41)
    assert (net.geometry.stride("coarse"), net.geometry.stride("fine")) == (2, 1)
    assert torch.equal(net(images), net(images, 2)) and torch.equal(net(images, "fine"), net(images, 1))
    fine = net(images, 1)
    for stride in (2, 3, 5, 7, 26, 27, 1000):  # also beyond the window and the image
        assert_matches(net(images, stride), fine[:, :, ::stride, ::stride], torch.float64)


# Modes and weights


def test_the_modules_mode_stays():
    module = make()
    module.train()
    module[1].eval()
    modes = [m.training for m in module.modules()]
    requires = [p.requires_grad for p in module.parameters()]
    net = overfeat.densify(module, WINDOW)
    assert [m.training for m in module.modules()] == modes and not net.training
    images = numbers(1, 3, 20, 20)
    expected = net(images, 2)
    assert not expected.requires_grad
    module.train()
    net.train()
    assert torch.equal(net(images, 2), expected), "dropout or statistics of the batch"
    assert [p.requires_grad for p in module.parameters()] == requires


def test_a_module_that_fails_gets_its_mode_back():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Conv2d(4, 4, 30)).train()
    with pytest.raises(overfeat.InputError):
        overfeat.densify(module, WINDOW)
    assert all(m.training for m in module.modules())


def test_weights_are_the_modules():
    module, images = make(), numbers(1, 3, 21, 20)
    net = overfeat.densify(module, WINDOW)
    own = {p.data_ptr() for p in net.parameters()}
    assert {p.data_ptr() for p in module.parameters()} <= own
    net(images, 1)
    for change in (
        lambda: module[0].weight.mul_(-0.5),
        lambda: module[7].weight.add_(0.25),
        lambda: module[1].running_mean.fill_(0.3),
        lambda: module.load_state_dict({k: v + 0.1 for k, v in module.state_dict().items()}),
    ):
        with torch.no_grad():
            change()
        assert_like_crops(net, module, images, WINDOW, (1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_narrow_types(dtype):
    """The module's own dtype, and a net moved to it; against the module on the same weights in float64."""
    module = make(dtype=dtype)
    images = numbers(1, 3, 21, 20).to(dtype)
    expected = cropped(copy.deepcopy(module).double(), images.double(), WINDOW, 1)[0]
    net = overfeat.densify(module, WINDOW)
    moved = overfeat.densify(copy.deepcopy(module).double(), WINDOW).to(dtype)
    for one in (net, moved):
        assert one.dtype == dtype
        assert_matches(one(images, 1), expected, dtype)


@pytest.mark.parametrize("source", ["exported", "channels last"])
def test_other_forms_of_a_module(source):
    module, images = make(), numbers(2, 3, 21, 20)
    given = module.to(memory_format=torch.channels_last)
    if source == "exported":
        shapes = ({0: torch.export.Dim("n")},)
        given = torch.export.export(module, (images[..., :14, :12],), dynamic_shapes=shapes, strict=False)
    assert_like_crops(overfeat.densify(given, WINDOW), module, images, WINDOW, (1, 2, 3))


# Layers


@pytest.mark.parametrize("name", [str(i) for i in range(11)])
def test_outputs_of_layers(name):
    module, images = make(), numbers(2, 3, 20, 19)
    net = overfeat.densify(module, WINDOW)
    upto = module[: int(name) + 1]
    for stride in (1, 2, 3):
        assert_matches(net.layer_output(images, name, stride), cropped(upto, images, WINDOW, stride)[0], torch.float64)


def test_outputs_of_submodules_and_nodes():
    module = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Flatten(), nn.Linear(480, 2)).double()
    images = numbers(1, 3, 17, 15)
    net = overfeat.densify(module, WINDOW)
    expected = cropped(module[0], images, WINDOW, 1)[0]
    assert torch.equal(net.layer_output(images, "0", 1), net.layer_output(images, "0.1", 1))
    assert_matches(net.layer_output(images, "0", 1), expected, torch.float64)
    assert_matches(net.layer_output(images, "relu", 1), expected, torch.float64)
    assert (net.layer_output(images, "0.0", 1) < 0).any(), "the convolution without its ReLU"


# Boxes


class Boxes(nn.Module):
    """Scores and boxes from one map."""

    def __init__(self, boxes, classes=3):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(120, 8))
        self.scores, self.boxes = nn.Linear(8, classes), nn.Linear(8, 4 * boxes)
        self.shape = (boxes, 4) if boxes > 1 else (4,)

    def forward(self, x):
        x = self.features(x).relu()
        return self.scores(x), self.boxes(x).sigmoid().unflatten(1, self.shape)


FORMS = {
    "one box": (1, lambda s, b: (s, b)),
    "boxes first": (1, lambda s, b: (b, s)),
    "a box of each class": (3, lambda s, b: [s, b]),
    "flat boxes": (3, lambda s, b: (b.flatten(1), s)),
    "maps of one cell": (1, lambda s, b: (s[:, :, None, None], b[:, :, None, None])),
}


@pytest.mark.parametrize("coder", ["xyxy", "cxcywh"])
@pytest.mark.parametrize("form", FORMS)
def test_boxes_are_those_of_cropped_windows(form, coder):
    """Every candidate is a window's class with the window's own box, mirror images too."""
    boxes, arrange = FORMS[form]
    torch.manual_seed(0)
    inner = Boxes(boxes).double().eval()
    module = Apply(lambda s, x: arrange(*s.inner(x)), inner=inner)
    net = overfeat.densify(module, WINDOW, mean=120.0, std=60.0, box_coder=coder)
    image = pixels(1, 3, 23, 21)
    actual = overfeat.candidates(
        net, net.regressor, image, scales=[1.0], flip=True, stride=3, top_k=None, relative_threshold=0.0
    )
    expected_boxes, expected_scores = [], []
    for flipped in (False, True):
        view = image.flip(-1) if flipped else image
        scores, codes = cropped(inner, (view.double() - 120) / 60, WINDOW, 3)
        *_, rows, columns = scores.shape
        codes = codes.permute(0, 2, 3, 1).reshape(rows * columns, -1, 4).expand(-1, 3, -1)
        top, left = torch.meshgrid(3 * torch.arange(rows), 3 * torch.arange(columns), indexing="ij")
        windows = torch.stack([left, top, left + WINDOW[1], top + WINDOW[0]], -1).view(-1, 1, 4).double()
        if flipped:
            windows = torch.stack([21 - windows[..., 2], windows[..., 1], 21 - windows[..., 0], windows[..., 3]], -1)
            codes = mirrored(codes, coder)
        expected_boxes.append(decode(codes, windows, coder).reshape(-1, 4))
        expected_scores.append(scores.softmax(1).permute(0, 2, 3, 1).reshape(-1))
    assert_matches(actual.boxes, torch.cat(expected_boxes), torch.float32)
    assert_matches(actual.scores, torch.cat(expected_scores), torch.float32)
    assert actual.labels.tolist() == [0, 1, 2] * (len(actual.labels) // 3)


def test_copies():
    """A deep copy has weights of its own and the same results; pickling and shallow copies are refused."""
    module, images = make(), numbers(1, 3, 21, 20)
    net = overfeat.densify(module, WINDOW, borders="neighbours", class_names=["a", "b", "c", "d"])
    net.background, net.scale_factors = True, (0.5,)
    expected = net(images, 3)
    copied = copy.deepcopy(net)
    assert torch.equal(copied(images, 3), expected) and copied.class_names == net.class_names
    assert (copied.borders, copied.background, copied.scale_factors) == ("neighbours", True, (0.5,))
    with torch.no_grad():
        module[0].weight.zero_()
    assert torch.equal(copied(images, 3), expected) and not torch.equal(net(images, 3), expected)
    for copier in (pickle.dumps, copy.copy):
        with pytest.raises(
            overfeat.InputError, match="a converted net cannot be pickled; save the module's state_dict"
        ):
            copier(net)
    with pytest.raises(
        overfeat.InputError, match="net must be an OverFeat, not DensifiedNet; for a converted net save"
    ):
        overfeat.save(net, "net.safetensors")


def test_tiles_and_tasks_of_a_net_with_boxes():
    torch.manual_seed(0)
    net = overfeat.densify(Boxes(3).eval(), WINDOW, mean=120.0, std=60.0)
    image = pixels(1, 3, 60, 50)
    whole, tiled = (
        overfeat.candidates(net, net.regressor, image, scales=[1.0, 0.8], flip=True, stride=2, memory_limit=limit)
        for limit in (1 << 30, 200_000)
    )
    assert torch.equal(whole.labels, tiled.labels)
    assert_matches(tiled.boxes, whole.boxes, torch.float32)
    assert len(overfeat.localize(net, net.regressor, image).boxes)
    with pytest.raises(overfeat.InputError, match="no background class"):
        overfeat.detect(net, net.regressor, image)
    net.background = True
    detections = overfeat.detect(net, net.regressor, image, score_threshold=0.0, min_score=0)
    assert len(detections.boxes) and detections.labels.max() < 2
    with pytest.raises(overfeat.InputError, match=r"use net\.regressor"):
        overfeat.detect(net.with_borders("neighbours"), net.regressor, image)
    assert overfeat.densify(make(), WINDOW).regressor is None


# Costs


def macs_per_window(net, size, stride=1):
    macs, windows = net.region_macs(size, stride)
    return sum(macs.values()) / windows


SHARED = {
    "stride, dilation and groups": lambda: nn.Conv2d(4, 4, 3, 2, dilation=2, groups=2),
    "padding": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "overlapping pools": lambda: nn.MaxPool2d(3, 2),
    "a pool that rounds up": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "an average pool": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "bins of one size": lambda: nn.AdaptiveAvgPool2d((9, 11)),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "PReLU": lambda: nn.PReLU(4),
    "activations": lambda: nn.Sequential(nn.SiLU(), nn.Dropout(), nn.Hardswish(inplace=True), nn.Sigmoid()),
    "softmax over channels": lambda: nn.Softmax(1),
    "channel shuffle": lambda: nn.ChannelShuffle(2),
    "slices": lambda: Apply(lambda x: x[:, 1:, 1:-1, ::2]),
    "residual": lambda: Apply(lambda s, x: x + s.conv(x), conv=nn.Conv2d(4, 4, 3, padding=1)),
    "concatenation": lambda: Apply(lambda s, x: torch.cat([s.conv(x), x[..., 1:-1, 1:-1]], 1), conv=nn.Conv2d(4, 4, 3)),
    "asymmetric zeros": lambda: nn.ZeroPad2d((0, 1, 0, 1)),
    "same": lambda: nn.Conv2d(4, 4, (4, 2), padding="same"),
    "in-place": lambda: Apply(lambda x: F.relu_(x.add_(1))),
}


@pytest.mark.parametrize("name", SHARED)
def test_windows_share_what_they_can(name):
    """At stride 1 a window costs a fraction of a cropped one, where most of the work is after the operator."""
    torch.manual_seed(0)
    after = [nn.LazyConv2d(16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)]
    module = nn.Sequential(nn.Conv2d(3, 4, 3), SHARED[name](), *after)
    module.eval()(torch.zeros(1, 3, 20, 24))
    net = overfeat.densify(module, (20, 24))
    assert macs_per_window(net, (100, 100)) < 0.4 * macs_per_window(net, (20, 24))


def test_neighbours_share_more_than_exact_borders():
    module = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)), nn.Flatten(), nn.Linear(3 * 20 * 24, 2))
    exact = overfeat.densify(module.eval(), (20, 24))
    costs = [macs_per_window(net, (100, 100)) for net in (exact.with_borders("neighbours"), exact)]
    assert 3 * costs[0] < costs[1] < 0.5 * macs_per_window(exact, (20, 24))


def test_the_table_of_costs():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(320, 2))
    text = str(overfeat.densify(module.eval(), WINDOW, name="grouped"))
    assert "grouped: windows of 14x12 px, 2 classes, borders exact" in text
    assert text.count("each window is computed on its own") == 1
    assert "from group_norm at 1 on" in text or "from native_group_norm at 1 on" in text
    for row in ("conv2d at 0", "conv2d at 2", "linear at 4", "total"):
        assert row in text
    cropped_macs = 4 * 27 * 12 * 10 + 4 * 36 * 10 * 8 + 320 * 2
    (total,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["total"]]
    assert total[1] == f"{cropped_macs / 1000:.3g}k"


def test_one_score_without_an_axis():
    """[N] is one class, whose probability is the sigmoid's."""
    module, image = make(classes=1), pixels(1, 3, 20, 19)
    net = overfeat.densify(nn.Sequential(module, nn.Flatten(0)), WINDOW, mean=120.0, std=60.0)
    (logits,) = cropped(module, (image.double() - 120) / 60, WINDOW, 2)
    assert_matches(net(image, 2), logits, torch.float64)
    (score_map,) = overfeat.score_maps(net, image, scales=[1.0], stride=2)
    assert_matches(score_map.scores, logits.sigmoid(), torch.float32)
