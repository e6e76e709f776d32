"""`import overfeat.fast`: the same results as without it, and its status report."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from op_checks import numbers
from PIL import Image

import overfeat
import overfeat.fast as fast
from bench.tolerance import assert_matches
from overfeat import ops
from overfeat.cli.main import main
from overfeat.densify.convert import densify
from overfeat.models import checkpoint
from overfeat.ops import registry
from overfeat.ops.backends import prepacked, triton, winograd

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
KERNELS = INTERPRETED or torch.cuda.is_available()
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")


@pytest.fixture(params=["fast", "packed"])
def switched(request):
    """The fastest backends, and under the interpreter also the packed weights, which it takes precedence over."""
    if request.param == "fast":
        yield
        return
    if not INTERPRETED:
        pytest.skip("packed weights are the fastest backend here, or do not run here")
    kept = registry._backends.pop("triton")
    yield
    registry._backends["triton"] = kept


def both(run, twice=True):
    """Results of `run` on the fast backends and in eager PyTorch; weights are packed at their second evaluation."""
    with ops.backend("torch"):
        eager = run()
    if twice:
        run()
    return run(), eager


@pytest.fixture
def image():
    return (numbers((1, 3, 70, 90), seed=3).clamp(-2, 2) * 60 + 128).to(torch.uint8)


def test_the_backends_are_registered():
    assert list(registry._backends)[:4] == ["reference", "torch", "packed", "triton"]
    names = {name for name in fast.__all__ if name not in ("CapturedClassifier", "Status", "capture", "status")}
    assert names == set(overfeat.__all__)
    assert all(getattr(fast, name) is getattr(overfeat, name) for name in names)


@pytest.mark.parametrize("name", ["small", "thin accurate", "thin fast"])
def test_classification(switched, make_net, image, name, monkeypatch):
    monkeypatch.setattr(winograd, "MAX_COST_RATIO", float("inf"))  # even for small maps
    net = make_net(name).to(DEVICE)
    side = net.architecture.window
    scales = [(side, side + 13), (side + 20, side + 30)]
    actual, expected = both(lambda: overfeat.classify(net, image, scales=scales, flip=True))
    assert_matches(actual, expected, torch.float32)
    actual, expected = both(lambda: [m.scores for m in overfeat.score_maps(net, image, scales=scales)])
    assert_matches(actual, expected, torch.float32)


def test_captured_classification(make_net, image):
    """Graphs on a GPU, eager elsewhere: the scores of `classify` for new images, whatever the order of shapes."""
    net = make_net("small").to(DEVICE)
    shapes, options = [(1, 3, 70, 90), (2, 3, 52, 47)], {"scales": [(47, 60)], "flip": True}
    captured = fast.capture(net, shapes, **options)
    assert captured.shapes == (shapes if DEVICE.type == "cuda" else [])
    for n, height, width in ((1, 70, 90), (2, 52, 47), (1, 50, 49), (1, 70, 90)):
        images = image[:, :, :height, :width].to(DEVICE).repeat(n, 1, 1, 1) + n
        assert_matches(captured(images), fast.classify(net, images, **options), torch.float32)


@pytest.mark.parametrize("borders", ["exact", "neighbours"])
def test_converted_nets_at_any_stride(switched, borders, image, monkeypatch):
    """The same weights with several strides and dilations; all large enough to be packed."""
    monkeypatch.setattr(prepacked, "MIN_WEIGHTS", 1)
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, 2, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2)]
    layers += [torch.nn.Conv2d(8, 12, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten()]
    layers += [torch.nn.Linear(48, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5)]
    net = densify(torch.nn.Sequential(*layers).eval(), 30, mean=120.0, std=60.0, borders=borders, check=False)
    net = net.to(DEVICE)
    for stride in (4, 1, 8, 3):
        run = functools.partial(overfeat.score_maps, net, image, scales=[(45, 50)], stride=stride)
        actual, expected = both(lambda run=run: [m.scores for m in run()])
        assert_matches(actual, expected, torch.float32)


def test_features(switched, make_net, image):
    net = make_net("small").to(DEVICE)
    with torch.no_grad():
        for number in range(len(net.architecture.layers)):
            actual, expected = both(lambda number=number: net.layer_output(image.to(DEVICE), number))
            assert_matches(actual, expected, torch.float32)
        actual, expected = both(lambda: net.features(image.to(DEVICE)))
        assert_matches(actual, expected, torch.float32)


def test_training_at_many_positions(make_net):
    """Three steps of SGD at fine stride, all layers; the classifier's first layer has 9 positions an image."""

    def train():
        net = make_net("thin accurate").to(DEVICE).train()
        net.dropout = 0.0
        optimizer = torch.optim.SGD(net.parameters(), 0.01)
        images = numbers((2, 3, 245, 245), DEVICE, dtype=torch.float32) * 60 + 120
        losses = []
        for _ in range(3):
            loss = net(images, "fine").logsumexp(1).mean() - net(images, "fine")[:, 0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses), *[p.detach() for p in net.parameters()]

    actual, expected = both(train, twice=False)
    assert_matches(actual, expected, torch.float32)


def test_training_from_the_command_line(tmp_path):
    random = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(0, 120, (60, 70, 3)) + (120 if name == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / name / f"{i}.png")

    runs = iter(range(9))

    def train():
        folder = tmp_path / f"run{next(runs)}"
        flags = f"train classifier --net small --data {tmp_path / 'data'} --out {folder} --device {DEVICE.type}"
        more = "--epochs 2 --batch-size 12 --crops 1 --lr 0.002 --num-workers 0"
        assert main([*flags.split(), *more.split()]) == 0
        return list(checkpoint.load(folder / "net.safetensors").state_dict().values())

    actual, expected = both(train, twice=False)
    assert_matches(actual, expected, torch.float32)


# Status


def test_status_here():
    rows = fast.status()
    assert {row.op for row in rows} == {*triton.BACKEND.functions, *prepacked.BACKEND.functions}
    on_cpu = {(row.op, row.dtype): row for row in rows if row.device == "cpu"}
    pool = on_cpu["offset_max_pool", torch.float32]
    first = on_cpu["skip_classifier_flat", torch.float32]
    if INTERPRETED:
        assert (pool.backend, first.backend) == ("triton", "triton") and "interpreted" in pool.reason
    else:
        assert pool.backend == "torch" and "Triton" in pool.reason
        assert first.backend == "packed" or "oneDNN" in first.reason
    wide = on_cpu["skip_classifier_flat", torch.float64]
    assert wide.backend == "torch" and "float64" in wide.reason
    assert len(str(rows).splitlines()) == len(rows) + 1
    with fast.backend("torch"):
        assert all(row.backend == "torch" and "in force" in row.reason for row in fast.status())
    with fast.backend("reference"):
        assert all(row.backend == "reference" for row in fast.status())
    with fast.backend("triton"):
        rows = [row for row in fast.status() if row.op == "convolution"]
        assert all(row.backend in ("torch", "packed") and "does not have it" in row.reason for row in rows)
        assert all(row.backend == "none" for row in fast.status() if row.op == "merge_boxes") != KERNELS


def status_in_a_process(*lines, **environment):
    code = "\n".join([*lines, "import overfeat.fast as of", "print(of.status())"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "TRITON_INTERPRET": "0", **environment})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_status_without_triton():
    out = status_in_a_process("import sys", "sys.modules['triton'] = None")
    assert "Triton is not installed" in out and "cpu" in out


@pytest.mark.parametrize(("capability", "words"), [((7, 5), "capability 7.5 is below 8.0"), ((9, 0), "kernels")])
def test_status_with_a_gpu(capability, words):
    """The report of a simulated GPU; nothing runs on it."""
    out = status_in_a_process(
        "import torch",
        "torch.cuda.device_count = lambda: 1",
        "torch.cuda.get_device_name = lambda device: 'Some GPU'",
        f"torch.cuda.get_device_capability = lambda device: {capability}",
    )
    lines = [line for line in out.splitlines() if "cuda:0 Some GPU" in line]
    backend = "torch" if capability < (8, 0) else "triton"
    assert any(f"skip_classifier_flat           float16   {backend}" in line and words in line for line in lines)


def test_import_probes_nothing():
    """Importing asks no device, and does not import Triton."""
    code = (
        "import torch, sys\n"
        "def refuse(*arguments): raise AssertionError('probed')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda.get_device_capability = refuse\n"
        "before = 'triton' in sys.modules\n"
        "import overfeat.fast\n"
        "assert ('triton' in sys.modules) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not KERNELS, reason="the kernels run on a GPU or under Triton's interpreter")
def test_the_kernels_run_by_default(monkeypatch):
    ran = []

    def spied(op, kernel):
        return lambda *arguments, **options: ran.append(op) or kernel(*arguments, **options)

    for op, kernel in triton.BACKEND.functions.items():
        monkeypatch.setitem(triton.BACKEND.functions, op, spied(op, kernel))
    maps = numbers((1, 3, 8, 9), DEVICE, dtype=torch.float32).requires_grad_()
    weight = numbers((4, 3, 2, 2), DEVICE, dtype=torch.float32)
    ops.offset_max_pool(maps, 2).sum().backward()
    ops.skip_classifier(maps, weight, None, 3).sum().backward()
    ops.class_scores(maps.detach().flatten(0, 2), [24])
    ops.merge_boxes(torch.rand(3, 4, device=DEVICE).cumsum(1), torch.ones(3, device=DEVICE))
    assert set(ran) == set(triton.BACKEND.functions)


def test_empty_maps_and_unsupported_dtypes():
    """Empty maps, and inputs that the fast backends do not support, run in eager PyTorch."""
    weight = numbers((4, 3, 2, 2), DEVICE, dtype=torch.float32)
    empty = torch.zeros(0, 3, 8, 9, device=DEVICE)
    for _ in range(2):
        assert ops.skip_classifier(empty, weight, None, 3).shape == (0, 4, 3, 4)
        assert ops.offset_max_pool(empty, 3).shape == (0, 3, 6, 7)
    wide = numbers((1, 3, 8, 9), DEVICE, dtype=torch.float64)
    assert ops.skip_classifier(wide, weight.double(), None, 3).dtype == torch.float64
