"""The public names, from the package's stub, and where the API reference has them."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs/reference"
ENTRY = re.compile(r"^::: (overfeat[\w.]*)$", re.MULTILINE)


def public_names() -> dict[str, str]:
    """The full path of each public name of `overfeat` that is no module."""
    nodes = ast.parse((ROOT / "overfeat/__init__.pyi").read_text()).body
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: f"overfeat.{node.module}.{alias.name}" for node in imports for alias in node.names}


def entries() -> list[str]:
    """The names in the pages of the API reference, `overfeat.classify` and so on."""
    return [name for page in sorted(REFERENCE.glob("*.md")) for name in ENTRY.findall(page.read_text())]


PUBLIC = public_names()
# The full path of every documented name, by its last part.
PATHS = {name.rpartition(".")[2]: PUBLIC.get(name.removeprefix("overfeat."), name) for name in entries()}


def directive(name: str) -> str:
    """The directive that documents a name, under the path that users import."""
    path = PUBLIC.get(name.removeprefix("overfeat."), name)
    last = name.rpartition(".")[2]
    return f"::: {path}\n    options:\n      heading: {name}\n      toc_label: {last}"
