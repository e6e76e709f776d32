"""The names that the API reference documents, and where they are defined."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs/reference"
ENTRY = re.compile(r"^::: (overfeat[\w.]*)$", re.MULTILINE)
# Functions that are made of others, whose docstrings and signatures they have.
DECORATED = {
    "overfeat.large.detect.detect": "overfeat.detection.predict.detect",
    "overfeat.large.score_maps.score_maps": "overfeat.dense.evaluate.score_maps",
}


def entries() -> list[str]:
    """The names in the pages of the API reference, as users import them: `overfeat.classify` and so on."""
    return [name for page in sorted(REFERENCE.glob("*.md")) for name in ENTRY.findall(page.read_text())]


def definition(path: str) -> str:
    """The full path of the definition of a name that a module may have imported."""
    module, _, name = path.rpartition(".")
    source = _imports(module).get(name)
    return definition(source) if source else DECORATED.get(path, path)


def directive(name: str) -> str:
    """The directive that documents a name, under the path that users import."""
    last = name.rpartition(".")[2]
    return f"::: {definition(name)}\n    options:\n      heading: {name}\n      toc_label: {last}"


@cache
def _imports(module: str) -> dict[str, str]:
    """The full paths of what a module of ours imports from others."""
    base = ROOT / module.replace(".", "/")
    files = (base / "__init__.pyi", base / "__init__.py", base.with_suffix(".py"))
    body = ast.parse(next(filter(Path.exists, files)).read_text()).body
    only_for_types = [node for block in body if isinstance(block, ast.If) for node in block.body]
    paths: dict[str, str] = {}
    for node in [*body, *only_for_types]:
        if isinstance(node, ast.ImportFrom) and node.module:
            source = f"{module}.{node.module}" if node.level else node.module
            paths |= {alias.name: f"{source}.{alias.name}" for alias in node.names if source.startswith("overfeat.")}
    return paths


# The full path of every documented name, by its last part.
PATHS = {name.rpartition(".")[2]: definition(name) for name in entries()}
