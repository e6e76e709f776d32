"""What the command line answers without work: help, version, argument errors, completion."""

import argparse
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import overfeat
from overfeat.cli.main import build_parser, main
from overfeat.cli.messages import out_of_memory, with_flags

FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
HEAVY = ("torch", "numba", "numpy", "scipy", "PIL", "matplotlib", "triton")


def commands(parser=None):
    """Every command line of subcommands, such as ["evaluate", "detector"], with its parser."""
    parser = parser or build_parser()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield [name], command
                yield from (([name, *names], leaf) for names, leaf in commands(command))


COMMANDS = dict((" ".join(names), parser) for names, parser in commands())
HELP = [[*name.split(), "--help"] for name in COMMANDS if name != "bench"]  # bench passes its arguments on
ERRORS = [["dance"], ["classify"], ["classify", "x.jpg", "--scales", "7"], ["detect", "x.jpg", "--nms-iou", "2"]]


def test_answers_without_heavy_imports():
    """All in one fresh process: what any of them imported is seen at the end."""
    lines = [[], ["--help"], ["--version"], *HELP, *ERRORS]
    code = (
        "import json, sys\n"
        "from overfeat.cli.main import main\n"
        "statuses = []\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        statuses.append(main(arguments))\n"
        "    except SystemExit as stop:\n"
        "        statuses.append(stop.code)\n"
        "json.dump([statuses, sorted(set(sys.modules))], sys.stderr)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, json.dumps(lines)], capture_output=True, text=True)
    statuses, modules = json.loads(process.stderr.splitlines()[-1])
    assert statuses == [0] * (3 + len(HELP)) + [2] * len(ERRORS)
    assert not set(HEAVY) & set(modules)


def test_detection_in_a_large_image_imports_no_compiler(tmp_path):
    """torch's takes 150 MiB and more than a second."""
    np.save(tmp_path / "image.npy", np.full((60, 70, 3), 128, np.uint8))
    code = (
        "import sys; from overfeat.cli.main import main; status = main(sys.argv[1:]);"
        "print(status, [name for name in ('torch._dynamo', 'sympy', 'triton', 'matplotlib') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "detect", tmp_path / "image.npy", "--scales", "1.0"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == "0 []", process.stderr


READ = {
    "JPEG, PNG, GIF, TIFF": "classify|localize|detect|features|teach|compare-borders|profile|train .*|evaluate .*",
    "COCO (.json), PASCAL VOC (.xml), LabelMe (.json), YOLO": "train (?!classifier).*|evaluate (?!classifier).*",
    "safetensors": "classify|localize|detect|features|teach|compare-borders|profile|convert|train .*|evaluate .*",
    "COCO annotations (.json)": "detect",
    "text file of class names": "classify|localize|detect|features|teach|convert|evaluate .*",
}


@pytest.mark.parametrize("formats", READ)
def test_help_says_what_is_read(formats):
    readers = [parser for name, parser in COMMANDS.items() if re.fullmatch(READ[formats], name)]
    assert readers
    for parser in readers:
        assert formats in " ".join(parser.format_help().split()).replace("- ", "-"), parser.prog


def test_the_library_names_arguments_not_flags():
    """Its messages are those of Python, too; a command writes arguments as its flags."""
    others = {"--always", "--dirty", "--tile", "--pyramid", "--bigtiff", "--compression", "--Q"}  # of git and vips
    others |= {"--nworkers", "--nthreads", "--memory-limit", "--no-dashboard", "--death-timeout"}  # of dask worker
    for path in Path(overfeat.__file__).parent.rglob("*.py"):
        if path.parent.name == "cli":
            continue
        tree = ast.parse(path.read_text())
        flags = [
            node
            for call in ast.walk(tree)
            if isinstance(call, ast.keyword) and call.arg == "flags"
            for node in ast.walk(call)
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in flags:
                docstring = "\n\n" in node.value
                assert docstring or not set(FLAG.findall(node.value)) - others, f"{path}: {node.value!r}"


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_in_messages_become_flags(command):
    args = argparse.Namespace(parser=COMMANDS[command])
    text = "/a/max_pixels/b: `recursive` or max_pixels allow more, as batch_size does"
    flags = COMMANDS[command]._option_string_actions
    for name in ("max_pixels", "batch_size"):
        flag = "--" + name.replace("_", "-")
        assert (flag in with_flags(args, text)) == (flag in flags) != (f" {name} " in with_flags(args, text))
    assert ("--recursive" in with_flags(args, text)) == ("--recursive" in flags)
    assert with_flags(args, text).startswith("/a/max_pixels/b: ")


def test_too_little_memory_names_flags_there_are():
    lines = {name: out_of_memory(argparse.Namespace(parser=COMMANDS[name]), MemoryError()) for name in COMMANDS}
    assert lines["scenes"] == "out of memory ()"
    advice = "lower --batch-size or --max-pixels; for a GPU's memory, try --device cpu"
    assert lines["train detector"] == f"out of memory (); {advice}"
    assert out_of_memory(argparse.Namespace(), RuntimeError("shapes differ")) is None


def test_without_arguments_it_prints_its_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == build_parser().format_help()


def test_as_a_module():
    process = subprocess.run([sys.executable, "-m", "overfeat", "--version"], capture_output=True, text=True)
    assert process.stdout.strip() == f"overfeat {overfeat.__version__}"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("train", "evaluate", "bench")])
def test_every_help_has_examples(name):
    assert f"overfeat {name}" in COMMANDS[name].format_help().partition("\nexample")[2].replace("--fast ", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_of_shells(shell, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", shell])
    assert stop.value.code == 0 and "classify" in capsys.readouterr().out


def test_completion_in_bash():
    code = (
        f'eval "$({sys.executable} -m overfeat --print-completion bash)"; '
        'COMP_WORDS=(overfeat detect --post); COMP_CWORD=2; _shtab_overfeat; echo "${COMPREPLY[@]}"'
    )
    process = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert process.stdout.split() == ["--postprocess"], process.stderr


def test_an_argument_of_the_library_is_reported_as_its_flag(tmp_path, capsys):
    assert main(["scenes", str(tmp_path / "images"), "--seed", "-1"]) == 1
    assert capsys.readouterr().err.startswith("overfeat scenes: --seed ")


def test_bench_needs_a_clone(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("overfeat.cli.bench.CLONE", tmp_path)
    assert main(["bench", "--quick"]) == 1
    assert "not part of the installed package" in capsys.readouterr().err
