"""read_image on real files of every mode, and on files that are not images."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from overfeat.data.images import list_images, read_image
from overfeat.errors import InputError

GRADIENT = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def rows(tensor):
    """[3, H, W] to nested lists of RGB triples."""
    return tensor.permute(1, 2, 0).tolist()


def error_of(path, **options):
    """The error message, checked to be one line that names the file."""
    with pytest.raises(InputError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "; " in message
    return message


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.webp"])
def test_colour_is_read_exactly(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    image = read_image(saved(tmp_path, Image.fromarray(GRADIENT), name, **options))
    assert image.dtype == torch.uint8 and image.shape == (3, 6, 4) and image.is_contiguous()
    assert np.array_equal(image.permute(1, 2, 0).numpy(), GRADIENT)


def test_a_string_path_and_a_name_without_suffix(tmp_path):
    path = saved(tmp_path, Image.fromarray(GRADIENT), "photo", format="PNG")
    assert np.array_equal(read_image(str(path)).permute(1, 2, 0).numpy(), GRADIENT)


def test_grey_is_repeated(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[0, 90, 255]], np.uint8)))
    assert rows(read_image(path)) == [[[0] * 3, [90] * 3, [255] * 3]]


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 128, 129, 257 * 100, 257 * 200 + 128, 65535]], np.uint16)
    image = read_image(saved(tmp_path, Image.fromarray(values), name))
    assert rows(image) == [[[v] * 3 for v in (0, 0, 1, 100, 200, 255)]]


def test_16_bit_pgm(tmp_path):
    path = tmp_path / "grey16.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 257 * 40, 65535))
    assert rows(read_image(path)) == [[[40] * 3, [255] * 3]]


def test_one_bit(tmp_path):
    image = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    assert rows(read_image(saved(tmp_path, image))) == [[[0] * 3, [255] * 3, [0] * 3]]


def palette_image():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 8, 9])
    image.putdata([0, 1, 2])
    return image


def test_palette(tmp_path):
    assert rows(read_image(saved(tmp_path, palette_image()))) == [[[10, 20, 30], [200, 100, 0], [7, 8, 9]]]


@pytest.mark.parametrize("name", ["p.png", "p.gif"])
def test_transparent_palette_entry_is_white(tmp_path, name):
    path = saved(tmp_path, palette_image(), name, transparency=1)
    assert rows(read_image(path)) == [[[10, 20, 30], [255, 255, 255], [7, 8, 9]]]


def test_alpha_over_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 51]]], np.uint8)
    image = read_image(saved(tmp_path, Image.fromarray(pixels)))
    assert rows(image) == [[[10, 20, 30], [255, 255, 255], [204, 224, 255]]]


def test_grey_alpha_over_white(tmp_path):
    pixels = np.array([[[50, 255], [50, 0], [0, 102]]], np.uint8)
    image = read_image(saved(tmp_path, Image.fromarray(pixels, "LA")))
    assert rows(image) == [[[50] * 3, [255] * 3, [153] * 3]]


def test_transparent_colour_key(tmp_path):
    path = saved(tmp_path, Image.fromarray(GRADIENT[:1, :2].copy()), transparency=(9, 12, 15))
    assert rows(read_image(path)) == [[[0, 3, 6], [255, 255, 255]]]


@pytest.mark.parametrize("name", ["c.tif", "c.jpg"])
def test_cmyk(tmp_path, name):
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    options = {"quality": 100} if name.endswith("jpg") else {}
    red, green, blue = read_image(saved(tmp_path, image, name, **options))
    assert red.max() <= 3 and green.min() >= 252 and blue.min() >= 252


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright after a quarter turn clockwise
    path = saved(tmp_path, Image.fromarray(GRADIENT), exif=exif)
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), np.rot90(GRADIENT, -1))


def test_exif_rotation_of_a_jpeg(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 8
    image = read_image(saved(tmp_path, Image.fromarray(pixels), "turned.jpg", exif=exif, quality=95))
    assert image.shape == (3, 32, 16) and image[:, :14].min() > 240 and image[:, 18:].max() < 15


@pytest.mark.parametrize("name", ["m.gif", "m.tif"])
def test_first_frame(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    assert rows(read_image(path)) == [[[255, 0, 0]] * 4] * 4


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_without_a_range_are_refused(tmp_path, mode):
    path = saved(tmp_path, Image.new(mode, (4, 4), 1), "numbers.tif")
    assert "8 or 16 bits" in error_of(path)


def test_missing_file(tmp_path):
    assert "no such file" in error_of(tmp_path / "none.png")


def test_folder(tmp_path):
    assert "folder" in error_of(tmp_path)


def test_empty_file(tmp_path):
    (tmp_path / "empty.png").touch()
    assert "empty" in error_of(tmp_path / "empty.png")


def test_text_named_jpg(tmp_path):
    (tmp_path / "notes.jpg").write_text("this is no photograph\n" * 20)
    assert "not an image" in error_of(tmp_path / "notes.jpg")


@pytest.mark.parametrize("name", ["t.jpg", "t.png", "t.gif", "t.webp", "t.tif", "t.bmp"])
def test_truncated_file(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "damaged or cut short" in error_of(path) or "not an image" in error_of(path)


def test_damaged_png(tmp_path):
    path = saved(tmp_path, Image.fromarray(GRADIENT))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in error_of(path)


def bomb(path, width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("side", [10_001, 50_000])
def test_too_many_pixels_are_refused_from_the_header(tmp_path, side):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = error_of(bomb(tmp_path / "bomb.png", side, side))
    assert f"{side}x{side}" in message and "100,000,000" in message


def test_the_limit_is_max_pixels_not_pillows(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(GRADIENT))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path, max_pixels=24).shape == (3, 6, 4)
    assert Image.MAX_IMAGE_PIXELS == 5
    assert "limit of 23" in error_of(path, max_pixels=23)


def test_list_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.Tiff", ".hidden.png", ".part-d.png", "notes.txt", "npg"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "e.png").touch()
    assert list_images(tmp_path) == [tmp_path / name for name in ("a.jpg", "b.PNG", "c.Tiff")]


def test_list_images_refuses(tmp_path):
    (tmp_path / "a.txt").touch()
    for path, words in [
        (tmp_path, "no images"),
        (tmp_path / "none", "no such folder"),
        (tmp_path / "a.txt", "a file"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            list_images(path)
        assert str(path) in str(caught.value)
