"""Files and folders that read_image and list_images refuse or report, and limits of size."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from image_files import GRADIENT, error_of, saved
from PIL import Image

from overfeat.data.images import decode_image, list_images, read_image
from overfeat.data.resize import resize
from overfeat.errors import InputError


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


def test_a_header_that_names_more_bytes_than_the_file_has(tmp_path):
    boxes = struct.pack(">I4sI", 12, b"jP  ", 0x0D0A870A) + struct.pack(">I4sQ", 1, b"jp2h", 1 << 62)
    (tmp_path / "image.jp2").write_bytes(boxes)
    assert "damaged or cut short" in error_of(tmp_path / "image.jp2")


def test_line_breaks_and_control_characters_of_names_are_escaped(tmp_path):
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / "a\n\x1b[31m.png")
    assert str(caught.value) == f"{tmp_path}/a\\n\\x1b[31m.png: no such file; check the path"


def test_bytes_are_resized_to_one_pixel():
    image = torch.tensor([[0, 100], [200, 50], [3, 4]], dtype=torch.uint8).expand(1, 3, 3, 2).contiguous()
    assert resize(image, (1, 1)).dtype == torch.uint8
    assert resize(image, (1, 1)).flatten().tolist() == resize(image.float(), (1, 1)).round().flatten().tolist()


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
    names = (
        "b.PNG",
        "a.jpg",
        "c.Tiff",
        "d.jfif",
        "e.avif",
        ".hidden.png",
        ".part-d.png",
        "notes.txt",
        "more.txt",
        "npg",
    )
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "below" / "deeper").mkdir(parents=True)
    for name in ("e.png", "deeper/a.jp2"):
        (tmp_path / "below" / name).touch()
    saved(tmp_path, Image.fromarray(GRADIENT), "photograph", format="JPEG")
    flat = ["a.jpg", "b.PNG", "c.Tiff", "d.jfif", "e.avif", "photograph"]
    with pytest.warns(UserWarning) as caught:
        assert list_images(tmp_path) == [tmp_path / name for name in flat]
    folders = "the folders below, folder.png (`recursive` reads them)"
    assert [str(each.message) for each in caught] == [f"{tmp_path}: left out 2 .txt, 1 without suffix, {folders}"]
    with pytest.warns(UserWarning, match="left out 2 .txt, 1 without suffix$"):
        paths = list_images(tmp_path, recursive=True)
    assert paths == sorted(tmp_path / name for name in [*flat, "below/e.png", "below/deeper/a.jp2"])


def test_folders_that_are_not_read_are_reported(tmp_path, monkeypatch):
    saved(tmp_path, Image.fromarray(GRADIENT))
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.warns(UserWarning, match="left out the linked folders loop$"):
        assert list_images(tmp_path, recursive=True) == [tmp_path / "image.png"]

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        list_images(tmp_path)


def test_nothing_is_said_of_a_folder_of_images(tmp_path):
    saved(tmp_path, Image.fromarray(GRADIENT))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list_images(tmp_path)) == 1


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "a pipe, socket or device" in error_of(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert "symbolic links" in error_of(tmp_path / "loop.png")
    (tmp_path / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n%%EOF\n")
    assert "drawn, not stored as pixels; convert it to PNG" in error_of(tmp_path / "drawing.eps")
    with pytest.raises(InputError, match=r"no images in it, but 2 that are no files, 1 \.eps"):
        list_images(tmp_path)


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


def test_the_content_of_a_file_is_decoded_as_the_file_is(tmp_path):
    path = saved(tmp_path, Image.fromarray(GRADIENT))
    content = path.read_bytes()
    assert torch.equal(decode_image(content), read_image(path))
    for broken, words in [
        (b"", "empty"),
        (b"junk", "not an image"),
        (content[:40], "|"),
    ]:
        with pytest.raises(InputError, match=f"^the photograph: ({words})"):
            decode_image(broken, "the photograph")
    with pytest.raises(InputError, match="more than the limit of 3"):
        decode_image(content, max_pixels=3)
