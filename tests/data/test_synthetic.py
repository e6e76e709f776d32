"""Synthetic images: determinism, disjoint splits, tight boxes, and the written data sets."""

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
from overfeat.data.synthetic import SPLITS, compositing, dataset, images, sources
from overfeat.data.synthetic.compositing import Canvas
from overfeat.data.synthetic.dataset import write_dataset
from overfeat.data.synthetic.images import SyntheticImage, make_image
from overfeat.errors import InputError


def same(one: SyntheticImage, other: SyntheticImage) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("image", "boxes", "labels"))


@pytest.mark.parametrize("objects", [(1, 1), (0, 8)])
def test_an_image_depends_on_its_arguments_alone(objects):
    forward = [make_image("train", 3, i, objects=objects) for i in range(4)]
    backward = [make_image("train", 3, i, objects=objects) for i in reversed(range(4))][::-1]
    assert all(map(same, forward, backward))
    assert not any(np.array_equal(forward[0].image, other.image) for other in forward[1:])
    for split, seed in (("train", 4), ("test", 3)):
        assert not np.array_equal(make_image(split, seed, 0, objects=objects).image, forward[0].image)


def test_subset_of_digits():
    labels = [make_image("train", 3, i, objects=(0, 8), digits=(5, 7)).labels for i in range(6)]
    assert set(np.concatenate(labels).tolist()) == {5, 7}
    every = make_image("train", 3, 1, objects=(0, 8), digits=range(10))
    assert same(make_image("train", 3, 1, objects=(0, 8)), every)


def digest(made: SyntheticImage) -> str:
    return hashlib.sha256(made.image.tobytes() + made.boxes.tobytes() + made.labels.tobytes()).hexdigest()


def test_another_process_makes_the_same_image_without_importing_the_packages():
    code = (
        "import hashlib, sys; from overfeat.data.synthetic.images import make_image;"
        "s = make_image('test', 1, 5, objects=(3, 3));"
        "print(hashlib.sha256(s.image.tobytes() + s.boxes.tobytes() + s.labels.tobytes()).hexdigest());"
        "print([name for name in ('skimage', 'mlxtend', 'sklearn') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines() == [digest(make_image("test", 1, 5, objects=(3, 3))), "[]"], run.stderr


def test_the_sources_are_5000_different_digits():
    digits = sources.mnist_digits()
    assert [arrays.shape for arrays in digits] == [(500, 28, 28)] * 10
    assert len({array.tobytes() for arrays in digits for array in arrays}) == 5000
    assert all(arrays.min() == 0.0 and arrays.max() == 1.0 for arrays in digits)
    ranges = [set(range(*sources.DIGIT_RANGES[split])) for split in SPLITS]
    assert [len(numbers) for numbers in ranges] == [350, 50, 100] and len(set.union(*ranges)) == 500


def test_splits_use_disjoint_digits_and_photographs(monkeypatch):
    """By what is really used: every MNIST image and every photograph that is requested."""
    used = {}
    distort, photograph = compositing.distort, sources.photograph

    def spy_distort(rng, source):
        used[split].add(source.tobytes())
        return distort(rng, source)

    def spy_photograph(name):
        used[split].add(name)
        return photograph(name)

    monkeypatch.setattr(compositing, "distort", spy_distort)
    monkeypatch.setattr(sources, "photograph", spy_photograph)
    for split in SPLITS:
        used[split] = set()
        for index in range(10):
            make_image(split, 0, index, objects=(8, 8))
    assert all(len(items) > 60 for items in used.values())
    assert not used["train"] & used["validation"]
    assert not used["train"] & used["test"]
    assert not used["validation"] & used["test"]


def test_sizes_and_labels():
    labels = set()
    for split in SPLITS:
        for index in range(30):
            made = make_image(split, 0, index)
            height, width = made.image.shape[:2]
            assert made.image.dtype == np.uint8 and made.image.shape == (height, width, 3)
            assert 72 <= min(height, width) <= 240 and max(height, width) <= 1.4 * min(height, width) + 1
            assert made.boxes.shape == (1, 4) and made.boxes.dtype == np.float64
            x1, y1, x2, y2 = made.boxes[0]
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            assert 24 <= max(x2 - x1, y2 - y1) <= min(100, 0.75 * min(height, width))
            labels.add(int(made.labels[0]))
    assert labels == set(range(10))


def test_the_number_of_objects():
    counts = [len(make_image("train", 0, index, objects=(0, 3)).labels) for index in range(20)]
    assert set(counts) == {0, 1, 2, 3}
    for index in range(4):
        made = make_image("train", 0, index, objects=(8, 8))
        assert made.boxes.shape == (8, 4) and made.labels.shape == (8,)
    empty = make_image("train", 0, 0, objects=(0, 0))
    assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0,)


def on_canvas(shape, corner, patch):
    """The patch [h, w] at a corner (y, x) of zeros of the canvas' size."""
    whole = np.zeros(shape[:2])
    whole[corner[0] : corner[0] + patch.shape[0], corner[1] : corner[1] + patch.shape[1]] = patch
    return whole


@pytest.mark.parametrize(("objects", "count"), [((1, 1), 25), ((5, 8), 10)])
def test_boxes_are_tight_around_the_visible_ink(monkeypatch, objects, count):
    """Flat ink of one grey for each digit on black: the boxes must be those of the grey pixels."""
    painted = []

    def paint_flat(canvas, rng, corner, ink, outline, *, outlined):
        cover = on_canvas(canvas.pixels.shape, corner, ink >= 0.5)
        painted.append(20.0 * (len(painted) + 1))
        canvas.pixels[cover > 0] = painted[-1]
        return cover

    monkeypatch.setattr(Canvas, "paint_digit", paint_flat)
    monkeypatch.setattr(Canvas, "add_patch", lambda *arguments: None)
    monkeypatch.setattr(images, "random_crop", lambda rng, name, height, width: np.zeros((height, width, 3)))
    for index in range(count):
        painted.clear()
        made = make_image("train", 0, index, objects=objects)
        assert len(painted) == len(made.boxes) >= objects[0]
        for grey, box in zip(painted, made.boxes, strict=True):
            y, x = np.nonzero((made.image == grey).all(2))
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_real_ink_fills_its_box_and_stands_out(monkeypatch):
    """The canvas before and after a digit is painted: it changes at the box's four edges, and visibly."""
    paint, steps = Canvas.paint_digit, []

    def spy(canvas, rng, corner, ink, outline, *, outlined):
        before = canvas.pixels.copy()
        cover = paint(canvas, rng, corner, ink, outline, outlined=outlined)
        steps.append((before, canvas.pixels.copy(), on_canvas(before.shape, corner, ink), outline.shape, corner))
        return cover

    monkeypatch.setattr(Canvas, "paint_digit", spy)
    monkeypatch.setattr(Canvas, "add_patch", lambda *arguments: None)
    for index in range(40):
        steps.clear()
        made = make_image("test", 0, index)
        before, after, ink, (h, w), (y, x) = steps[0]
        background = before[y : y + h, x : x + w] @ compositing.LUMA
        contrast = abs(float((after[ink > 0.9] @ compositing.LUMA).mean()) - float(background.mean()))
        assert contrast >= 45, (index, contrast)
        changed = np.abs(after - before).max(2) > 2
        x1, y1, x2, y2 = made.boxes[0].astype(int)
        edges = changed[y1, x1:x2], changed[y2 - 1, x1:x2], changed[y1:y2, x1], changed[y1:y2, x2 - 1]
        assert all(edge.any() for edge in edges), index
        assert not ink[:y1].max(initial=0) >= 0.5 and not ink[y2:].max(initial=0) >= 0.5
        outside = changed.copy()
        outside[y : y + h, x : x + w] = False
        assert not outside.any()


def test_later_digits_hide_little_of_a_digit(monkeypatch):
    canvases = []
    monkeypatch.setattr(images, "Canvas", lambda *arguments: canvases.append(Canvas(*arguments)) or canvases[-1])
    for index in range(16):
        make_image("train", 0, index, objects=(6, 8))
    hidden = [1.0 - digit.visible.sum() / digit.ink for canvas in canvases for digit in canvas.digits]
    assert 0.05 < max(hidden) <= 0.30 + 1e-9


def test_patches_hide_little_of_a_digit(monkeypatch):
    """However many patches are added, they cover less than 15 % of the ink."""
    hidden = []
    for seed in range(5):
        rng = np.random.Generator(np.random.PCG64(seed))
        canvas = Canvas(np.zeros((130, 150, 3)), "test", ("camera.png",))
        canvas.add_digit(rng, 40.0, 80.0)
        canvas.photographs = ("chelsea.png",)
        before = canvas.pixels.copy()
        for _ in range(60):
            canvas.add_patch(rng, 26)
        assert not np.array_equal(canvas.pixels, before)
        hidden.append(1.0 - canvas.digits[0].visible.sum() / canvas.digits[0].ink)
    assert 0.05 < max(hidden) < 0.15


def read_split(folder, split):
    coco = json.loads((folder / f"{split}.json").read_text())
    files = sorted(path.relative_to(folder).as_posix() for path in (folder / split).rglob("*.png"))
    return coco, files


def test_written_files_agree_with_the_json(tmp_path):
    write_dataset(tmp_path, "validation", 6, seed=2, progress=False)
    coco, files = read_split(tmp_path, "validation")
    assert [category["name"] for category in coco["categories"]] == [str(i) for i in range(10)]
    assert sorted(image["file_name"] for image in coco["images"]) == files and len(files) == 6
    assert [note["id"] for note in coco["annotations"]] == list(range(1, 7))
    by_image = {note["image_id"]: note for note in coco["annotations"]}
    for image in coco["images"]:
        made = make_image("validation", 2, image["id"])
        with Image.open(tmp_path / image["file_name"]) as png:
            assert png.size == (image["width"], image["height"])
            assert np.array_equal(np.asarray(png), made.image)
        label = made.labels[0]
        assert image["file_name"] == f"validation/{label}/{image['id']:05d}.png"
        note, (x1, y1, x2, y2) = by_image[image["id"]], made.boxes[0]
        assert note["category_id"] == label and note["bbox"] == [x1, y1, x2 - x1, y2 - y1]
        assert note["area"] == (x2 - x1) * (y2 - y1) and note["iscrowd"] == 0


def test_several_objects_lie_in_one_folder(tmp_path):
    write_dataset(tmp_path, "test", 6, objects=(0, 4), progress=False)
    coco, files = read_split(tmp_path, "test")
    assert files == [f"test/{index:05d}.png" for index in range(6)]
    for index in range(6):
        made = make_image("test", 0, index, objects=(0, 4))
        notes = [note for note in coco["annotations"] if note["image_id"] == index]
        assert [note["category_id"] for note in notes] == made.labels.tolist()
        assert [note["bbox"][:2] for note in notes] == made.boxes[:, :2].tolist()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_run_continues(tmp_path, monkeypatch):
    write_dataset(tmp_path / "whole", "train", 8, progress=False)

    def killed(split, seed, index, **options):
        if index == 5:
            raise KeyboardInterrupt
        return make_image(split, seed, index, **options)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "make_image", killed)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(tmp_path / "killed", "train", 8, progress=False)
    assert not (tmp_path / "killed" / "train.json").exists()
    early = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.png")}
    assert len(early) == 5
    write_dataset(tmp_path / "killed", "train", 8, progress=False)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in early} == early
    write_dataset(tmp_path / "killed", "train", 8, progress=False)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_partial_file_of_a_killed_run_is_ignored(tmp_path):
    write_dataset(tmp_path / "whole", "test", 2, progress=False)
    folder = tmp_path / "again" / "test"
    folder.mkdir(parents=True)
    (folder / ".part-00000.png").write_bytes(b"half")
    write_dataset(tmp_path / "again", "test", 2, progress=False)
    expected = contents(tmp_path / "whole")
    assert {path: data for path, data in contents(tmp_path / "again").items() if path in expected} == expected


def test_a_folder_with_other_images_is_refused(tmp_path):
    write_dataset(tmp_path, "test", 3, progress=False)
    for options in ({"seed": 1}, {"objects": (0, 2)}):
        with pytest.raises(InputError, match="empty folder"):
            write_dataset(tmp_path, "test", 3, progress=False, **options)
    with pytest.raises(InputError, match="not one of the 2 images"):
        write_dataset(tmp_path, "test", 2, progress=False)
    damaged = next(tmp_path.rglob("00001.png"))
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.raises(InputError, match=r"00001\.png"):
        write_dataset(tmp_path, "test", 3, progress=False)


def test_workers_write_the_same_files(tmp_path):
    write_dataset(tmp_path / "one", "test", 3, progress=False)
    write_dataset(tmp_path / "two", "test", 3, progress=False, num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("package", ["mlxtend", "skimage"])
def test_a_missing_package_is_reported(tmp_path, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    sources.mnist_digits.cache_clear()
    sources.photograph.cache_clear()
    with pytest.raises(InputError, match=rf'synthetic images need {package}: pip install "overfeat\[scenes\]"'):
        write_dataset(tmp_path / "none", "test", 1, progress=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"split": "dev"}, "split must be one of train, validation, test, not 'dev'"),
        ({"count": 0}, "count must be 1 or more, not 0"),
        ({"num_workers": 0}, "num_workers must be 1 or more, not 0"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"objects": (3, 2)}, "objects must be .*, not 3 2"),
        ({"objects": (0, 11)}, "objects must be .*, not 0 11"),
        ({"digits": (3, 10)}, "digits must be .*, not 3 10"),
        ({"digits": ()}, "digits must be one or more of 0 to 9, not none"),
    ],
)
def test_bad_values_are_refused(tmp_path, change, words):
    arguments = {"split": "test", "count": 1, "progress": False, **change}
    with pytest.raises(InputError, match=words):
        write_dataset(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_negative_index_is_refused():
    with pytest.raises(InputError, match="index must be 0 or more, not -1"):
        make_image("test", 0, -1)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match="taken"):
        write_dataset(tmp_path / "taken", "test", 1, progress=False)


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
    assert "images" in out.err  # the progress bar
