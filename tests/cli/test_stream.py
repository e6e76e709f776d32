"""classify -p and features -p: PPM images from standard input."""

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from overfeat.cli.assets import ASSETS
from overfeat.cli.main import main
from overfeat.cli.stream import ppm_images
from overfeat.errors import InputError

NET = ["--weights", str(ASSETS / "small.safetensors"), "--device", "cpu"]


def ppm(image, maximum=255):
    data = image.astype(">u2" if maximum > 255 else np.uint8).tobytes()
    return b"P6\n# a comment\n%d %d\n%d\n" % (image.shape[1], image.shape[0], maximum) + data


def test_images_of_a_stream():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (5, 7, 3)), rng.integers(0, 65536, (4, 3, 3))
    low = rng.integers(0, 16, (2, 2, 3))
    stream = io.BytesIO(ppm(first) + ppm(second, 65535) + b"\n" + ppm(low, 15))
    images = list(ppm_images(stream, 1000))
    for image, expected in zip(images, (first, second >> 8, low * 17), strict=True):
        assert image.dtype == torch.uint8
        np.testing.assert_array_equal(image.permute(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xd8\xff\xe0 jpeg", "image 1 starts with .*, and is no PPM"),
        (b"P6 3 x 255\n", "image 1 has no width, height and highest value but b'3 x 255'"),
        (b"P6", "image 1 has no width, height and highest value but b''"),
        (b"P6 1 1 255\n123P5", "image 2 starts with b'P5', and is no PPM"),
        (b"P6 2 2 255\n12345", "image 1 ends after 5 bytes of its pixels"),
        (b"P6 2000 2000 255\n", "image 1: 2000x2000 px, more than --max-pixels 1000"),
    ],
)
def test_what_is_no_stream(data, message):
    with pytest.raises(InputError, match=message):
        list(ppm_images(io.BytesIO(data), 1000))


def test_each_image_is_answered_as_the_file_before_the_next(monkeypatch, capsys):
    scenes = sorted((ASSETS / "scenes").glob("*.png"))[:2]
    expected = []
    for scene in scenes:
        assert main(["classify", str(scene), "-n", "2", *NET]) == 0
        expected.append(capsys.readouterr().out)
    pipes = (os.pipe(), os.pipe())
    (source, images), (answers, sink) = ((open(r, "rb", 0), open(w, "wb")) for r, w in pipes)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(source)))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sink))  # keeps lines back until they are flushed
    with ThreadPoolExecutor(1) as pool, open(answers.fileno(), closefd=False) as lines:
        status = pool.submit(main, ["classify", "-p", "-n", "2", *NET])
        for scene, answer in zip(scenes, expected, strict=True):
            images.write(ppm(np.array(Image.open(scene).convert("RGB"))))
            images.flush()
            assert "".join(lines.readline() for _ in range(2)) == answer
        images.close()
        assert status.result() == 0


def test_features_of_a_stream(monkeypatch, capsys):
    scene = sorted((ASSETS / "scenes").glob("*.png"))[0]
    image = np.array(Image.open(scene).convert("RGB"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(ppm(image))))
    assert main(["features", "-p", *NET]) == 0
    streamed = capsys.readouterr().out
    assert main(["features", str(scene), "--format", "text", *NET]) == 0
    assert streamed == capsys.readouterr().out


def test_files_and_a_stream_exclude_each_other(capsys):
    for arguments in (["classify"], ["classify", "-p", "a.png"]):
        with pytest.raises(SystemExit):
            main(arguments)
    assert "-p reads images from standard input; name no files" in capsys.readouterr().err
    assert main(["classify", "-p", "-o", "out", *NET]) == 1
    assert "--out does not apply to -p; leave it out" in capsys.readouterr().err
