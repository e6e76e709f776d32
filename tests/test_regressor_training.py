"""Training of box regressors: the commands, their results, and which places train."""

import json

import pytest
import torch

from overfeat import load, load_regressor, weights
from overfeat.boxes import areas, encode, intersections
from overfeat.cli.common import SHIPPED_WEIGHTS
from overfeat.cli.main import main
from overfeat.data.annotations import align_boxes, read_coco
from overfeat.data.scaled import ScaledDataset, listed
from overfeat.data.scenes import write_scenes
from overfeat.dense import grids
from overfeat.files import InputError
from overfeat.heads import Regressor
from overfeat.regressor_training import LOSSES, RegressorTask
from overfeat.training import TrainConfig


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Twelve training scenes and four for validation, one digit each."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, "train", 12, progress=False)
    write_scenes(root, "validation", 4, progress=False)
    return root


@pytest.fixture
def data(scenes):
    return align_boxes(read_coco(scenes / "train.json"), load(SHIPPED_WEIGHTS).class_names)


def flags(scenes, out, *more):
    common = "--batch 6 --workers 0 --device cpu --scales 1,2 --lr 0.01 --epochs 2"
    given = ["train", "regressor", "--data", scenes, "--from", SHIPPED_WEIGHTS, "--out", out, *common.split(), *more]
    return [str(part) for part in given]


def test_a_net_with_boxes_comes_out(scenes, tmp_path, capsys):
    """Trained, evaluated, used; the net's own weights are as they were."""
    assert main(flags(scenes, tmp_path / "run", "--epochs", "8", "--lr", "0.003")) == 0
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert len(log) == 8 and log[7]["train_loss"] < 0.9 * log[0]["train_loss"]
    assert 0 < log[7]["validation_iou_error"] < 1
    path = tmp_path / "run/net.safetensors"
    before, after = load(SHIPPED_WEIGHTS), load(path)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert load_regressor(path).classes is None
    capsys.readouterr()
    test = ["--data", str(scenes / "validation.json"), "--weights", str(path), "--scales", "1,2"]
    assert main(["evaluate", "localization", *test, "-o", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["images"] == 4 and set(found["errors"]) == {"top1", "top5"}
    assert "4 images of" in capsys.readouterr().out


def test_resumed_to_the_same_weights(scenes, tmp_path, capsys):
    assert main(flags(scenes, tmp_path / "whole", "--per-class", "--form", "centre")) == 0
    assert main(flags(scenes, tmp_path / "parts", "--per-class", "--form", "centre", "--epochs", "1")) == 0
    assert main(flags(scenes, tmp_path / "parts", "--per-class", "--form", "centre", "--resume")) == 0
    whole, parts = (load_regressor(tmp_path / name / "net.safetensors") for name in ("whole", "parts"))
    assert whole.classes == 10 and whole.form == "centre"
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert main(flags(scenes, tmp_path / "parts", "--resume")) == 1
    assert "--form was centre and is now edges" in capsys.readouterr().err


def test_through_the_net(scenes, tmp_path):
    assert main(flags(scenes, tmp_path / "run", "--through-net", "--epochs", "1", "--scales", "1")) == 0
    before, after = load(SHIPPED_WEIGHTS), load(tmp_path / "run/net.safetensors")
    for name in ("convs.0.weight", "fulls.2.weight"):
        assert not torch.equal(before.state_dict()[name], after.state_dict()[name])


def test_bad_annotations_start_nothing(scenes, tmp_path, capsys):
    broken = json.loads((scenes / "train.json").read_text())
    broken["annotations"][3]["bbox"][2] = -4
    (scenes / "broken.json").write_text(json.dumps(broken))
    arguments = flags(scenes / "broken.json", tmp_path / "run", "--epochs", "1", "--scales", "1")
    assert main(arguments) == 1
    assert f"annotation {broken['annotations'][3]['id']}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--skip-bad"]) == 0


def test_images_at_every_scale(data):
    architecture = load(SHIPPED_WEIGHTS).architecture
    plain, mirrored = (ScaledDataset(data, architecture, [1, 4], flip) for flip in (False, True))
    assert (len(plain), len(mirrored)) == (24, 48)
    for number, sample in enumerate(data.samples):
        sizes = architecture.six_scales(*sample.size)
        for scale, size in enumerate((sizes[0], sizes[3])):
            item = plain[2 * number + scale]
            assert tuple(item["image"].shape[1:]) == size
            back = item["boxes"] / torch.tensor([size[1] / sample.size[1], size[0] / sample.size[0]] * 2)
            torch.testing.assert_close(back.double(), torch.from_numpy(sample.boxes), rtol=1e-5, atol=1e-3)
            straight, mirror = mirrored[4 * number + 2 * scale], mirrored[4 * number + 2 * scale + 1]
            assert torch.equal(straight["image"], mirror["image"].flip(-1))
            x1, y1, x2, y2 = item["boxes"][0].tolist()
            assert mirror["boxes"][0].tolist() == pytest.approx([size[1] - x2, y1, size[1] - x1, y2])


def test_windows_that_hold_half_of_an_object_train(data):
    net = load(SHIPPED_WEIGHTS)
    task = RegressorTask(net, Regressor(net.architecture), data, TrainConfig(), scales=[(51, 63)], stride="fine")
    # Windows of 47 px start at 0 or 4 down, 0 to 16 across; an object of 8 px that a window has half of or more.
    box, image = torch.tensor([[47.0, 10, 55, 18]]), torch.zeros(3, 51, 63)
    places = task._places(image, box, torch.tensor([7]))
    assert (places.rows, places.columns) == (slice(0, 2), slice(1, 5)) and places.chosen.tolist() == list(range(8))
    assert places.windows[:, 0].tolist() == [4, 8, 12, 16] * 2 and places.windows[:, 1].tolist() == [0] * 4 + [4] * 4
    assert torch.equal(places.boxes, box.expand(8, 4)) and places.labels.tolist() == [7] * 8
    # Of two objects a window learns the one that it holds more of; between them some windows hold neither.
    far = torch.tensor([[0.0, 0, 2, 2], [61, 49, 63, 51]])
    places = task._places(image, far, torch.tensor([1, 2]))
    assert (places.rows, places.columns) == (slice(0, 2), slice(0, 5))
    assert places.chosen.tolist() == [0, 9] and places.labels.tolist() == [1, 2]
    # Nothing to learn from an image whose object no window holds.
    image = torch.zeros(3, 99, 99)
    for nothing in (torch.empty(0, 4), torch.tensor([[0.0, 0, 99, 99]])):
        labels = torch.zeros(len(nothing), dtype=torch.int64)
        assert not len(task._places(image, nothing, labels).chosen)
        loss, sums = task.loss(task.module, {"image": [image], "boxes": [nothing], "labels": [labels]})
        assert loss.item() == 0 and loss.requires_grad and sums["samples"] == 0


@pytest.mark.parametrize("stride", ["coarse", "fine"])
def test_only_the_places_that_train_are_computed(data, stride):
    """The loss is that of all places of all images, those that do not train left out."""
    net = load(SHIPPED_WEIGHTS)
    torch.manual_seed(0)
    regressor = Regressor(net.architecture)
    task = RegressorTask(net, regressor, data, TrainConfig(), scales=[1, 3], stride=stride)
    items = [task.dataset()[number] for number in range(8)]
    loss, sums = task.loss(task.module, listed(items))
    losses = []
    for item in items:
        size = tuple(item["image"].shape[1:])
        rows, _ = regressor.rows([net.features(item["image"][None])], stride)
        windows = torch.from_numpy(grids(net, size, ["native"], False, stride)[0].boxes()).float().view(-1, 4)
        holds = intersections(windows, item["boxes"])[:, 0] >= areas(item["boxes"]) / 2
        true = encode(item["boxes"].expand(len(windows), 4), windows, "edges")
        losses += [(rows[holds, 0] - true[holds]).square().sum(dim=1).mean()] if holds.any() else []
    assert sums["samples"] == len(losses) >= 6
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("form", ["edges", "centre"])
def test_losses_by_hand(data, name, form):
    net = load(SHIPPED_WEIGHTS)
    task = RegressorTask(net, Regressor(net.architecture, form=form), data, TrainConfig(), loss=name)
    window, box = torch.tensor([[10.0, 10, 30, 50]]), torch.tensor([[10.0, 10, 20, 50]])
    guess = torch.tensor([[0.0, 0, 1, 1]]) if form == "edges" else torch.tensor([[0.5, 0.5, 0, 0]])  # the window
    loss, iou = task._losses(guess, window, box)
    assert iou.item() == pytest.approx(0.5)
    squared = 0.25 if form == "edges" else 0.25**2 + torch.tensor(0.5).log().item() ** 2
    assert loss.item() == pytest.approx(squared if name == "l2" else 0.5)


def test_what_does_not_fit_together(data, make_net):
    net = load(SHIPPED_WEIGHTS)
    with pytest.raises(InputError, match="class_names"):
        RegressorTask(make_net("small", 10), Regressor(net.architecture), data, TrainConfig())
    with pytest.raises(InputError, match="another net"):
        RegressorTask(net, Regressor(net.architecture, 4), data, TrainConfig())
    with pytest.raises(InputError, match="the loss is one of"):
        RegressorTask(net, Regressor(net.architecture), data, TrainConfig(), loss="l1")


def test_unreadable_images_are_left_out(data, tmp_path):
    net = load(SHIPPED_WEIGHTS)
    path = data.samples[0].path
    kept = path.read_bytes()
    path.write_bytes(b"no image")
    try:
        task = RegressorTask(net, Regressor(net.architecture), data, TrainConfig(), scales=[1])
        batch = listed([task.dataset()[0], task.dataset()[1]])
        assert batch["unreadable"].tolist() == [0, -1]
        loss, sums = task.loss(task.module, batch)
        assert sums["samples"] == 1 and loss.isfinite()
        assert str(path) in task.dataset().complaint(0)[1]
    finally:
        path.write_bytes(kept)
    task.save(tmp_path / "net.safetensors")
    assert weights.load_regressor(tmp_path / "net.safetensors").hidden == (256, 64)
