"""Shared fixtures: the device that tests run on, backends, and nets with random weights."""

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

# Threads that wait asleep: on a machine with other work, spinning ones make small tensors 10 times slower.
# Read as torch is loaded, here and in the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# torch.compile's cache on disk does not tell instruction sets apart: code for another one computes wrong sums.
if "ATEN_CPU_CAPABILITY" in os.environ:
    cache = f"torchinductor-{os.environ['ATEN_CPU_CAPABILITY']}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), cache))

# For `bench`, however pytest is started; at the end, since `make gpu-test` has another overfeat before this folder's.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import distributions
import op_checks
import pytest
import torch

from overfeat.data.synthetic.dataset import write_dataset
from overfeat.models.architecture import ARCHITECTURES, Architecture
from overfeat.models.overfeat import OverFeat, initialise
from overfeat.ops import registry
from overfeat.ops.backends import eager

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
KERNELS = INTERPRETED or torch.cuda.is_available()
if KERNELS:
    import overfeat.fast  # noqa: F401

# Files that see the backends of overfeat.fast, whoever imported it, as those of tests/kernels do; the others test eager
# PyTorch, bit for bit.
FAST = {"test_chain", "test_compiled_conv", "test_fast", "test_prepacked"}
FAST |= {"test_ops", "test_ops_in_torch", "test_merge_boxes"} if KERNELS else set()


@pytest.fixture(autouse=True)
def eager_alone(request, monkeypatch):
    """Hides the backends that overfeat.fast registers from all files but those in FAST."""
    if request.path.stem not in FAST and request.path.parent.name != "kernels":
        known = {name: registry._backends[name] for name in ("reference", "torch")}
        monkeypatch.setattr(registry, "_backends", known)


@pytest.fixture(autouse=True, scope="session")
def without_bfloat16():
    """Makes torch report a processor without bfloat16 arithmetic where OVERFEAT_TEST_NO_BF16=1 is set."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("OVERFEAT_TEST_NO_BF16") == "1":
            unsupported = MagicMock(return_value=False)  # torch also asks its overload, `.default`
            unsupported.default = unsupported
            patch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", unsupported)
        yield


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """float32 means float32 on a GPU, not TF32."""
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """The test runs once on each kind of device."""
    if request.param == "cpu":
        yield torch.device("cpu")
        return
    if not torch.cuda.is_available():
        pytest.skip("no GPU that torch can use on this machine")
    yield torch.device("cuda")


@pytest.fixture
def make_net():
    """make_net(name or architecture, classes): random weights and biases, in evaluation mode.

    "thin fast" and "thin accurate" are the released nets, kernels, paddings and poolings and all,
    with a few channels a layer, so that they run in milliseconds instead of seconds.
    """

    def make(architecture: str | Architecture, classes: int = 5, seed: int = 0) -> OverFeat:
        if isinstance(architecture, str):
            name = architecture.removeprefix("thin ")
            architecture = thin(ARCHITECTURES[name]) if name != architecture else ARCHITECTURES[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = OverFeat(architecture, classes)
            for layer in (*net.conv_layers, *net.fc_layers):
                initialise(layer, None)
                torch.nn.init.normal_(layer.bias, 0.0, 0.2)
        return net.eval()

    return make


def thin(architecture: Architecture) -> Architecture:
    """The same net with 4, 5, ... channels in its convolutions and few in its full layers."""
    convs = tuple(replace(conv, channels=4 + i) for i, conv in enumerate(architecture.convs))
    return replace(architecture, name=f"thin {architecture.name}", convs=convs, hidden=(16, 12))


@pytest.fixture(params=["gathered", "convolved"])
def eager_path(request, monkeypatch):
    """Both paths of the eager skip classifier on a CPU, at any size of the maps."""
    if request.param == "gathered" and INTERPRETED:
        pytest.skip("the kernels have one path")
    monkeypatch.setattr(eager, "GATHER_MAX_POSITIONS", 10**9 if request.param == "gathered" else 0)


# These two backends do not have all ops; where Triton is interpreted, another run has tested eager PyTorch.
NOT_HERE = {"reference", "packed", "filtering"} | ({"torch"} if INTERPRETED else set())


@pytest.fixture(params=sorted(set(registry._backends) - NOT_HERE))
def implementation(request, device, monkeypatch):
    """The test runs on every backend that has all ops and supports the device."""
    if request.param == "triton":
        monkeypatch.setattr(op_checks, "DTYPE", torch.float32)
    backend = registry._backends[request.param]
    refusals = [backend.supports(op, device, op_checks.DTYPE, None) for op in backend.functions]
    if any(refusals):
        pytest.skip(f"backend {request.param}: {next(filter(None, refusals))}")
    with registry.backend(request.param):
        yield request.param


@pytest.fixture(scope="session")
def multi_object(tmp_path_factory):
    """Eight training scenes and four for testing, with none to eight digits each."""
    root = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 8), ("validation", 2), ("test", 4)):
        write_dataset(root, split, count, objects=(0, 8), progress=False)
    return root


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The package's wheel, built once for all processes of the tests; the source distribution is beside it."""
    folder = tmp_path_factory.getbasetemp()
    return distributions.build((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "wheel")


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """The Python of an environment that has the wheel installed, and the packages of the tests' environment."""
    return distributions.install(wheel, tmp_path_factory.mktemp("installed"))
