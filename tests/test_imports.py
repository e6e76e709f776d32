"""Who may import whom: the code is held to the arrows in CONTRIBUTING.md, from below to above."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the bottom up. A module imports from lower levels only; "data" and "cli" are packages, whose files
# may import each other.
LEVELS = [
    {"files", "geometry", "merging", "stages"},
    {"boxes", "resize", "stock", "architectures"},
    {"measuring"},
    {"reference", "kernels", "processes", "average_precision"},
    {"ops", "batches"},
    {"nets", "packed"},
    {"heads"},
    {"weights", "dense", "windows"},
    {"data", "classify", "localize"},
    {"detect", "multibox"},
    {"profiling"},
    {"training", "evaluation", "draw"},
    {"box_task"},
    {"multibox_evaluation", "classifier_training", "regressor_training", "detector_training"},
    {"multibox_training"},
    {"overfeat"},
    {"fast"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted([*ROOT.glob("overfeat/**/*.py"), *ROOT.glob("kernels/**/*.py")])
PLAIN = {
    "files",
    "geometry",
    "reference",
    "resize",
    "architectures",
    "nets",
    "heads",
    "boxes",
    "kernels",
}  # need nothing but numpy, torch, safetensors


def module_of(path: Path) -> str:
    """The name in LEVELS of a file: its folder for packages."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "kernels":
        return "kernels"
    return "overfeat" if parts[1] == "__init__" else parts[1]


def imports_of(path: Path) -> list[str]:
    """Full names of everything a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path):
    own = module_of(path)
    assert own in LEVEL, f"{own} has no place among the levels"
    for name in imports_of(path):
        parts = name.split(".")
        assert parts[0] != "kernels", f"{path}: the name is overfeat.kernels"
        if parts[0] != "overfeat":
            assert own not in PLAIN or parts[0] in {
                "torch",
                "numpy",
                "safetensors",
                "triton",
                *sys.stdlib_module_names,
            }
            continue
        other = parts[1] if len(parts) > 1 and parts[1] in LEVEL else "overfeat"
        assert LEVEL[other] < LEVEL[own] or (other == own and own in {"data", "cli", "kernels"}), f"{own} -> {other}"
        assert other != "kernels" or own == "kernels", f"{path}: fast.py alone runs kernels, and imports them late"


def test_geometry_knows_no_torch():
    assert not [name for name in imports_of(ROOT / "overfeat/geometry.py") if name.startswith("torch")]


def test_import_needs_neither_triton_nor_the_extras():
    """A fresh process in which the optional packages cannot be imported."""
    code = (
        "import sys\n"
        "for name in ('triton', 'numba', 'matplotlib', 'skimage', 'mlxtend', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "import overfeat, torch\n"
        "print(overfeat.build('small', 2)(torch.zeros(1, 3, 47, 47)).shape)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "[1, 2, 1, 1]" in found.stdout


def test_public_names_are_there():
    import overfeat

    assert sorted(overfeat.__all__) == overfeat.__all__
    for name in overfeat.__all__:
        assert getattr(overfeat, name).__doc__, name
