"""The site: its navigation, links, references, drawings and snippets. `make docs` builds it."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import overfeat.fast
from overfeat.files import ASSETS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))
OF_THE_ROOT = {"BENCHMARKS.md": "benchmarks.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def load(path: Path):
    """A module of docs/, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository():
    return load(DOCS / "hooks/repository.py")


@pytest.fixture(scope="module")
def names():
    return load(DOCS / "hooks/public_names.py")


@pytest.fixture(scope="module")
def commands():
    return load(DOCS / "hooks/command_line.py").pages()


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as the repository's view and the site make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_navigation(commands):
    entries = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = {page.removeprefix("docs/") for page in PAGES}
    assert sorted(entries) == sorted({*pages, *commands, *OF_THE_ROOT.values()})


@pytest.mark.parametrize("page", [*PAGES, "README.md", *OF_THE_ROOT])
def test_links_resolve(page, repository, commands):
    for link in repository.links((ROOT / page).read_text()):
        target = page if link.startswith("#") else repository.target_of(link, page)
        generated = target and target.removeprefix("docs/") in commands
        if target is None or generated:
            continue
        assert (ROOT / target).exists(), f"{page} links to {link}"
        anchor = link.partition("#")[2]
        if anchor and target.endswith(".md"):
            assert anchor in anchors((ROOT / target).read_text()), f"{page} links to {link}"


def test_links_lead_into_the_site(repository):
    text = "[a](../guides/cluster.md#dask) [`b`](../../README.md) [c](../../bench/results/) ![d](../../bench/x.jpg)\n"
    text += "[e](https://arxiv.org) [f](../../examples/large_image.py) [g](#h)\n```\n[i](../../README.md)\n```\n"
    assert repository.site_links(text, "docs/guides/serve.md", "guides/serve.md") == (
        "[a](cluster.md#dask) [`b`](../index.md) c ![d](../repository/bench/x.jpg)\n"
        "[e](https://arxiv.org) [f](../repository/examples/large_image.py.md) [g](#h)\n```\n[i](../../README.md)\n```\n"
    )


def test_linked_files_become_pages(repository):
    linked = repository.linked(["docs/guides/large-images.md"])
    assert {"examples/large_image.py", "bench/results/cpu.md", *OF_THE_ROOT} <= {*linked}
    page = repository.page_of("examples/large_image.py")
    assert page.startswith("# examples/large_image.py\n\n````python\n") and page.endswith("````\n")


def test_every_example_is_on_its_page(repository):
    page, examples = "docs/examples.md", (ROOT / "examples").iterdir()
    links = {repository.target_of(link, page) for link in repository.links(repository.page_of(page))}
    assert links == {f"examples/{path.name}" for path in examples if path.suffix in (".py", ".ipynb")}


def test_a_notebook_becomes_a_page():
    cells = [
        {"cell_type": "markdown", "source": ["# Tour\n", "Text"]},
        {
            "cell_type": "code", "source": "1 + 1",
            "outputs": [{"data": {"text/plain": ["2"]}}, {"text": "printed\n"}, {"data": {"image/png": "AA==\n"}}],
        },
    ]  # fmt: skip
    text = load(DOCS / "hooks/notebooks.py").as_markdown(importlib.import_module("json").dumps({"cells": cells}))
    assert text == (
        "# Tour\nText\n\n````python\n1 + 1\n````\n\n````\n2\n````\n\n````\nprinted\n````\n\n"
        '<img src="data:image/png;base64,AA==" alt="The output of the code above">\n'
    )


def test_the_reference_has_every_public_name(names):
    entries = names.entries()
    assert len(entries) == len({*entries})
    index, pages = (names.REFERENCE / "index.md").read_text(), names.REFERENCE.glob("*.md")
    rows = dict(re.findall(r"^\| \[[^\]]+\]\((.+?)\) \| (.*) \|$", index, re.MULTILINE))
    for page in pages:
        listed = [f"`{name.rpartition('.')[2]}`" for name in names.ENTRY.findall(page.read_text())]
        assert rows.get(page.name, "") == ", ".join(listed), page.name
    public = [f"overfeat.{name}" for name in overfeat.__all__ if name not in ("cluster", "ops")]
    public += [f"overfeat.fast.{name}" for name in overfeat.fast.__all__ if name not in overfeat.__all__]
    public += [f"overfeat.large.{name}" for name in importlib.import_module("overfeat.large").__all__]
    public += [f"overfeat.ops.{name}" for name in overfeat.ops.__all__ if name not in overfeat.__all__]
    assert not {*public} - {*entries} - {"overfeat.ops.BOX_AVERAGES"}


def test_the_reference_leads_to_the_definitions(names):
    for entry in names.entries():
        module, _, name = entry.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        assert value.__doc__ and names.definition(entry) == f"{value.__module__}.{value.__name__}"


def test_docstrings_are_written_out():
    docstrings = load(DOCS / "hooks/docstrings.py")
    text = "Line.\n\nArgs:\n    a, b: See `DenseConfig`,\n        or `own`.\n    c: Another, one: two.\n"
    expanded = docstrings.one_name_each(text)
    shared = "See `DenseConfig`,\n        or `own`."
    assert expanded == f"Line.\n\nArgs:\n    a: {shared}\n    b: {shared}\n    c: Another, one: two.\n"
    link = "[`overfeat.classify`][overfeat.classification.predict.classify]"
    assert docstrings.with_links("`overfeat.classify`, `detect`, `nothing`", "detect") == f"{link}, `detect`, `nothing`"
    assert docstrings.comment_of("labels: Tensor  # int64 [n]") == "Int64 [n]."
    assert docstrings.comment_of("labels: Tensor") == ""


def test_the_command_line_reference(commands):
    classify, train = (commands[f"reference/command-line/{name}.md"] for name in ("classify", "train-detector"))
    assert classify.startswith("# overfeat classify\n\nThe top classes of images.\n\nPrint the top classes of each")
    assert "```sh\noverfeat classify -n 3 photo.jpg\n" in classify and "\n## Dense evaluation\n" in classify
    assert re.search(r"\n`-n(?: N)?, --top-k N`\n:   classes to print \(default: 5\)\n", classify)
    assert "net\\_weight\\_0" in classify and "`--dask ADDRESS|local:N`\n" in classify
    assert "`--epochs N`\n" in train and "--help" not in train
    index = commands["reference/command-line/index.md"]
    assert "| [overfeat train detector](train-detector.md) | a net that detects any number of objects" in index


def test_the_drawings_are_those_of_the_script():
    drawings = load(DOCS / "drawings/draw.py").DRAWINGS
    assert {*drawings} == {path.name for path in (DOCS / "drawings").glob("*.svg")} - {"logo.svg"}
    for name, make in drawings.items():
        assert (DOCS / "drawings" / name).read_text() == str(make()), f"{name}: python docs/drawings/draw.py"


def snippets(page: str) -> list[str]:
    """The Python snippets of a page."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_snippet_of_the_concepts(tmp_path, monkeypatch, capsys):
    (code,) = snippets("concepts.md")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (120, 90), "red").save("photo.jpg")
    exec(code, {})
    assert "[36. 16. 83. 63.]" in capsys.readouterr().out  # the window of stride 4 that is centred nearest to (60, 40)


NET = """
from torch import nn

def make_net():
    return nn.Sequential(nn.Conv2d(3, 2, 8, stride=8), nn.AdaptiveMaxPool2d(1), nn.Flatten())
"""


def test_the_quick_start(tmp_path, monkeypatch, capsys):
    """As it is printed, but for a small net in place of SqueezeNet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "net.py").write_text(NET)
    net = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 1000))
    small = overfeat.densify(net, 32, channels=3, check=False)
    monkeypatch.setattr(overfeat.fast, "squeezenet", lambda: small)
    with Image.open(ASSETS / "cells/BloodImage_00385.jpg") as picture:
        picture.crop((0, 0, 128, 112)).save("photo.jpg")
    names, (first, own, detector) = {}, snippets("quick-start.md")
    exec(first, names)
    assert names["scores"].shape == (1, 1000)
    torch.save({"0.weight": torch.ones(2, 3, 8, 8), "0.bias": torch.zeros(2)}, "state.pt")
    exec(own, names)
    assert names["maps"][0].scores.shape == (1, 2, 3, 5) and names["maps"][0].grid.stride == 8
    (tmp_path / "run").mkdir()
    (tmp_path / "run/net.safetensors").write_bytes((ASSETS / "cells.safetensors").read_bytes())
    capsys.readouterr()
    exec(detector, names)
    assert {Image.open(name).size for name in ("heat.png", "objects.png")} == {names["maps"].picture().size}
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(names["detections"]) > 0 and all(
        re.match(r"(RBC|WBC|Platelets) 0\.", x) for x in printed
    )
    del sys.modules["net"]
