"""`overfeat features`: what it writes over, one bad image of many, memory."""

import numpy as np
import pytest
import torch
from PIL import Image

from overfeat import load
from overfeat.cli.assets import ASSETS, SHIPPED_WEIGHTS
from overfeat.cli.main import main
from overfeat.data.images import read_image


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    scene = Image.open(ASSETS / "scenes" / "00012.png").convert("RGB")
    for name, size in {"a.png": (90, 80), "b.png": (400, 300), "c.png": (80, 90)}.items():
        scene.resize(size).save(folder / name)
    return folder


def run(*arguments):
    return main(["features", "--weights", str(SHIPPED_WEIGHTS), *map(str, arguments)])


@pytest.mark.parametrize("file_format", ["npz", "safetensors", "text"])
def test_only_features_are_written_over(photos, tmp_path, capsys, file_format):
    target = tmp_path / "precious.jpg"
    Image.new("RGB", (20, 20)).save(target)
    photo = target.read_bytes()
    command = [photos / "a.png", "-o", target, "--format", file_format]
    assert run(*command) == 1
    message = f"{target}: exists and holds no features; name another file, or --overwrite it"
    assert message in capsys.readouterr().err and target.read_bytes() == photo
    assert run(*command, "--overwrite") == 0 and target.read_bytes() != photo
    first = target.read_bytes()
    for layer in ("5", "19"):  # of negative and infinite numbers, too
        assert run(*command, "-L", layer) == 0
    assert target.read_bytes() != first


@pytest.mark.parametrize("text", ["1 2 3\n", "1 2 3", "1 1 2\n5\n", "0 2 3\n"])
def test_numbers_that_are_no_features_are_not_written_over(photos, tmp_path, text):
    (tmp_path / "f").write_text(text)
    assert run(photos / "a.png", "-o", tmp_path / "f", "--format", "text") == 1
    assert (tmp_path / "f").read_text() == text


def test_features_of_classify_write_over_nothing(photos, tmp_path, capsys):
    (tmp_path / "f").write_text("1 2 3 of my own\n")
    command = ["classify", "-f", "--weights", str(SHIPPED_WEIGHTS), str(photos / "a.png"), "-o", str(tmp_path / "f")]
    assert main(command) == 1
    assert capsys.readouterr().err.endswith("exists and holds no features; name another file\n")


def test_a_default_target_is_checked(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "a.png.npz", mine=np.zeros(3))
    assert run(photos / "a.png") == 1
    assert "a.png.npz: exists and holds no features" in capsys.readouterr().err
    assert list(np.load(tmp_path / "a.png.npz")) == ["mine"]


def test_one_bad_image_of_a_folder(photos, tmp_path, capsys):
    """Too many pixels, cut short, a name of 255 bytes: the others have their features."""
    (photos / "d.png").write_bytes((photos / "a.png").read_bytes()[:500])
    (photos / ("e" * 251 + ".png")).write_bytes((photos / "a.png").read_bytes())
    assert run(photos, "-o", tmp_path / "out", "--max-pixels", "10000") == 1
    printed = capsys.readouterr().err
    assert "2 of 5 images failed" in printed
    assert "b.png: 300x400 pixels, more than the limit of 10,000; --max-pixels allows more" in printed
    assert len(list((tmp_path / "out").glob("*.npz"))) == 3


def test_memory_that_does_not_suffice_for_one_image(photos, tmp_path, capsys, monkeypatch):
    def read(net, path, max_pixels):
        if path.name == "b.png":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return read_image(path)

    monkeypatch.setattr("overfeat.cli.features.read_enlarged", read)
    assert run(photos, "-o", tmp_path / "out") == 1
    printed = capsys.readouterr().err
    assert "1 of 3 images failed" in printed and "b.png: out of memory (" in printed
    assert "lower --memory-limit or --max-pixels; for a GPU's memory, try --device cpu" in printed
    assert len(list((tmp_path / "out").glob("*.npz"))) == 2
    assert run(photos / "b.png", "-o", tmp_path / "b.npz") == 1
    assert "out of memory (" in capsys.readouterr().err


def test_a_memory_limit_gives_the_same_features(photos, tmp_path, capsys):
    image = photos / "b.png"
    assert run(image, "-L", "8", "-o", tmp_path / "b.npz", "--memory-limit", "1") == 0
    with torch.no_grad():
        expected = load(SHIPPED_WEIGHTS).layer_output(read_image(image)[None], 8)[0].numpy()
    np.testing.assert_allclose(np.load(tmp_path / "b.npz")["features"], expected, rtol=1e-4, atol=1e-4)
