"""Measurements of a device: what is stored, read and ignored."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from kernel_checks import DEVICE, INTERPRETED

from overfeat.kernels import cost_model, launch, skip_classifier, tune, tuned
from overfeat.kernels.plan import Tile
from overfeat.kernels.problem import Problem

CONSTANTS = replace(
    cost_model.defaults((9, 0), 132),
    efficiency={("forward", "16 bit", "im2col"): {9: 0.5, 1575: 2.0}, ("weight", "tf32", "direct"): {9: 0.25}},
    tiles={"16 bit": [(64, Tile(64, 64, 64, 4, 3)), (launch.ANY, Tile(64, 256, 64, 8, 3, programs=2))]},
)
GPU = torch.device("cuda", 0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    launch.clear_cache()
    yield tmp_path
    launch.clear_cache()


@pytest.fixture
def hopper(folder, monkeypatch):
    """A device that is there by its name and properties alone."""
    monkeypatch.setattr(tuned, "_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(launch, "_chip", lambda device: ((9, 0), 132))
    return GPU


def problem(positions):
    return Problem(((1, 15, 14 + positions),), 1024, 4096, (5, 5), 3, 3, torch.bfloat16, GPU)


def test_what_is_written_is_read(hopper, folder):
    assert tuned.read(hopper) is None, "without a warning"
    path = tuned.write(hopper, CONSTANTS)
    assert path == folder / "overfeat" / "kernels-NVIDIA-H200.json"
    assert tuned.read(hopper) == CONSTANTS


def test_choices_follow_the_measurement(hopper):
    before = launch.choose("forward", problem(1575))
    assert before.variant != "im2col" and before.tile.n == 256
    tuned.write(hopper, CONSTANTS)
    assert launch.choose("forward", problem(1575)) is before, "the file is read once"
    launch.clear_cache()
    after = launch.choose("forward", problem(1575))
    assert after.variant == "im2col"
    with launch.override(variant="direct"):
        direct = launch.choose("forward", problem(1575))
    assert direct.tile == Tile(64, 256, 64, 8, 3, 8, 2) and direct.num_programs == 264
    with launch.on_chip((9, 0), 132):
        assert launch.choose("forward", problem(1575)) == before, "a chip that is assumed has its defaults"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("flops"), lambda d: d["flops"].update(tf32=float("nan")), lambda d: d.update(bandwidth=0),
        lambda d: d.update(efficiency=[["forward", "tf32"]]), lambda d: d.update(tiles={"tf32": [[16, [48] * 7]]}),
        lambda d: d.update(tiles={"tf32": [[16, [16, 16, 16, 4, 2, 8, 1]]]}), lambda d: d.update(tiles=[1]),
        lambda d: d.update(multiprocessors=0.5), lambda d: d.update(bandwidth=10**400),
        lambda d: d.update(efficiency=[["forward", "tf32", "direct", [[0.5, 0.8]]]]),
        lambda d: d.update(tiles={"tf32": [[launch.ANY, [128, 128, 32, 8, 2.5, 8, 1]]]}),
        lambda d: d.update(tiles={"tf32": [[launch.ANY, [8, 128, 32, 8, 2, 8, 1]]]}),
        lambda d: d["measured on"].update(torch="1.0"), lambda d: d.pop("measured on"), None,
    ],
)  # fmt: skip
def test_damaged_and_foreign_files_are_ignored_with_one_warning(hopper, change):
    path = tuned.write(hopper, CONSTANTS)
    stored = json.loads(path.read_text())
    if change:
        change(stored)
    path.write_text(json.dumps(stored) if change else "{")
    with pytest.warns(UserWarning, match="bench --tune") as warned:
        plans = [launch.choose("forward", problem(positions)) for positions in (9, 54, 1575)]
    assert len(warned) == 1
    with launch.on_chip((9, 0), 132):
        assert plans == [launch.choose("forward", problem(positions)) for positions in (9, 54, 1575)]


LAYER = tune.Layer(
    channels=16, outputs=16, kernel=3, pool=2, tiled=(((1, 7, 8),),), others=(((1, 6, 6),),), peaks=(16, 64)
)


@pytest.mark.skipif(not INTERPRETED, reason="a dry run")
def test_a_dry_run_measures_everything(folder, monkeypatch):
    """With a variant whose results are wrong."""
    lines, forward = [], skip_classifier.forward

    def wrong(*arguments):
        return forward(*arguments) * (2 if launch.active_override().variant == "descriptor" else 1)

    monkeypatch.setattr(skip_classifier, "forward", wrong)
    path = tune.tune(DEVICE, progress=lines.append, layer=LAYER, kinds=[(torch.float32, "highest")], timer=_timer)
    stored = tuned.read(DEVICE)
    assert path.is_file() and stored.bandwidth == 2 * 64 / 1e-3
    measured = {(gemm, variant) for gemm, _, variant in stored.efficiency}
    assert measured == {(gemm, v) for gemm in ("forward", "weight") for v in cost_model.VARIANTS[gemm]}
    assert all(len(known) == 2 for known in stored.efficiency.values())
    assert list(stored.tiles) == ["ieee"] or list(stored.tiles) == ["ieee, fused"]
    assert len([line for line in lines if "WRONG" in line]) == 2
    never = {(gemm, v) for (gemm, _, v), known in stored.efficiency.items() if max(known.values()) == tune.NEVER}
    assert never == {("forward", "descriptor")}


@pytest.mark.skipif(not INTERPRETED, reason="a dry run")
def test_no_measurement_starts_without_time(folder):
    tune.tune(DEVICE, 0.0, progress=lambda line: None, layer=LAYER, kinds=[(torch.float32, "highest")], timer=_timer)
    with warnings.catch_warnings(action="error"):
        assert not tuned.read(DEVICE).efficiency and not tuned.read(DEVICE).tiles


def _timer(run):
    run()
    return 1e-3
