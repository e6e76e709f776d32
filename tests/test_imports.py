"""The import rules of CONTRIBUTING.md: each folder imports from lower levels only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the bottom up; folders of one level do not import each other.
LEVELS = [
    {"errors", "files", "options", "packages", "regions", "toom_cook"},
    {"ops", "data", "kernels"},
    {"models", "metrics", "training"},
    {"densify"},
    {"dense"},
    {"classification", "localization", "detection", "multibox", "prototypes"},
    {"large", "profiling", "visualize", "export"},
    {"cluster", "serve"},
    {"fast"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# Beside a lower level: errors serves files, options and packages; only ops.boxes serves metrics; only the
# Triton backend runs kernels.
ALSO = {("files", "errors"), ("options", "errors"), ("packages", "errors")}
FILES = sorted([*ROOT.glob("overfeat/**/*.py"), *ROOT.glob("kernels/*.py")])


def folder_of(path: Path) -> str:
    """The name in LEVELS of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "kernels" if parts[0] == "kernels" else parts[1]


def imports_of(path: Path) -> list[str]:
    """Full names of everything that a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_import_rules(path):
    own = folder_of(path)
    if own in ("__init__", "__main__", "fast"):  # the public names, the command
        return
    for name in imports_of(path):
        parts = name.split(".")
        assert parts[0] not in ("bench", "kernels", "tests"), f"{path}: {name}"
        if parts[0] != "overfeat" or len(parts) == 1:
            continue
        other = parts[1] if parts[1] in LEVEL else "cli"
        if own == "cli" and parts[1] == "__version__":
            continue
        allowed = other == own or LEVEL[other] < LEVEL[own] or (own, other) in ALSO
        assert allowed, f"{path.relative_to(ROOT)} imports {name}, which is not below it"
        if other == "kernels" and own != "kernels":
            assert path.match("ops/backends/triton.py"), f"{path}: only the Triton backend imports kernels"
        if own == "metrics" and other == "ops":
            assert parts[2] == "boxes", f"{path}: metrics import ops.boxes alone"


def test_receptive_fields_need_no_torch():
    assert not [name for name in imports_of(ROOT / "overfeat/models/receptive_field.py") if name.startswith("torch")]


def test_import_needs_neither_triton_nor_the_extras():
    """A fresh process in which the optional packages cannot be imported."""
    code = (
        "import sys\n"
        "names = 'triton numba matplotlib skimage mlxtend scipy tifffile zarr openslide rasterio'\n"
        "for name in names.split():\n"
        "    sys.modules[name] = None\n"
        "import overfeat, torch\n"
        "print(overfeat.build('small', 2)(torch.zeros(1, 3, 47, 47)).shape)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "[1, 2, 1, 1]" in run.stdout


def test_public_names_are_there():
    import overfeat

    assert sorted(overfeat.__all__) == overfeat.__all__
    for name in overfeat.__all__:
        assert getattr(overfeat, name).__doc__, name


def test_type_checkers_see_the_public_names():
    """The stub's list is that of its imports, and the program that mypy checks strictly has every name."""
    import overfeat

    stub = ast.parse((ROOT / "overfeat/__init__.pyi").read_text())
    (listed,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert listed == overfeat.__all__
    program = ast.walk(ast.parse((ROOT / "tests/user_program.py").read_text()))
    used = {node.attr for node in program if isinstance(node, ast.Attribute)}
    assert used >= set(overfeat.__all__)


def test_a_package_does_not_hide_the_function_of_its_name():
    code = "import overfeat, overfeat.densify.net\nprint(overfeat.densify.__module__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "overfeat.densify.convert", run.stderr
