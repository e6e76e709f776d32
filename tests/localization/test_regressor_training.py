"""Training of box regressors: the commands, their results, and which windows are positive."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from overfeat import load, load_regressor
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.cli.main import main
from overfeat.data.annotated import align_boxes
from overfeat.data.random_tiles import collate_list
from overfeat.data.readers.coco import read_coco
from overfeat.data.synthetic.dataset import write_dataset
from overfeat.dense.config import DenseConfig, SixScales
from overfeat.dense.grid import grids
from overfeat.dense.scales import six_scales
from overfeat.errors import InputError
from overfeat.localization.config import LOSSES, BoxRegressorConfig
from overfeat.localization.data import ScaledDataset
from overfeat.localization.train import RegressorTask
from overfeat.models import checkpoint
from overfeat.models.box_regressor import BoxRegressor
from overfeat.ops.boxes import areas, encode, intersections


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Twelve training scenes and four for validation, one digit each."""
    root = tmp_path_factory.mktemp("scenes")
    write_dataset(root, "train", 12, progress=False)
    write_dataset(root, "validation", 4, progress=False)
    return root


@pytest.fixture
def data(scenes):
    return align_boxes(read_coco(scenes / "train.json"), load(SHIPPED_WEIGHTS).class_names)


def flags(scenes, out, *more):
    common = "--batch-size 6 --num-workers 0 --device cpu --scales six:1,2 --lr 0.01 --epochs 2"
    given = ["train", "regressor", "--data", scenes, "--init", SHIPPED_WEIGHTS, "--out", out, *common.split(), *more]
    return [str(part) for part in given]


def test_training_writes_a_net_with_boxes(scenes, tmp_path, capsys):
    """Its evaluation runs; the weights of the net itself are unchanged."""
    assert main(flags(scenes, tmp_path / "run", "--epochs", "8", "--lr", "0.003")) == 0
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert len(log) == 8 and log[7]["train_loss"] < 0.9 * log[0]["train_loss"]
    assert 0 < log[7]["validation_iou_error"] < 1
    path = tmp_path / "run/net.safetensors"
    before, after = load(SHIPPED_WEIGHTS), load(path)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert load_regressor(path).num_classes is None
    capsys.readouterr()
    test = ["--data", str(scenes / "validation.json"), "--weights", str(path), "--scales", "six:1,2"]
    assert main(["evaluate", "localization", *test, "-o", str(tmp_path / "results.json")]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["images"] == 4 and set(results["errors"]) == {"top1", "top5"}
    assert "4 images of" in capsys.readouterr().out


def test_resumed_to_the_same_weights(scenes, tmp_path, capsys):
    assert main(flags(scenes, tmp_path / "once", "--per-class")) == 0
    assert main(flags(scenes, tmp_path / "twice", "--per-class", "--epochs", "1")) == 0
    assert main(flags(scenes, tmp_path / "twice", "--per-class", "--resume")) == 0
    once, twice = (load_regressor(tmp_path / name / "net.safetensors") for name in ("once", "twice"))
    assert once.num_classes == 10
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))
    assert main(flags(scenes, tmp_path / "twice", "--resume")) == 1
    assert "--per-class was True and is now False" in capsys.readouterr().err


def test_train_backbone(scenes, tmp_path):
    assert main(flags(scenes, tmp_path / "run", "--train-backbone", "--epochs", "1", "--scales", "six:1")) == 0
    before, after = load(SHIPPED_WEIGHTS), load(tmp_path / "run/net.safetensors")
    for name in ("conv_layers.0.weight", "fc_layers.2.weight"):
        assert not torch.equal(before.state_dict()[name], after.state_dict()[name])


def test_two_processes_with_images_without_boxes(scenes, tmp_path):
    """Half of the images have no box, so that a process' share of a batch may have no positive window."""
    coco = json.loads((scenes / "train.json").read_text())
    coco["annotations"] = [note for note in coco["annotations"] if note["image_id"] % 2]
    (scenes / "half.json").write_text(json.dumps(coco))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "overfeat"]
    arguments = flags(scenes / "half.json", tmp_path / "run", "--train-backbone", "--epochs", "1", "--batch-size", "2")
    done = subprocess.run([sys.executable, *launcher, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_regressor(tmp_path / "run/net.safetensors").num_classes is None


def test_bad_annotations_start_nothing(scenes, tmp_path, capsys):
    broken = json.loads((scenes / "train.json").read_text())
    broken["annotations"][3]["bbox"][2] = -4
    (scenes / "broken.json").write_text(json.dumps(broken))
    arguments = flags(scenes / "broken.json", tmp_path / "run", "--epochs", "1", "--scales", "six:1")
    assert main(arguments) == 1
    assert f"annotation {broken['annotations'][3]['id']}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--skip-invalid"]) == 0


def test_images_at_every_scale(data):
    architecture = load(SHIPPED_WEIGHTS).architecture
    plain, mirrored = (ScaledDataset(data, architecture, SixScales(1, 4), flip=flip) for flip in (False, True))
    assert (len(plain), len(mirrored)) == (24, 48)
    for number, sample in enumerate(data.samples):
        sizes = six_scales(architecture.geometry, *sample.size)
        for scale, size in enumerate((sizes[0], sizes[3])):
            item = plain[2 * number + scale]
            assert tuple(item["image"].shape[1:]) == size
            back = item["boxes"] / torch.tensor([size[1] / sample.size[1], size[0] / sample.size[0]] * 2)
            torch.testing.assert_close(back.double(), torch.from_numpy(sample.boxes), rtol=1e-5, atol=1e-3)
            straight, mirror = mirrored[4 * number + 2 * scale], mirrored[4 * number + 2 * scale + 1]
            assert torch.equal(straight["image"], mirror["image"].flip(-1))
            x1, y1, x2, y2 = item["boxes"][0].tolist()
            assert mirror["boxes"][0].tolist() == pytest.approx([size[1] - x2, y1, size[1] - x1, y2])


def test_windows_that_hold_half_of_an_object_are_positive(data):
    net = load(SHIPPED_WEIGHTS)
    task = RegressorTask(net, BoxRegressor(net.architecture), data, options=BoxRegressorConfig(scales=[(51, 63)]))
    # Windows of 47 px start at 0 or 4 down, 0 to 16 across; an object of 8 px that a window has half of or more.
    box, image = torch.tensor([[47.0, 10, 55, 18]]), torch.zeros(3, 51, 63)
    targets = task._targets(image, box, torch.tensor([7]))
    assert (targets.tile.rows, targets.tile.columns) == (
        slice(0, 2),
        slice(1, 5),
    ) and targets.positive.tolist() == list(range(8))
    assert targets.windows[:, 0].tolist() == [4, 8, 12, 16] * 2 and targets.windows[:, 1].tolist() == [0] * 4 + [4] * 4
    assert torch.equal(targets.boxes, box.expand(8, 4)) and targets.labels.tolist() == [7] * 8
    # Of two objects a window regresses the one that it holds more of; between them some windows hold neither.
    far = torch.tensor([[0.0, 0, 2, 2], [61, 49, 63, 51]])
    targets = task._targets(image, far, torch.tensor([1, 2]))
    assert (targets.tile.rows, targets.tile.columns) == (slice(0, 2), slice(0, 5))
    assert targets.positive.tolist() == [0, 9] and targets.labels.tolist() == [1, 2]
    # An image without positive windows does not contribute to the loss.
    image = torch.zeros(3, 99, 99)
    for empty in (torch.empty(0, 4), torch.tensor([[0.0, 0, 99, 99]])):
        labels = torch.zeros(len(empty), dtype=torch.int64)
        assert not len(task._targets(image, empty, labels).positive)
        loss, sums = task.loss(task.module, {"image": [image], "boxes": [empty], "labels": [labels]})
        assert loss.item() == 0 and loss.requires_grad and sums["samples"] == 0


@pytest.mark.parametrize("stride", ["coarse", "fine"])
def test_the_loss_is_that_of_the_positive_windows(data, stride):
    """Predicted boxes of all windows give the same loss once the others are masked."""
    net = load(SHIPPED_WEIGHTS)
    torch.manual_seed(0)
    regressor = BoxRegressor(net.architecture)
    task = RegressorTask(net, regressor, data, options=BoxRegressorConfig(scales=SixScales(1, 3), stride=stride))
    items = [task.dataset[number] for number in range(8)]
    loss, sums = task.loss(task.module, collate_list(items))
    losses = []
    for item in items:
        size = tuple(item["image"].shape[1:])
        rows, _ = regressor.forward_flat([net.features(item["image"][None])], stride)
        windows = torch.from_numpy(grids(net, size, DenseConfig([1.0], False, stride))[0].boxes()).float().view(-1, 4)
        holds = intersections(windows, item["boxes"])[:, 0] >= areas(item["boxes"]) / 2
        true = encode(item["boxes"].expand(len(windows), 4), windows, "xyxy")
        losses += [(rows[holds, 0] - true[holds]).square().sum(dim=1).mean()] if holds.any() else []
    assert sums["samples"] == len(losses) >= 6
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("box_coder", ["xyxy", "cxcywh"])
def test_losses_by_hand(data, name, box_coder):
    net = load(SHIPPED_WEIGHTS)
    task = RegressorTask(
        net, BoxRegressor(net.architecture, box_coder=box_coder), data, options=BoxRegressorConfig(loss=name)
    )
    window, box = torch.tensor([[10.0, 10, 30, 50]]), torch.tensor([[10.0, 10, 20, 50]])
    values = torch.tensor([[0.0, 0, 1, 1]]) if box_coder == "xyxy" else torch.tensor([[0.5, 0.5, 0, 0]])  # the window
    loss, iou = task._losses(values, window, box)
    assert iou.item() == pytest.approx(0.5)
    apart = torch.tensor([[30.0, 10, 50, 50]])  # beside it, the hull twice as wide
    far = task._losses(values, window, apart)[0].item()
    assert far == pytest.approx({"l2": 2.0 if box_coder == "xyxy" else 1.0, "iou": 1.0, "giou": 1.0}[name])
    farther = task._losses(values, window, apart + torch.tensor([20.0, 0, 20, 0]))[0].item()  # an empty third between
    assert farther == pytest.approx({"l2": 8.0 if box_coder == "xyxy" else 4.0, "iou": 1.0, "giou": 4 / 3}[name])
    squared = 0.25 if box_coder == "xyxy" else 0.25**2 + torch.tensor(0.5).log().item() ** 2
    assert loss.item() == pytest.approx(squared if name == "l2" else 0.5)


def test_each_class_trains_its_own_box(data):
    net = load(SHIPPED_WEIGHTS)
    task = RegressorTask(net, BoxRegressor(net.architecture, 10), data, options=BoxRegressorConfig(scales=SixScales(1)))
    item = next(item for item in map(task.dataset.__getitem__, range(12)) if len(item["boxes"]))
    loss, _ = task.loss(task.module, collate_list([item]))
    loss.backward()
    trained = task.module.regressor.fc_layers[-1].bias.grad.view(10, 4).abs().sum(dim=1) > 0
    assert trained.nonzero().flatten().tolist() == item["labels"].tolist()


def test_train_backbone_adds_the_cross_entropy_of_the_classes(data):
    """At the same windows; all weights have a gradient even without positive windows."""
    net = load(SHIPPED_WEIGHTS)
    tasks = [
        RegressorTask(
            net,
            BoxRegressor(net.architecture),
            data,
            options=BoxRegressorConfig(scales=SixScales(1), stride="coarse", train_backbone=train_backbone),
        )
        for train_backbone in (False, True)
    ]
    tasks[1].module.regressor.load_state_dict(tasks[0].module.regressor.state_dict())
    items = [tasks[0].dataset[number] for number in range(12)]
    (boxes, _), (both, _) = (task.loss(task.module.eval(), collate_list(items)) for task in tasks)
    entropies = []
    for item in items:
        targets = tasks[0]._targets(item["image"], item["boxes"], item["labels"])
        scores = net.features(item["image"][None])
        tile, logits = targets.tile, net.forward_head_flat([scores], "coarse")[0]
        logits = logits.view(*tile.grid.shape, -1)[tile.rows, tile.columns]
        chosen = logits.flatten(0, 1)[targets.positive].log_softmax(dim=1)
        entropies += [-chosen[:, item["labels"][0]].mean()] if len(chosen) else []
    assert (both - boxes).item() == pytest.approx(torch.stack(entropies).mean().item(), rel=1e-3)
    empty = {"image": [items[0]["image"]], "boxes": [torch.empty(0, 4)], "labels": [torch.empty(0).long()]}
    loss, _ = tasks[1].loss(tasks[1].module, empty)
    net.zero_grad()
    loss.backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in net.parameters())


def test_data_without_positive_windows_is_refused(scenes, tmp_path, capsys):
    """At sixteen times the size no window holds half of a digit."""
    arguments = flags(scenes / "train.json", tmp_path / "run", "--epochs", "1")
    arguments[arguments.index("six:1,2")] = "900x1100"
    assert main([*arguments, "--validation", str(scenes / "validation.json")]) == 1
    assert "no training sample contained a positive window" in capsys.readouterr().err
    assert not (tmp_path / "run/net.safetensors").exists()


def test_images_of_another_size_than_annotated(scenes, tmp_path, capsys):
    """And one too small for a scale: reported and left out."""
    coco = json.loads((scenes / "train.json").read_text())
    coco["images"][2]["width"] += 30
    (scenes / "odd.json").write_text(json.dumps(coco))
    assert main(flags(scenes / "odd.json", tmp_path / "run", "--epochs", "1", "--scales", "six:1")) == 0
    errors = capsys.readouterr().err
    assert f"{coco['images'][2]['file_name']}: " in errors and "its annotation is for" in errors
    data = align_boxes(read_coco(scenes / "train.json"), load(SHIPPED_WEIGHTS).class_names)
    Image.new("RGB", (40, 40)).save(tmp_path / "small.png")
    small = replace(data.samples[0], path=tmp_path / "small.png", size=(40, 40), boxes=np.array([[1.0, 1, 20, 20]]))
    dataset = ScaledDataset(replace(data, samples=[small, data.samples[1]]), load(SHIPPED_WEIGHTS).architecture, [1.0])
    assert [dataset[number]["unreadable"] for number in (0, 1)] == [0, -1]
    assert "smaller than the small net's window" in dataset.cache.error_for(0)[1]


def test_splits_of_a_folder(scenes, tmp_path, capsys):
    """Training and validation splits are read under either name, and no other split in their place."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "validation"):
        (folder / name).symlink_to(scenes / name)
    (folder / "trainval.json").write_bytes((scenes / "train.json").read_bytes())
    (folder / "test.json").write_bytes((scenes / "validation.json").read_bytes())
    arguments = flags(folder, tmp_path / "run", "--epochs", "1", "--scales", "six:1")
    assert main(arguments) == 0
    assert "12 images" in capsys.readouterr().out
    assert "validation" not in (tmp_path / "run/log.jsonl").read_text(), "the test images validate no epoch"
    (folder / "val.json").write_bytes((scenes / "validation.json").read_bytes())
    arguments[arguments.index(str(folder))] = str(folder / "trainval.json")
    assert main([str(tmp_path / "two") if word == str(tmp_path / "run") else word for word in arguments]) == 0
    assert "validation_iou_error" in (tmp_path / "two/log.jsonl").read_text()
    (folder / "trainval.json").rename(folder / "mine.json")
    (folder / "test.json").rename(folder / "other.json")
    (folder / "val.json").unlink()
    weights = str(tmp_path / "run/net.safetensors")
    evaluate = ["evaluate", "localization", "--data", str(folder), "--weights", weights, "--scales", "six:1"]
    capsys.readouterr()
    assert main(evaluate) == 1
    assert "has none of the splits test, validation, val, valid, but mine, other" in capsys.readouterr().err
    assert main([*evaluate, "--split", "other", "--max-images", "2"]) == 0
    assert "2 images of" in capsys.readouterr().out


def test_mismatches_are_refused(data, make_net):
    net = load(SHIPPED_WEIGHTS)
    with pytest.raises(InputError, match="class_names"):
        RegressorTask(make_net("small", 10), BoxRegressor(net.architecture), data)
    with pytest.raises(InputError, match="another net"):
        RegressorTask(net, BoxRegressor(net.architecture, 4), data)
    with pytest.raises(InputError, match="loss must be one of"):
        BoxRegressorConfig(loss="l1")


def test_unreadable_images_are_left_out(data, tmp_path):
    net = load(SHIPPED_WEIGHTS)
    path = data.samples[0].path
    kept = path.read_bytes()
    path.write_bytes(b"no image")
    try:
        task = RegressorTask(net, BoxRegressor(net.architecture), data, options=BoxRegressorConfig(scales=SixScales(1)))
        batch = collate_list([task.dataset[0], task.dataset[1]])
        assert batch["unreadable"].tolist() == [0, -1]
        loss, sums = task.loss(task.module, batch)
        assert sums["samples"] == 1 and loss.isfinite()
        assert str(path) in task.dataset.cache.error_for(0)[1]
    finally:
        path.write_bytes(kept)
    task.save(tmp_path / "net.safetensors")
    assert checkpoint.load_regressor(tmp_path / "net.safetensors").hidden == (256, 64)
