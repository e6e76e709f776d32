"""What the command line answers without work: help, version, argument errors, completion."""

import argparse
import json
import subprocess
import sys

import pytest

import overfeat
from overfeat.cli.main import build_parser, main

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
