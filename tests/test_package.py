"""The package as it is released: what its distributions hold, and what they do with their requirements alone."""

import json
import re
import tarfile
import zipfile
from pathlib import Path

import distributions
import pytest
import torch

import overfeat
from overfeat.files import ASSETS
from overfeat.ops.boxes import iou

ROOT = distributions.ROOT
PHOTO, SCENE = ASSETS / "photos" / "coffee.jpg", ASSETS / "multi-object" / "test" / "00004.png"
BASE = {"torch", "numpy", "pillow", "safetensors", "tqdm"}
EXTRAS = {"boxes", "train", "plots", "large", "cluster", "serve", "export", "completion", "scenes", "demo"}


def files_of(folder, pattern="**/*"):
    return {path for path in folder.glob(pattern) if path.is_file() and "__pycache__" not in path.parts}


def test_the_wheel_has_every_file(wheel):
    expected = {str(path.relative_to(ROOT)) for path in files_of(ROOT / "overfeat")}
    expected |= {f"overfeat/kernels/{path.name}" for path in files_of(ROOT / "kernels", "*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(f"overfeat-{overfeat.__version__}.dist-info/entry_points.txt").decode()
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert entry_points.split() == ["[console_scripts]", "overfeat", "=", "overfeat.cli.main:main"]


def test_the_source_distribution_is_the_library(wheel):
    with tarfile.open(wheel.parent / f"overfeat-{overfeat.__version__}.tar.gz") as archive:
        names = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    assert {*distributions.SOURCES, "kernels/launch.py", "overfeat/assets/cells.safetensors"} <= names
    assert not {"tests", "bench", "docs"} & names


def test_metadata(wheel):
    metadata = distributions.metadata_of(wheel)
    assert (metadata["Name"], metadata["Version"]) == ("overfeat", overfeat.__version__)
    assert metadata["Author"] == "The overfeat authors" and metadata["Requires-Python"] == "<3.15,>=3.11"
    requirements = [line.partition(";") for line in metadata.get_all("Requires-Dist")]
    base = {re.match(r"[\w-]+", name)[0]: name for name, _, marker in requirements if "extra ==" not in marker}
    assert set(base) == BASE and base["torch"] == "torch<2.15,>=2.11"
    assert set(metadata.get_all("Provides-Extra")) >= EXTRAS | {"bench", "test"}
    classifiers = metadata.get_all("Classifier")
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)} <= set(classifiers)
    urls = metadata.get_all("Project-URL")
    assert urls and all(url.partition(", ")[2].startswith("https://arxiv.org/") for url in urls)
    assert metadata.get_payload() == (ROOT / "README.md").read_text()


def test_one_version():
    version = overfeat.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    released = re.findall(r"^## (\d\S*) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released and released[0][0] == version
    assert f'\ndate-released: "{released[0][1]}"\n' in (ROOT / "CITATION.cff").read_text()


def test_makefile_finds_the_pythons_of_the_metadata():
    text = (ROOT / "Makefile").read_text()
    assert "(3, 11) <= sys.version_info[:2] <= (3, 14)" in text and "Python 3.11 to 3.14" in text


# Without extras


@pytest.fixture(scope="module")
def base(wheel, tmp_path_factory):
    """The Python of an environment that has the wheel and its requirements without extras."""
    return distributions.install_base(wheel, tmp_path_factory.mktemp("base"))


LIBRARY = """
import json, sys
import overfeat, torch
from overfeat.data.images import read_image
from overfeat.files import ASSETS

assert sys.prefix in overfeat.__file__, overfeat.__file__
missing = "numba scipy pycocotools matplotlib tifffile zarr distributed starlette onnx shtab skimage mlxtend".split()
for name in missing:
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} can be imported")
photo, scene = sys.argv[1:]
net = overfeat.squeezenet()
scores = overfeat.classify(net, photo, scales=[(240, 320)])
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2))
maps = overfeat.score_maps(overfeat.densify(module, window=8), read_image(photo)[:, :60, :50], stride=4)
weights = ASSETS / "detector.safetensors"
net, regressor = overfeat.load(weights), overfeat.load_regressor(weights)
options = {"scales": [1.0], "stride": "coarse"}
detections = {rule: overfeat.detect(net, regressor, scene, postprocess=rule, **options) for rule in ("vote", "merge")}
import overfeat.fast
for _ in range(2):
    fast = overfeat.fast.detect(net, regressor, scene, postprocess="vote", **options)
json.dump({
    "best": int(scores.argmax()), "maps": list(maps[0].scores.shape), "note": overfeat.fast.status().note,
    "boxes": {rule: d.boxes.tolist() for rule, d in detections.items()}, "fast": len(fast.boxes),
}, sys.stdout)
"""


def test_the_library_without_extras(base, tmp_path):
    results = json.loads(distributions.run(base, "-P", "-c", LIBRARY, PHOTO, SCENE, cwd=tmp_path))
    assert overfeat.squeezenet().class_names[results["best"]] == "espresso"
    assert results["maps"] == [1, 2, 14, 11]
    assert results["note"].startswith("numba is not installed: ") and '"overfeat[boxes]"' in results["note"]
    weights = ASSETS / "detector.safetensors"
    net, regressor = overfeat.load(weights), overfeat.load_regressor(weights)
    for rule, boxes in results["boxes"].items():  # with numba, here
        expected = overfeat.detect(net, regressor, SCENE, postprocess=rule, scales=[1.0], stride="coarse")
        assert len(boxes) == len(expected.boxes) > 0
        assert iou(torch.tensor(boxes), expected.boxes).amax(dim=1).min() > 0.99
    assert results["fast"] == len(results["boxes"]["vote"])


COMMANDS = """
import contextlib, io, json, sys
from overfeat.cli.main import main

lines = []
for command in json.loads(sys.argv[1]):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(command.split())
        except SystemExit as stop:
            status = stop.code
    lines.append([status, error.getvalue()])

import numpy as np
from overfeat.multibox.matching import fit_priors
try:
    fit_priors(np.ones((2, 4)), 1)
except ValueError as error:
    lines.append([1, str(error)])
json.dump(lines, sys.stdout)
"""
WEIGHTS = ASSETS / "small.safetensors"
ONE_LINE = {
    f"classify {PHOTO} --weights {WEIGHTS} --heat-map -o out": ("pictures need matplotlib", "plots"),
    f"detect {SCENE} --weights {ASSETS / 'detector.safetensors'} -o detections": ("pictures need matplotlib", "plots"),
    "evaluate detector --data data": ("average precisions need pycocotools", "train"),
    "detect slide.zarr": ("zarr files need zarr", "large"),
    f"detect {SCENE} -o workers --dask local:1": ("work on Dask's workers needs distributed", "cluster"),
    "serve --port 0": ("the server needs python_multipart", "serve"),
    f"export {WEIGHTS} net.onnx": (".onnx files need onnx", "export"),
    "--print-completion bash": ("completion needs shtab", "completion"),
    "scenes scenes --split test --count 1": ("synthetic images need mlxtend", "scenes"),
}


def test_each_missing_extra_is_one_line(base, tmp_path):
    """Results are written without pictures; what cannot go on ends with status 1."""
    (tmp_path / "slide.zarr").mkdir()
    (tmp_path / "slide.zarr" / ".zarray").write_text("{}")
    printed = distributions.run(base, "-P", "-c", COMMANDS, json.dumps(list(ONE_LINE)), cwd=tmp_path)
    expected = {**ONE_LINE, "fit_priors": ("DeepMultiBox's priors need scipy", "train")}
    for (command, (problem, extra)), (status, error) in zip(expected.items(), json.loads(printed), strict=True):
        lines = [
            line for line in error.splitlines() if "pip install" in line and ("plots" in line) == (extra == "plots")
        ]
        assert len(lines) == 1 and lines[0].endswith(f'{problem}: pip install "overfeat[{extra}]"'), (command, error)
        assert status == (0 if extra == "plots" else 1), (command, error)
        assert "Traceback" not in error
    assert (tmp_path / "detections" / f"{SCENE.name}.json").is_file()
    assert (tmp_path / "out" / "coffee.jpg.npz").is_file()


def test_installed_without_its_sources(installed, tmp_path):
    """The command and the types of the installed package, in an empty folder."""
    version = distributions.run(installed.with_name("overfeat"), "--version", cwd=tmp_path)
    assert version == f"overfeat {overfeat.__version__}\n"
    file = Path(
        distributions.run(installed, "-P", "-c", "import overfeat; print(overfeat.__file__)", cwd=tmp_path).strip()
    )
    assert file.is_relative_to(installed.parents[1]) and file.with_name("py.typed").is_file()
