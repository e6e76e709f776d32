"""The guides: their Python runs and prints what they show, their imports exist, and their commands parse."""

import ast
import re
import shlex
import shutil
import sys

import pytest

import overfeat.fast  # noqa: F401  outside of a test, so that its backends stay registered
from bench.common import ROOT
from overfeat.cli.main import build_parser

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
BLOCK = re.compile(r'^```(\w*)(?: title="(.*?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
GUIDES = ("backend", "files-2013", "images", "kernels", "localization", "own-network", "prototypes")
RUN = [ROOT / "docs" / "papers.md", *(ROOT / "docs" / "guides" / f"{name}.md" for name in GUIDES)]


def blocks(page):
    """(language, name of its file, text) of every code block."""
    return [match.groups() for match in BLOCK.finditer(page.read_text())]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the guides name: the sources of a clone, a photograph, and a module's weights."""
    (tmp_path / "overfeat").symlink_to(ROOT / "overfeat")
    shutil.copy(ROOT / "overfeat/assets/photos/coffee.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("net", None)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_and_prints_what_it_shows(page, folder, capsys):
    names, printed = {}, ""
    for language, title, text in blocks(page):
        if title:
            (folder / title).write_text(text)
        elif language == "python":
            exec(compile(text, page.name, "exec"), names)
            printed = capsys.readouterr().out
        elif language == "text":
            assert printed == text
        if title == "net.py":
            exec("import torch, net; torch.save(net.make_net().state_dict(), 'state.pt')", {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_python_of_a_page_imports_exists(page):
    for language, title, text in blocks(page):
        if language == "python" and not title:
            lines = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
            own = [node for node in lines if "overfeat" in ast.unparse(node)]
            exec(compile(ast.Module(own, []), page.name, "exec"), {})


def commands(page):
    """Every command line of a page; variables of a shell are 1."""
    for language, _, text in blocks(page):
        if language in ("", "sh", "console", "bash"):
            for line in text.replace("\\\n", " ").splitlines():
                line = re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", line.removeprefix("$ ")).split("| ")[-1].split(" > ")[0]
                if line.startswith("overfeat "):
                    yield shlex.split(line, comments=True)[1:]


@pytest.fixture(scope="module")
def parser():
    return build_parser()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_parse(page, parser, capsys):
    for arguments in commands(page):
        try:
            parser.parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{shlex.join(arguments)}: {capsys.readouterr().err}")
