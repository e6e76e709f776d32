"""Control characters and line breaks in names of files and classes never reach the terminal."""

import json

import pytest
import torch
from PIL import Image

import overfeat
from overfeat.cli.main import main
from overfeat.data.annotated import first_lines
from overfeat.errors import ArgumentError, InputError, printable, shorten, with_path
from overfeat.metrics.average_precision import PROTOCOLS
from overfeat.metrics.confusion import confusion_table
from overfeat.metrics.operating_points import operating_table
from overfeat.metrics.report import precision_table
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.box_regressor import BoxRegressor

RED, SHOWN = "a\n\x1b[31mb\u202e", r"a\n\x1b[31mb\u202e"


@pytest.mark.parametrize(
    ("text", "shown"),
    [(RED, SHOWN), ("\t\r\x7f\x9b\u2028\u2066", r"\t\r\x7f\x9b\u2028\u2066"), ("猫 a\\n", "猫 a\\n"), (5, "5")],
)  # fmt: skip
def test_printable(text, shown):
    assert printable(text) == shown == printable(shown)


def test_messages():
    assert str(InputError("one \x1b[2J\n  two")) == "one \\x1b[2J\n  two"
    error = ArgumentError("top_k", "must be 1 or more, not \x07", "report: ")
    assert str(error) == r"report: top_k must be 1 or more, not \x07"
    assert with_path(RED, InputError(f"{RED}: no such file")) == f"{SHOWN}: no such file"
    assert with_path(RED, InputError("is damaged")) == f"{SHOWN}: is damaged"
    assert shorten([RED, "b"]) == f"{SHOWN}, b"
    assert first_lines([RED]) == f"\n  {SHOWN}"


def test_tables():
    point = {"objects": 1, "best_f1_score": None}
    report = {"objects": 1, "map": dict.fromkeys((*PROTOCOLS, "coco"))}
    for table in (
        confusion_table([[1, 0], [0, 0]], [RED]),
        operating_table({"classes": {RED: point}, "all": point, "sizes": {}}, 0.5, 0.3),
        precision_table({**report, "ap": {RED: {"objects": 1, **report["map"]}}}),
    ):
        assert SHOWN in table and "\x1b" not in table


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A net of classes with control characters in their names, and two images with them, one of them damaged."""
    monkeypatch.chdir(tmp_path)
    architecture = ARCHITECTURES["small"]
    net = overfeat.build(architecture, 2)
    net.class_names, net.background, net.scale_factors = [RED, "background"], True, (1.0,)
    overfeat.save(net, tmp_path / "net.safetensors", regressor=BoxRegressor(architecture))
    for name in (RED, "c\n"):
        with open(f"{name}.png", "wb") as file:
            Image.new("RGB", (48, 48), "red").save(file, format="PNG")
    (tmp_path / f"{RED}.jpg").write_bytes(b"no image")
    return [f"{RED}.png", "c\n.png", f"{RED}.jpg"]


COMMANDS = ["classify", "localize", "detect", "features -L 3 --format npz -o out"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_print_each_name_on_one_line(files, capsys, command):
    torch.manual_seed(0)
    scales = ["--scales", "1.0"] if command[0] != "f" else []
    options = ["--min-score", "0"] if command == "detect" else []
    assert main([*command.split(), "--weights", "net.safetensors", *scales, *options, *files]) == 1
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\u202e" not in out + err
    lines = out.splitlines()
    if command[0] == "f":
        assert lines == [f"out/{name}.png.npz: layer 3, 64 x 20 x 20" for name in (SHOWN, r"c\n")]
        return
    assert [line for line in lines if line.endswith(".png")] == [f"{SHOWN}.png", r"c\n.png"]
    assert {line.split(" ")[0].rpartition(".png")[0] or line.split(" ")[0] for line in lines} <= {
        SHOWN, r"c\n", "background"
    }  # fmt: skip
    assert f"skipped: {SHOWN}.jpg: " in err


def test_results_keep_the_names(files, tmp_path, capsys):
    assert main(["classify", "--weights", "net.safetensors", "--scales", "1.0", files[0], "-o", "out"]) == 0
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("a*.json")]
    assert results[0]["image"] == files[0] and {entry["class"] for entry in results[0]["classes"]} == {
        RED,
        "background",
    }
