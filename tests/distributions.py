"""The package as users get it: a source distribution, a wheel made from it, and environments that have the wheel."""

import email
import fcntl
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "overfeat", "kernels", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff",
    "CONTRIBUTING.md", "SECURITY.md", "constraints.txt",
)  # fmt: skip
BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, 'build_' + sys.argv[1])(sys.argv[2])"


def build(folder: Path) -> Path:
    """The wheel in a folder, beside the source distribution that it is made from.

    Both are built unless they are there: processes that share the folder wait for the one that does.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("*.whl")):
            clone, unpacked = folder / "clone", folder / "unpacked"
            clone.mkdir()
            for name in SOURCES:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / name, clone / name)
            run(sys.executable, "-c", BUILD, "sdist", folder, cwd=clone)
            with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
                archive.extractall(unpacked, filter="data")
            run(sys.executable, "-c", BUILD, "wheel", folder, cwd=next(unpacked.iterdir()))
    (wheel,) = folder.glob("*.whl")
    return wheel


def metadata_of(wheel: Path) -> Message:
    """What a wheel says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def install(wheel: Path, folder: Path) -> Path:
    """The Python of a new environment with the wheel, and all packages of the tests' environment beside it."""
    packages = _new_environment(folder)
    of_tests = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "packages_of_tests.pth").write_text("\n".join(of_tests) + "\n")
    return _with_wheel(wheel, folder)


def install_base(wheel: Path, folder: Path) -> Path:
    """The Python of a new environment with the wheel and what it requires without extras, and nothing else."""
    packages = _new_environment(folder)
    for name in _with_requirements(metadata_of(wheel).get_all("Requires-Dist") or []):
        package = distribution(name)
        for entry in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            (packages / entry).symlink_to(Path(str(package.locate_file(entry))))
    return _with_wheel(wheel, folder)


def _with_requirements(requirements: Iterable[str], names: frozenset[str] = frozenset()) -> frozenset[str]:
    """The names of these packages, and of all that they require here."""
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        if name not in names and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            names = _with_requirements(distribution(name).requires or [], names | {name})
    return names


def _new_environment(folder: Path) -> Path:
    """Its folder of packages, which has none."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    return packages


def _with_wheel(wheel: Path, folder: Path) -> Path:
    python = folder / "bin" / "python"
    options = ["--no-deps", "--no-index", "--ignore-installed", "--quiet", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel)
    return python


def run(*command: object, cwd: Path | None = None) -> str:
    """What a command that must succeed prints."""
    process = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout
