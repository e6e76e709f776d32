"""Runs on large images that a kill or a full disk ends: they continue at the block."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import killed_runs
import numpy as np
import pytest
import torch
import zarr
from killed_runs import BLOCK, OPTIONS
from large_files import picture, write_pyramid

import overfeat
from overfeat.cli.assets import ASSETS, SHIPPED_WEIGHTS
from overfeat.cli.main import main
from overfeat.data.images import read_image
from overfeat.data.resize import resize
from overfeat.errors import InputError, WriteError
from overfeat.large import blocks, detect, score_maps
from overfeat.large.score_maps import write_score_maps

IMAGE = picture(150, 170)


def scene():
    """Digits, uint8 [300, 450, 3]."""
    paths = sorted((ASSETS / "multi-object" / "test").glob("*.png"))[:6]
    images = [resize(read_image(path)[None], (150, 150))[0] for path in paths]
    rows = [torch.cat(images[:3], dim=2), torch.cat(images[3:], dim=2)]
    return torch.cat(rows, dim=1).permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a process that was killed in the midst of maps and of a detection."""
    folder = tmp_path_factory.mktemp("killed")
    names = ("slide.tif", "heat.zarr", "scene.tif", "out")
    write_pyramid(folder / "slide.tif", IMAGE, levels=1, tile=64)
    write_pyramid(folder / "scene.tif", scene(), levels=2, tile=64)
    command = [sys.executable, killed_runs.__file__, *(folder / name for name in names)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(WriteError, match="another process is writing these maps; wait until it has ended"):
            write(folder / "slide.tif", folder / "heat.zarr")
        process.communicate("\n")
    assert process.returncode == -signal.SIGKILL
    return folder


def write(file: Path, heat: Path, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", BLOCK)
        write_score_maps(overfeat.load(SHIPPED_WEIGHTS), file, heat, **OPTIONS | options)


def check_continued(file: Path, heat: Path, done: int):
    """A second run evaluates the blocks that are missing, to the same maps."""
    with pytest.raises(InputError, match=r"blocks of another image, net or settings; delete it, or write to"):
        write(file, heat, flip=False)
    evaluated = []
    with pytest.MonkeyPatch.context() as patch:
        own = score_maps.score_block
        patch.setattr(score_maps, "score_block", lambda *a, **k: (evaluated.append(a[2].number), own(*a, **k)))
        write(file, heat)
    maps = overfeat.score_maps(overfeat.load(SHIPPED_WEIGHTS), torch.from_numpy(IMAGE).permute(2, 0, 1), **OPTIONS)
    group = zarr.open_group(heat, mode="r")
    for number, expected in enumerate(maps):
        whole = expected.scores[0].numpy()[..., :: -1 if expected.grid.flipped else 1]
        np.testing.assert_allclose(group[f"{number}/0"][:], whole, atol=1e-6)
    assert len(maps) == 2 and evaluated == list(range(done, 18))
    assert not heat.with_name(".blocks-heat.zarr").exists()


def test_maps_of_a_killed_process(killed):
    done = list((killed / ".blocks-heat.zarr").glob("*.safetensors"))
    assert len(done) == killed_runs.MAPS and not (killed / "heat.zarr").exists()
    check_continued(killed / "slide.tif", killed / "heat.zarr", len(done))


def test_detections_of_a_killed_process(killed, monkeypatch, capsys):
    monkeypatch.setattr(blocks, "BLOCK", 150)
    command = ["detect", str(killed / "scene.tif"), "--scales", "0.8", "-o"]
    done = sorted((killed / "out" / ".blocks" / "scene.tif").glob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in done]
    with monkeypatch.context() as patch:
        patch.setattr("overfeat.cli.large.remove_blocks", lambda out, name: None)
        assert main([*command, str(killed / "out")]) == 0
    assert len(done) == killed_runs.CANDIDATES
    assert [path.stat().st_mtime_ns for path in done] == times, "none is evaluated again"
    assert main([*command, str(killed / "whole")]) == 0
    whole, continued = (json.loads((killed / name / "coco.json").read_bytes()) for name in ("whole", "out"))
    assert whole == continued and len(whole) > 10


def test_a_full_disk_is_one_clear_error_and_keeps_the_blocks(tmp_path, monkeypatch):
    file, heat = tmp_path / "slide.tif", tmp_path / "heat.zarr"
    write_pyramid(file, IMAGE, levels=1, tile=64)
    limit, evaluate, done = resource.getrlimit(resource.RLIMIT_FSIZE), score_maps.score_block, []

    def until_the_third(*arguments, **options):
        if len(done) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        evaluate(*arguments, **options)
        done.append(arguments[2].number)

    with monkeypatch.context() as patch:
        patch.setattr(score_maps, "score_block", until_the_third)
        try:
            with pytest.raises(WriteError, match=r"maps\.zarr/0: cannot be written \(File too large\)") as error:
                write(file, heat)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    remedy = "free space, or choose another folder; a second run continues after the blocks that are done"
    assert str(error.value).endswith(remedy)
    assert len(list((tmp_path / ".blocks-heat.zarr").glob("*.safetensors"))) == len(done) == 3
    check_continued(file, heat, 3)


def test_detection_on_a_full_disk_loses_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(blocks, "BLOCK", 150)
    write_pyramid(tmp_path / "scene.tif", scene(), levels=2, tile=64)
    limit, save, done = resource.getrlimit(resource.RLIMIT_FSIZE), detect.save_candidates, []

    def until_the_third(*arguments):
        if len(done) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limit[1]))
        save(*arguments)
        done.append(arguments[0].name)

    command = ["detect", str(tmp_path / "scene.tif"), "--scales", "0.8", "-o"]
    with monkeypatch.context() as patch:
        patch.setattr(detect, "save_candidates", until_the_third)
        try:
            assert main([*command, str(tmp_path / "out")]) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "00000002.safetensors: cannot be written (" in last and "File too large" in last
    assert last.endswith("; check the folder, its permissions and the free space")
    kept = [path.name for path in (tmp_path / "out" / ".blocks" / "scene.tif").glob("*.safetensors")]
    assert sorted(kept) == done == ["00000000.safetensors", "00000001.safetensors"]
    assert main([*command, str(tmp_path / "out")]) == main([*command, str(tmp_path / "whole")]) == 0
    whole, continued = (json.loads((tmp_path / name / "coco.json").read_bytes()) for name in ("whole", "out"))
    assert whole == continued and len(whole) > 10
