"""Classes learned from a picture: scores, places, errors and files."""

import copy
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import overfeat
from overfeat.errors import InputError
from overfeat.files import ASSETS
from overfeat.models.checkpoint import read_safetensors
from overfeat.prototypes.views import VIEWS, views

WINDOW = 16


class Module(nn.Module):
    """A small classifier with padding, which ends as SqueezeNet does or in a fully connected layer."""

    def __init__(self, last: str):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2)
        self.last = nn.Conv2d(12, 5, 1) if last == "conv" else nn.Linear(12, 5)

    def maps(self, x):
        return F.relu(self.conv2(F.relu(self.conv1(x))))

    def forward(self, x):
        x = self.maps(x)
        return self.last(x).mean((2, 3)) if isinstance(self.last, nn.Conv2d) else self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def module(request):
    """Ends in a fully connected layer unless a test names the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Module(getattr(request, "param", "linear")).eval()


@pytest.fixture(scope="module")
def net(module):
    return overfeat.densify(module, WINDOW, mean=128.0, std=64.0, check=False)


def scene(x, y, shape="disc"):
    """A grey image of 40x52 with noise, and a bright disc or bars in a square of WINDOW pixels at (x, y)."""
    rng = np.random.default_rng(0)
    image = rng.integers(90, 130, (40, 52, 3)).astype(np.uint8)
    down, across = np.mgrid[:WINDOW, :WINDOW]
    inside = np.hypot(down - 7.5, across - 7.5) < 6 if shape == "disc" else across % 6 < 2
    image[y : y + WINDOW, x : x + WINDOW][inside] = (250, 240, 20) if shape == "disc" else (10, 30, 220)
    return image


def box_at(x, y):
    return (x, y, x + WINDOW, y + WINDOW)


def expected_features(module, windows):
    """What the classifier is given, averaged over 3x3 parts of a window."""
    with torch.no_grad():
        maps = module.maps((windows - 128.0) / 64.0)
    return F.avg_pool2d(maps, 3, 2).flatten(1)  # 7 cells: parts of 3, 2 apart


@pytest.mark.parametrize("module", ["conv", "linear"], indirect=True)
def test_scores_are_cosines_of_every_windows_features(net, module):
    prototypes = overfeat.Prototypes(net)
    prototypes.add("disc", scene(8, 10), box=box_at(8, 10), flip=False)
    prototypes.add("bars", scene(8, 10, "bars"), box=box_at(8, 10), flip=False)
    image = torch.from_numpy(scene(30, 4)).permute(2, 0, 1)
    scores = overfeat.score_maps(prototypes, image, scales=[1.0], stride=3)[0].scores[0]
    assert scores.shape == (2, 9, 13)
    windows = image.float().unfold(1, WINDOW, 3).unfold(2, WINDOW, 3).permute(1, 2, 0, 3, 4).flatten(0, 1)
    features = F.normalize(expected_features(module, windows), dim=1)
    for label, shape in enumerate(("disc", "bars")):
        picture = torch.from_numpy(scene(8, 10, shape)).permute(2, 0, 1)
        own = expected_features(module, views(picture, box_at(8, 10), (WINDOW, WINDOW), (128.0,), False))
        prototype = F.normalize(F.normalize(own, dim=1).mean(0), dim=0)
        torch.testing.assert_close(scores[label].flatten(), features @ prototype, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("borders", ["exact", "neighbours"])
def test_a_taught_object_is_found_where_it_is(net, borders):
    prototypes = overfeat.Prototypes(net.with_borders(borders), threshold=0.9)
    prototypes.add("disc", scene(8, 10), box=box_at(8, 10))
    prototypes.add("bars", scene(8, 10, "bars"), box=box_at(8, 10))
    (score_map,) = prototypes.score_maps(scene(31, 5), scales=[1.0], stride=1)
    row, column = np.unravel_index(int(score_map.scores[0, 0].argmax()), score_map.grid.shape)
    assert np.abs(score_map.grid.boxes()[row, column] - box_at(31, 5)).max() <= 2
    ((name, score),) = prototypes.classify(scene(31, 5), scales=[1.0], stride=1)
    assert name == "disc" and score == pytest.approx(float(score_map.scores[0, 0].max()))
    assert prototypes.classify(np.full((40, 52, 3), 200, np.uint8), scales=[1.0], stride=1) == []


def test_several_classes_come_best_first_and_a_second_picture_counts_as_much(net):
    prototypes = overfeat.Prototypes(net, threshold=0.0)
    prototypes.add("disc", scene(8, 10), box=box_at(8, 10))
    prototypes.add("bars", scene(8, 10, "bars"), box=box_at(8, 10))
    first = prototypes.prototypes.clone()
    ranked = prototypes.classify(scene(30, 4, "bars"), scales=[1.0], stride=1)
    assert [name for name, _ in ranked] == ["bars", "disc"] and ranked[0][1] > ranked[1][1]
    prototypes.add("disc", scene(20, 20), box=box_at(20, 20))
    assert prototypes.counts == [2, 1] and prototypes.class_names == ["disc", "bars"]
    second = prototypes.direction(scene(20, 20), box=box_at(20, 20))
    torch.testing.assert_close(prototypes.prototypes[0], F.normalize(first[0] + second, dim=0))
    prototypes.remove("disc")
    assert prototypes.class_names == ["bars"] and prototypes.num_classes == 1
    torch.testing.assert_close(prototypes.prototypes, first[1:])


def test_tiles_and_batches_give_the_same(net):
    prototypes = overfeat.Prototypes(net)
    prototypes.add("disc", scene(8, 10), box=box_at(8, 10))
    whole = prototypes.score_maps(scene(30, 4), scales=[1.0, 1.5], stride=2)
    tiled = prototypes.score_maps(scene(30, 4), scales=[1.0, 1.5], stride=2, memory_limit=200_000)
    both = overfeat.classify(prototypes, [scene(30, 4), scene(2, 2, "bars")], scales=[1.0], stride=2)
    for a, b in zip(whole, tiled, strict=True):
        torch.testing.assert_close(a.scores, b.scores)
    assert both.shape == (2, 1)
    torch.testing.assert_close(both[0, 0], whole[0].scores.max())


def test_mirror_images_are_learned_unless_they_are_other_shapes(net):
    image = scene(0, 0)[:WINDOW, :WINDOW].copy()
    image[:, 8:] = 0
    with_flip, without = overfeat.Prototypes(net), overfeat.Prototypes(net)
    with_flip.add("half", image)
    without.add("half", image, flip=False)
    own, mirrored = (
        [overfeat.classify(p, x, scales=[1.0]).item() for p in (with_flip, without)] for x in (image, image[:, ::-1])
    )
    assert own[1] > mirrored[1] + 0.1 and own[0] == pytest.approx(mirrored[0], abs=0.02)


@pytest.mark.parametrize("module", ["conv", "linear"], indirect=True)
def test_layers_and_cells(net):
    sizes = [overfeat.Prototypes(net, cells=cells).embedding.num_classes for cells in (1, 2, 3, 50)]
    assert sizes == [12, 48, 108, 12 * 49]  # maps of 7x7 cells
    assert overfeat.Prototypes(net, layer="conv1", cells=2).embedding.num_classes == 32
    assert overfeat.Prototypes(net, layer="last", cells=1).embedding.num_classes == 5
    with pytest.raises(InputError, match="no submodule or node 'conv9'; its submodules: conv1, conv2, last"):
        overfeat.Prototypes(net, layer="conv9")


def test_squeezenet_gives_what_its_classifier_is_given():
    net = overfeat.squeezenet().with_borders("neighbours")
    prototypes = overfeat.Prototypes(net)
    assert prototypes.embedding.num_classes == 512 * 9
    photos = ASSETS / "photos"
    prototypes.add("cat", photos / "chelsea.png", box=(100, 40, 330, 280))
    prototypes.add("cup", photos / "coffee.jpg", flip=False)
    image = np.array(Image.open(photos / "chelsea.png").convert("RGB"))[:, ::-1]
    ((name, score),) = prototypes.classify(image.copy(), scales=[1.0], stride=64)
    assert name == "cat" and score > 0.6
    assert prototypes.classify(photos / "rocket.jpg", scales=[0.6], stride=64) == []


@pytest.mark.parametrize(("layer", "number"), [(None, 17), (17, 17), ("15", 15)])
def test_built_in_nets(layer, number):
    net = overfeat.load(ASSETS / "small.safetensors")
    prototypes = overfeat.Prototypes(net, layer=layer)
    image = torch.from_numpy(np.array(Image.open(ASSETS / "scenes" / "00001.png").convert("RGB"))).permute(2, 0, 1)
    window = image[:, 20:67, 30:77]
    prototypes.add("seven", window, flip=False)
    scores = overfeat.score_maps(prototypes, image, scales=[1.0], stride="coarse")[0].scores[0, 0]
    with torch.no_grad():
        own = F.normalize(net.layer_output(image[None].float(), number)[0].relu(), dim=0)
    expected = (own * prototypes.prototypes[0][:, None, None]).sum(0)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert overfeat.score_maps(prototypes, image, scales=[1.0], stride="fine")[0].scores.max() > 0.9


def test_layers_that_built_in_nets_do_not_have():
    net = overfeat.load(ASSETS / "small.safetensors")
    with pytest.raises(InputError, match=r"layer must be one of 15, 17 in this net, not 3"):
        overfeat.Prototypes(net, layer=3)
    plain = overfeat.OverFeat(net.architecture.with_input_size(47, ()), 2)
    with pytest.raises(InputError, match="net must have a hidden fully connected layer"):
        overfeat.Prototypes(plain)


def test_files(net, tmp_path):
    prototypes = overfeat.Prototypes(net, layer="conv2", cells=2, threshold=0.7)
    prototypes.add("disc", scene(8, 10), box=box_at(8, 10))
    prototypes.add("disc", scene(8, 10, "bars"))
    prototypes.add("Überzug", scene(3, 3))
    prototypes.save(tmp_path / "p.safetensors")
    loaded = overfeat.Prototypes.load(tmp_path / "p.safetensors", net=net)
    assert (loaded.class_names, loaded.counts, loaded.threshold) == (["disc", "Überzug"], [2, 1], 0.7)
    image = scene(30, 4)
    a, b = (overfeat.score_maps(p, image, scales=[1.0])[0].scores for p in (prototypes, loaded))
    assert torch.equal(a, b)
    loaded.add("disc", image)  # goes on
    assert loaded.counts == [3, 1]


def test_files_of_another_net_or_kind(net, tmp_path):
    path = tmp_path / "p.safetensors"
    prototypes = overfeat.Prototypes(net)
    prototypes.add("disc", scene(8, 10))
    prototypes.save(path)
    torch.manual_seed(5)
    other = overfeat.densify(Module("conv").eval(), WINDOW, mean=128.0, std=64.0, check=False)
    with pytest.raises(InputError, match=r"p\.safetensors: made with another net, whose features are others"):
        overfeat.Prototypes.load(path, net=other)
    with pytest.raises(InputError, match=r"holds prototypes, and no net; overfeat\.Prototypes\.load"):
        overfeat.load(path)
    with pytest.raises(InputError, match="holds no prototypes; `overfeat teach` makes them"):
        overfeat.Prototypes.load(ASSETS / "small.safetensors", net=net)
    with pytest.raises(InputError, match=r"missing\.safetensors: no such file"):
        overfeat.Prototypes.load(tmp_path / "missing.safetensors", net=net)
    with pytest.raises(InputError, match=r"p\.safetensors: made with another net, or damaged: layer must be one of 15"):
        prototypes.layer = "fire7"
        prototypes.save(path)  # over its own file
        overfeat.Prototypes.load(path, net=overfeat.load(ASSETS / "small.safetensors"))


def test_other_files_are_kept(net, tmp_path):
    prototypes = overfeat.Prototypes(net)
    weights, text, empty = (tmp_path / name for name in ("net.safetensors", "a.txt", "empty"))
    weights.write_bytes((ASSETS / "small.safetensors").read_bytes())
    text.write_text("a letter")
    empty.touch()
    for path in (weights, text):
        before = path.read_bytes()
        with pytest.raises(InputError, match=f"{path.name}: exists and holds no prototypes; name another file"):
            prototypes.save(path)
        assert path.read_bytes() == before
    prototypes.save(empty)
    assert overfeat.Prototypes.load(empty, net=net).class_names == []


def test_a_threshold_is_checked_when_it_is_set(net):
    prototypes = overfeat.Prototypes(net)
    prototypes.threshold = 1
    for value in (float("nan"), 2, "a", None, True):
        with pytest.raises(InputError, match=f"threshold must be between 0 and 1, not '?{value}"):
            prototypes.threshold = value
    assert prototypes.threshold == 1.0


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'\\"threshold\\": 0.4', b'\\"threshold\\": 4.0'), (b'\\"count\\": 1', b'\\"count\\": 0'),
     (b'\\"name\\": \\"disc\\"', b'\\"n___\\": \\"disc\\"'), (b'\\"disc\\"', b'  \\"\\"  '),
     (b'\\"cells\\": 3', b'\\"cells\\": x')],
)  # fmt: skip
def test_damaged_files(net, tmp_path, old, new):
    path = tmp_path / "p.safetensors"
    prototypes = overfeat.Prototypes(net)
    prototypes.add("disc", scene(8, 10))
    prototypes.save(path)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(InputError, match=r"p\.safetensors: its prototypes and its metadata do not fit together"):
        overfeat.Prototypes.load(path, net=net)


def test_damaged_values_and_layers(net, tmp_path):
    path, good = tmp_path / "p.safetensors", overfeat.Prototypes(net)
    good.add("disc", scene(8, 10))
    good.save(path)
    metadata, tensors = read_safetensors(path)
    for name, factor in [
        ("probe", np.nan),
        ("sums", np.inf),
        ("sums", 0),
        ("sums", 1e38),
        ("sums", 3),
        ("sums", 1e-30),
    ]:
        save_file(tensors | {name: tensors[name] * factor}, path, metadata)
        with pytest.raises(InputError, match=r"p\.safetensors: .* \(NaN, infinite, zero or too large values\)"):
            overfeat.Prototypes.load(path, net=net)
    for layer in ([1], True, "nosuch" * 20_000):
        settings = json.loads(metadata["prototypes"]) | {"layer": layer}
        save_file(tensors, path, metadata | {"prototypes": json.dumps(settings)})
        with pytest.raises(InputError, match=r"p\.safetensors: made with another net, or damaged: ") as caught:
            overfeat.Prototypes.load(path, net=net)
        assert "layer" in str(caught.value) or "nosuch" in str(caught.value)
        assert len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": " "}, "name must be a text of 1 to 10000 characters, not ' '"),
        ({"box": (1, 2, 3)}, "box must be four numbers (x1, y1, x2, y2) in pixels, not (1, 2, 3)"),
        ({"box": (60, 2, 70, 9)}, "box must be (x1, y1, x2, y2) of the image of 40x52 and hold a pixel"),
        ({"box": (9, 2, 4, 9)}, "box must be (x1, y1, x2, y2) of the image of 40x52 and hold a pixel"),
        ({"flip": 2}, "flip must be True or False, not 2"),
    ],
)
def test_what_cannot_be_learned(net, arguments, message):
    prototypes = overfeat.Prototypes(net)
    with pytest.raises(InputError, match=re.escape(message)):
        prototypes.add(**{"name": "a", "image": scene(2, 2), **arguments})
    assert prototypes.class_names == []


def test_before_the_first_class(net):
    prototypes = overfeat.Prototypes(net)
    for call in (prototypes.classify, prototypes.score_maps):
        with pytest.raises(InputError, match=re.escape("there are no classes yet; add one with add(name, image)")):
            call(scene(2, 2))
    with pytest.raises(InputError, match=r"name must be one of the classes \(none yet\), not 'a'"):
        prototypes.remove("a")


def test_features_that_are_all_zero(net, module):
    dead = copy.deepcopy(module)
    nn.init.constant_(dead.conv2.bias, -1e6)
    prototypes = overfeat.Prototypes(overfeat.densify(dead, WINDOW, check=False))
    with pytest.raises(InputError, match="a: the net's features of this picture are all zero"):
        prototypes.add("a", scene(2, 2))


def test_windows_of_a_picture():
    image = torch.arange(3 * 60 * 90, dtype=torch.float32).view(3, 60, 90)
    own = views(image, None, (20, 30), (0.0,), True)
    assert own.shape == (2 * len(VIEWS), 3, 20, 30)
    torch.testing.assert_close(own[: len(VIEWS)].flip(-1), own[len(VIEWS) :])
    inside = views(image, (40, 20, 70, 40), (20, 30), (0.0,), False)
    torch.testing.assert_close(inside[0], image[:, 20:40, 40:70])  # the object alone, as it is
    corner = views(image, (-5, -5, 30, 20), (20, 30), (0.0,), False)
    torch.testing.assert_close(corner[0], image[:, :20, :30])  # clipped
    tall = views(torch.full((3, 60, 90), 9.0), (0, 0, 5, 60), (20, 20), (77.0,), False)
    assert tall[0].unique().tolist() == [9.0]  # there is room beside it
    wide = views(torch.full((3, 20, 90), 9.0), (0, 0, 90, 20), (20, 20), (77.0,), False)
    assert set(wide[0].unique().tolist()) >= {9.0, 77.0}  # none above and below


def test_other_dtypes(net):
    prototypes = overfeat.Prototypes(copy.deepcopy(net))
    prototypes.add("disc", scene(8, 10), box=box_at(8, 10))
    before = prototypes.classify(scene(31, 5), scales=[1.0])
    ((name, score),) = prototypes.to(torch.bfloat16).classify(scene(31, 5), scales=[1.0])
    assert name == "disc" and score == pytest.approx(before[0][1], abs=0.02)
