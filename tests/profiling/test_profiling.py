"""Stages and their times, the work that is counted, and `overfeat profile`."""

import json

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from overfeat import load, load_regressor, regions
from overfeat.cli.assets import ASSETS, SHIPPED_DETECTOR
from overfeat.cli.main import main
from overfeat.data.images import read_image
from overfeat.dense.grid import grids
from overfeat.models.flops import multiplications, work
from overfeat.profiling.peaks import ceilings
from overfeat.profiling.profile import profile
from overfeat.profiling.table import groups, table

SCENE = ASSETS / "scenes" / "00012.png"


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch):
    """Their size is of no matter here."""
    monkeypatch.setattr("overfeat.profiling.peaks.PRODUCTS", (64,))
    monkeypatch.setattr("overfeat.profiling.peaks.CONVOLUTIONS", ((8, 16, 3),))
    monkeypatch.setattr("overfeat.profiling.peaks.COPIED", 1 << 16)


def test_stages_run_as_if_they_were_not_there(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("overfeat.regions.time.perf_counter", lambda: next(now))
    assert regions.run("add", lambda a, b: a + b, 2, 3) == 5
    with regions.collect_timings(torch.device("cpu")) as watch:
        assert regions.run("add", lambda a, b: a + b, 2, 3) == 5
        regions.run("wait", lambda: (next(now), next(now)))
        regions.run("wait", lambda: next(now))
        with pytest.raises(ZeroDivisionError):
            regions.run("divide", lambda: 1 / 0)
    assert regions._watch is None
    assert watch.seconds() == {"add": 1, "wait": 5}


@pytest.mark.parametrize("name", ["thin fast", "thin accurate", "small"])
def test_multiplications_are_those_that_torch_counts(make_net, name):
    net = make_net(name, 7)
    window = net.architecture.window
    size = (window + 2 * net.architecture.stride(), window + net.architecture.stride())
    counted, places = multiplications(net.architecture, *size, net.num_classes, "coarse")
    assert places == 6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, *size))
    # The first full layer is an op of ours, of which that tool knows nothing.
    hidden, channels, kernel = net.fc_layers[0].out_channels, net.fc_layers[0].in_channels, net.architecture.kernel
    assert counted["first full layer"] == 6 * hidden * channels * kernel**2
    assert 2 * (sum(counted.values()) - counted["first full layer"]) == counter.get_total_flops()
    parts = work(net.architecture, *size, net.num_classes, "coarse")
    assert sum(parts[part] for part in ("features", "first", "rest")) == sum(counted.values())


def test_ceilings_are_rates():
    found = ceilings(torch.device("cpu"), repeats=1)
    assert set(found) == {"product", "convolution", "copy"} and min(found.values()) > 0


def test_times_of_a_classification(make_net):
    net = make_net("small", 5)
    net.flip = True
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    found = profile(net, image, [1, (60, 80)], repeats=2)
    assert [(entry["scaled"], entry["flipped"]) for entry in found["grids"]] == [
        (list(grid.scaled), grid.flipped) for grid in grids(net, (90, 120), [1, (60, 80)])
    ]
    convs = [f"conv {number}" for number in range(1, 7)]
    for entry in (*found["grids"], found["whole"]):
        names = list(entry["stages"])
        assert [name for name in names if name.startswith("conv")] == convs
        assert names[:2] == ["resize", "normalise"] and names[-3:] == ["other full layers", "scores", "other"]
        assert sum(stage["seconds"] for stage in entry["stages"].values()) <= 1.5 * entry["seconds"]
        assert entry["gflop"] == pytest.approx(sum(stage.get("gflop", 0) for stage in entry["stages"].values()))
        assert sum(groups(entry).values()) == pytest.approx(sum(s["seconds"] for s in entry["stages"].values()))
        assert entry["gflops"] == pytest.approx(entry["gflop"] / entry["seconds"])
        best = max(found["ceilings"]["gflops"].values())
        assert entry["fraction"] == pytest.approx(entry["gflops"] / best)
    assert found["whole"]["windows"] == sum(entry["windows"] for entry in found["grids"])
    lines = table(found).splitlines()
    assert lines[2].startswith("60x80 mirrored") or lines[4].startswith("60x80 mirrored")


def test_times_of_a_detection():
    """With boxes and merging, at the sizes that the detector was trained for."""
    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    image = read_image(ASSETS / "multi-object/test/00012.png")
    found = profile(net, image, regressor=regressor, repeats=1)
    assert len(found["grids"]) == len(net.scale_factors)
    assert {"boxes", "merge"} <= set(found["whole"]["stages"])
    # What is seen at half the resolution is counted: more than the places alone.
    assert net.context is not None
    alone = [work(net.architecture, *e["scaled"], net.num_classes, "fine") for e in found["grids"]]
    counted = sum(e[part] for e in alone for part in ("features", "first", "rest"))
    assert 2e-9 * counted < found["whole"]["gflop"] < 1.5 * 2e-9 * counted


def test_the_command_writes_numbers_a_trace_and_a_picture(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["profile", str(SCENE), "-o", str(out), "--repeats", "1", "--scales", "six:1,2", "--device", "cpu"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "all of it" in told and "images/s" in told and "first full layer" in told
    results = json.loads((out / "profile.json").read_text())
    assert len(results["grids"]) == 2 and results["net"] == "small" and "merge" in results["whole"]["stages"]
    names = {event.get("name") for event in json.loads((out / "trace.json").read_text())["traceEvents"]}
    assert {"conv 1", "first full layer", "merge"} <= names
    with Image.open(out / "profile.png") as picture:
        assert picture.width > 600


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (["missing.png"], "no such file"),
        ([str(SCENE), "--scales", "20x20"], "smaller than the small net's window"),
        ([str(SCENE), "--net", "fast", "--weights", "x.safetensors"], "leave --net out"),
    ],
)
def test_bad_settings(capsys, setting, words):
    assert main(["profile", *setting]) == 1
    assert words in capsys.readouterr().err


def test_someone_else_s_files_stay(tmp_path, capsys):
    (tmp_path / "profile.json").write_text("mine")
    assert main(["profile", str(SCENE), "-o", str(tmp_path)]) == 1
    assert "profile.json" in capsys.readouterr().err and (tmp_path / "profile.json").read_text() == "mine"
