"""Regions and their times, counted MACs, and `overfeat profile`."""

import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import overfeat
from overfeat import load, load_regressor
from overfeat.cli.assets import ASSETS, SHIPPED_DETECTOR, SHIPPED_WEIGHTS
from overfeat.cli.main import main
from overfeat.data.images import read_image
from overfeat.dense.config import DenseConfig
from overfeat.dense.grid import grids
from overfeat.densify.convert import densify
from overfeat.models.flops import region_macs, stage_macs
from overfeat.ops.backends.winograd import record_saved
from overfeat.profiling.measure import machine
from overfeat.profiling.peaks import measured_peaks
from overfeat.profiling.profile import evaluation_macs, profile
from overfeat.profiling.table import stage_seconds, table
from overfeat.regions import collect_timings, region

SCENE = ASSETS / "scenes" / "00012.png"


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch):
    """Tiny matrices and copies; the rates do not matter here."""
    monkeypatch.setattr("overfeat.profiling.peaks.GEMM_SIZES", (64,))
    monkeypatch.setattr("overfeat.profiling.peaks.CONVOLUTIONS", ((8, 16, 3),))
    monkeypatch.setattr("overfeat.profiling.peaks.COPY_BYTES", 1 << 16)


def test_regions_are_timed_where_that_is_asked_for(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("overfeat.regions.time.perf_counter", lambda: next(now))
    with region("add"):
        pass
    with collect_timings(torch.device("cpu")) as timer:
        with region("add"):
            pass
        with region("wait"):
            next(now), next(now)
        with region("wait"):
            next(now)
        with pytest.raises(ZeroDivisionError), region("divide"):
            raise ZeroDivisionError
    with region("wait"):
        pass
    assert timer.seconds() == {"add": 1, "wait": 5}


def test_threads_time_their_own_regions():
    def timed(name: str) -> dict[str, float]:
        with collect_timings(torch.device("cpu")) as timer:
            started.wait()
            with region(name):
                pass
            finished.wait()
        return timer.seconds()

    started, finished = threading.Barrier(2), threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        assert [list(times) for times in pool.map(timed, ["one", "other"])] == [["one"], ["other"]]


def test_regions_do_not_break_compiled_functions():
    def twice(x: torch.Tensor) -> torch.Tensor:
        with region("double"):
            return 2 * x

    assert torch.compile(twice, backend="eager", fullgraph=True)(torch.ones(1)).item() == 2


@pytest.mark.parametrize("name", ["thin fast", "thin accurate", "small"])
def test_macs_equal_those_that_torch_counts(make_net, name):
    net = make_net(name, 7)
    window = net.architecture.window
    size = (window + 2 * net.architecture.stride(), window + net.architecture.stride())
    counted, positions = region_macs(net.architecture, *size, net.num_classes, "coarse")
    assert positions == 6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, *size))
    # The first full layer is a custom op, which FlopCounterMode does not count.
    hidden, channels, kernel = net.fc_layers[0].out_channels, net.fc_layers[0].in_channels, net.architecture.kernel
    assert counted["first full layer"] == 6 * hidden * channels * kernel**2
    assert 2 * (sum(counted.values()) - counted["first full layer"]) == counter.get_total_flops()
    stages = stage_macs(net.architecture, *size, net.num_classes, "coarse")
    assert sum(stages[stage] for stage in ("features", "first", "rest")) == sum(counted.values())


def test_measured_peaks_are_rates():
    results = measured_peaks(torch.device("cpu"), repeats=1)
    assert set(results) == {"gemm", "convolution", "copy"} and min(results.values()) > 0


def test_times_of_a_classification(make_net):
    net = make_net("small", 5)
    net.flip = True
    scales = [0.9, (60, 80)]
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    results = profile(net, image, scales=scales, repeats=2)
    assert [(entry["scaled"], entry["flipped"]) for entry in results["grids"]] == [
        (list(grid.scaled), grid.flipped) for grid in grids(net, (90, 120), DenseConfig(scales))
    ]
    convs = [f"conv {number}" for number in range(1, 7)]
    for entry in (*results["grids"], results["whole"]):
        names = list(entry["regions"])
        assert [name for name in names if name.startswith("conv")] == convs
        assert names[:2] == ["resize", "normalise"] and names[-3:] == ["other full layers", "scores", "other"]
        assert sum(timed["seconds"] for timed in entry["regions"].values()) <= 1.5 * entry["seconds"]
        assert entry["gflop"] == pytest.approx(sum(timed.get("gflop", 0) for timed in entry["regions"].values()))
        assert sum(stage_seconds(entry).values()) == pytest.approx(sum(s["seconds"] for s in entry["regions"].values()))
        assert entry["gflops"] == pytest.approx(entry["gflop"] / entry["seconds"])
        best = max(results["measured_peaks"]["gflops"].values())
        assert entry["fraction"] == pytest.approx(entry["gflops"] / best)
    assert results["whole"]["windows"] == sum(entry["windows"] for entry in results["grids"])
    lines = table(results).splitlines()
    assert lines[2].startswith("60x80 mirrored") or lines[4].startswith("60x80 mirrored")


def test_times_of_a_detection():
    """With boxes and merging, at the detector's own scale factors."""
    net, regressor = load(SHIPPED_DETECTOR), load_regressor(SHIPPED_DETECTOR)
    image = read_image(ASSETS / "multi-object/test/00012.png")
    results = profile(net, image, regressor=regressor, repeats=1)
    assert len(results["grids"]) == len(net.scale_factors)
    assert {"boxes", "merge"} <= set(results["whole"]["regions"])
    # Context at half the resolution is counted: more than the positions alone.
    assert net.context is not None
    alone = [stage_macs(net.architecture, *e["scaled"], net.num_classes, "fine") for e in results["grids"]]
    counted = sum(e[stage] for e in alone for stage in ("features", "first", "rest"))
    assert 2e-9 * counted < results["whole"]["gflop"] < 1.5 * 2e-9 * counted


def test_convolutions_by_minimal_filtering_count_their_own_multiplications(make_net, monkeypatch):
    """As the backends of overfeat.fast record them, in whichever region they run."""
    direct = profile(make_net("small", 5), torch.zeros(3, 90, 120), scales=[1.0], flip=False, repeats=1)["whole"]
    convolve = overfeat.models.overfeat.OverFeat.tile_features

    def saving(net, *arguments, **options):
        with region("conv 2"):
            record_saved(1000)
            record_saved(500)
        return convolve(net, *arguments, **options)

    monkeypatch.setattr("overfeat.models.overfeat.OverFeat.tile_features", saving)
    filtered = profile(make_net("small", 5), torch.zeros(3, 90, 120), scales=[1.0], flip=False, repeats=1)["whole"]
    assert 1e9 * (direct["gflop"] - filtered["gflop"]) == pytest.approx(3000)
    lower = {name: timed.get("gflop", 0) < direct["regions"][name].get("gflop", 0)
             for name, timed in filtered["regions"].items()}  # fmt: skip
    assert [name for name, is_lower in lower.items() if is_lower] == ["conv 2"]


def test_the_border_is_counted(make_net):
    """With reach as much as of an image that is larger by the margin, and its context at half the resolution."""
    net = make_net("small")
    larger = evaluation_macs(net, grids(net, (94 + 48, 120 + 48), DenseConfig([1.0], True)))
    net.reach = 0.5
    own = grids(net, (94, 120), DenseConfig([1.0], True))
    assert evaluation_macs(net, own) == larger and larger[1] == sum(grid.num_positions for grid in own)
    net.add_context()
    with FlopCounterMode(display=False) as counter:
        overfeat.score_maps(net, torch.zeros(3, 94, 120), scales=[1.0], flip=True)
    # The first full layer is a custom op, which FlopCounterMode does not count.
    macs, windows = evaluation_macs(net, own)
    assert 2 * (sum(macs.values()) - macs["first full layer"]) == counter.get_total_flops()
    assert windows == larger[1] and macs["first full layer"] > larger[0]["first full layer"]


def patch_net(borders, flatten=False):
    """A converted net: padded convolutions, pooling, a mean over the window or two fully connected layers."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Flatten()] if flatten else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(6 * 20, 7), nn.ReLU(), nn.Linear(7, 3)] if flatten else [nn.Linear(6, 3)]
    module = nn.Sequential(*layers).eval()
    return densify(module, (16, 20), mean=120.0, std=60.0, borders=borders, name="patch", check=False)


@pytest.mark.parametrize("borders", ["exact", "neighbours"])
@pytest.mark.parametrize("stride", [3, 4])
def test_macs_of_converted_nets_equal_those_that_torch_counts(borders, stride):
    net = patch_net(borders)
    counted, windows = net.region_macs((35, 41), stride)
    assert windows == ((35 - 16) // stride + 1) * ((41 - 20) // stride + 1)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 35, 41), stride)
    assert 2 * sum(counted.values()) == counter.get_total_flops()


@pytest.mark.parametrize("borders", ["exact", "neighbours"])
def test_every_product_of_a_converted_net_has_a_time(borders):
    """Whether windows reach the fully connected layers on maps or one by one."""
    net = patch_net(borders, flatten=True)
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    regions = profile(net, image, scales=[1.0], stride=4, repeats=1)["whole"]["regions"]
    counted, _ = net.region_macs((40, 50), 4)
    assert {"conv2d at 0", "conv2d at 3", "linear at 7", "linear at 9"} == set(counted)
    assert {name for name, timed in regions.items() if "gflop" in timed} == set(counted)


def test_times_of_a_converted_net():
    net = patch_net("exact")
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    results = profile(net, image, scales=[1.0, (30, 36)], flip=True, stride=5, repeats=1)
    assert (results["net"], results["stride"], results["dtype"]) == ("patch", 5, "float32")
    assert [entry["windows"] for entry in results["grids"]] == [35, 35, 12, 12]
    for entry in (*results["grids"], results["whole"]):
        regions = entry["regions"]
        assert {"resize", "normalise", "conv2d at 0", "max_pool2d", "conv2d at 3", "scores", "other"} <= set(regions)
        assert all("gflop" in regions[name] for name in ("conv2d at 0", "conv2d at 3"))
        assert entry["gflop"] == pytest.approx(sum(timed.get("gflop", 0) for timed in regions.values()))
        assert sum(timed["seconds"] for timed in regions.values()) <= 1.5 * entry["seconds"]
    assert table(results).splitlines()[-1].startswith("patch net, float32, stride 5 px, ")


def test_the_command_writes_numbers_a_trace_and_a_picture(tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--repeats", "1", "--scales", "six:1,2", "--device", "cpu", "--weights", str(SHIPPED_WEIGHTS)]
    assert main(["profile", str(SCENE), "-o", str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert "all scales" in printed and "images/s" in printed and "first full layer" in printed
    results = json.loads((out / "profile.json").read_text())
    assert len(results["grids"]) == 2 and results["net"] == "small" and "merge" in results["whole"]["regions"]
    names = {event.get("name") for event in json.loads((out / "trace.json").read_text())["traceEvents"]}
    assert {"conv 1", "first full layer", "merge"} <= names
    with Image.open(out / "profile.png") as picture:
        assert picture.width > 600


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (["missing.png", "--weights", str(SHIPPED_WEIGHTS)], "no such file"),
        ([str(SCENE), "--scales", "20x20", "--weights", str(SHIPPED_WEIGHTS)], "smaller than the small net's window"),
        ([str(SCENE), "--net", "fast", "--weights", "x.safetensors"], "leave --net out"),
        ([str(SCENE), "--net", "fast", "--window", "96"], "--window does not apply to --net fast"),
    ],
)
def test_bad_settings(capsys, setting, words):
    assert main(["profile", *setting]) == 1
    assert words in capsys.readouterr().err


def test_someone_else_s_files_stay(tmp_path, capsys):
    (tmp_path / "profile.json").write_text("mine")
    assert main(["profile", str(SCENE), "-o", str(tmp_path)]) == 1
    assert "profile.json" in capsys.readouterr().err and (tmp_path / "profile.json").read_text() == "mine"


def test_the_commit_is_that_of_the_clone(monkeypatch):
    monkeypatch.delenv("OVERFEAT_COMMIT", raising=False)
    clone = Path(__file__).resolve().parents[2]
    if not (clone / ".git").exists():
        pytest.skip("no git clone")
    describe = ["git", "describe", "--always", "--dirty"]
    assert machine()["commit"] == subprocess.run(describe, cwd=clone, capture_output=True, text=True).stdout.strip()
    monkeypatch.setenv("OVERFEAT_COMMIT", "abc")
    assert machine()["commit"] == "abc"
