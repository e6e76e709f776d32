"""The recipes in bench/accuracy: every command is one that the command line accepts, and what exists is skipped."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from bench.accuracy.cells import NETS
from bench.common import ROOT
from overfeat.cli.main import build_parser

# A stub of the command line: records its arguments and writes the files that the recipe expects.
STUB = f"""#!{sys.executable}
import json, pathlib, sys
arguments = sys.argv[1:]
with open("commands.jsonl", "a") as log:
    log.write(json.dumps(arguments) + "\\n")
option = lambda name: arguments[arguments.index(name) + 1]
if arguments[0] == "train":
    path = pathlib.Path(option("--out")) / "net.safetensors"
else:
    path = pathlib.Path(arguments[1]) / (option("--split") + ".json")
path.parent.mkdir(parents=True, exist_ok=True)
path.touch()
"""


@pytest.fixture
def recipe(tmp_path):
    """recipe(name, ...): run a recipe with the stub; the arguments of all commands so far."""
    shutil.copytree(ROOT / "bench" / "accuracy", tmp_path / "bench" / "accuracy")
    stub = tmp_path / ".venv" / "bin" / "overfeat"
    stub.parent.mkdir(parents=True)
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(name, *arguments, **environment):
        command = [tmp_path / "bench" / "accuracy" / name, *arguments]
        subprocess.run(command, cwd="/", check=True, env=os.environ | environment)
        return [json.loads(line) for line in (tmp_path / "commands.jsonl").read_text().splitlines()]

    return run


def test_every_command_is_accepted(recipe, tmp_path):
    recipe("regressors.sh")
    commands = recipe("multibox.sh")
    parser = build_parser()
    for arguments in commands:
        parser.parse_args(arguments)
    trained = {arguments[arguments.index("--out") + 1] for arguments in commands if arguments[0] == "train"}
    assert len(trained) == len([arguments for arguments in commands if arguments[0] == "train"]) == 29
    for arguments in commands:  # data and initial weights are outputs of earlier commands
        for option in ("--data", "--init"):
            if option in arguments:
                assert (tmp_path / arguments[arguments.index(option) + 1]).exists()


def test_existing_outputs_are_skipped_and_interrupted_trainings_resumed(recipe, tmp_path):
    before = recipe("regressors.sh")
    assert recipe("regressors.sh") == before
    (tmp_path / "runs/regressor-scr-iou/complete").rename(tmp_path / "runs/regressor-scr-iou/checkpoint.pt")
    *same, resumed = recipe("regressors.sh")
    assert same == before and resumed == [*before[-1], "--resume"]


@pytest.fixture
def bccd(tmp_path):
    """A folder with BCCD's layout, without images."""
    folder = tmp_path / "BCCD"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Main/train.txt").write_text("".join(f"BloodImage_{number:05}\n" for number in range(30)))
    return folder


def test_cells(recipe, bccd, tmp_path):
    commands = recipe("cells.sh", BCCD=str(bccd))
    parser = build_parser()
    options = {args.out.name.removeprefix("cells-"): args for args in map(parser.parse_args, commands)}
    assert len(commands) == len(options) == len(NETS) + 1
    assert options.keys() == {*NETS, "box-classifier"}
    few = tmp_path / "runs/bccd-20"
    assert {args.data for name, args in options.items() if name != "20-images"} == {bccd}
    assert (tmp_path / options["20-images"].data).samefile(few) and (few / "Annotations").samefile(bccd / "Annotations")
    assert (few / "ImageSets/Main/train.txt").read_text().split()[-1] == "BloodImage_00019"
    assert {args.epochs for name, args in options.items() if name in ("short", "frozen", "hard")} == {8}
    assert recipe("cells.sh", BCCD=str(bccd)) == commands


def test_cells_by_name(recipe, bccd):
    assert [c[c.index("--out") + 1] for c in recipe("cells.sh", "no-reach", BCCD=str(bccd))] == ["runs/cells-no-reach"]
    with pytest.raises(subprocess.CalledProcessError):
        recipe("cells.sh", "nonsense", BCCD=str(bccd))
    with pytest.raises(subprocess.CalledProcessError):
        recipe("cells.sh", BCCD="")
