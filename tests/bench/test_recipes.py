"""The recipes in bench/accuracy: every command is one that the command line accepts, and what exists is skipped."""

import json
import os
import shutil
import subprocess
import sys

import pytest

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
