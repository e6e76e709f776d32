"""Weights on disk: round trips, every kind of bad file, writes that fail, the released files at full size."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from layer_shape import layer_shape
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import overfeat
from overfeat.errors import InputError
from overfeat.models.architecture import ARCHITECTURES, RELEASED_FILES, Architecture, Conv
from overfeat.models.released import load_released, read_labels, save_released
from overfeat.models.thresholds import DetectionThresholds

CONVS = (Conv(4, 3, stride=2, pad=1, pool=2), Conv(6, 3, pool=2))
CUSTOM = Architecture("mine", CONVS, 2, (7, 5), 40, mean=100.0, std=50.0, scales=((48, 64),) * 6)


def pixels(height, width):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8)


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# Our own files


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("architecture", ["small", "thin accurate", CUSTOM], ids=str)
def test_round_trip(make_net, tmp_path, architecture, flip):
    net = make_net(architecture, 3).train()
    net.class_names = ["", "naïve 猫", 'quo"te\nand line']
    net.flip = flip
    path = tmp_path / "net.safetensors"
    assert overfeat.save(net, path) is None
    loaded = overfeat.load(str(path))
    assert loaded.architecture == net.architecture
    assert (loaded.class_names, loaded.flip, loaded.num_classes) == (net.class_names, flip, 3)
    assert same_weights(loaded, net) and not loaded.training
    images = pixels(net.architecture.window + 20, net.architecture.window + 9)
    with torch.no_grad():
        assert torch.equal(loaded(images, "fine"), net.eval()(images, "fine"))
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_stored_as_half_and_read_as_float32(make_net, tmp_path, dtype):
    net = make_net("small")
    overfeat.save(net, tmp_path / "whole")
    overfeat.save(net, tmp_path / "half", dtype=dtype)
    assert (tmp_path / "half").stat().st_size < 0.51 * (tmp_path / "whole").stat().st_size
    assert {t.dtype for t in load_file(tmp_path / "half").values()} == {dtype}
    loaded = overfeat.load(tmp_path / "half")
    for one, other in zip(loaded.parameters(), net.parameters(), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other.to(dtype).float())
    assert same_weights(net, overfeat.load(tmp_path / "whole")), "saving changed the net"


def test_saving_replaces_what_is_there(make_net, tmp_path):
    path = tmp_path / "net.safetensors"
    (tmp_path / ".part-net.safetensors").mkdir()
    (tmp_path / ".part-net.safetensors" / path.name).write_bytes(b"what a killed run left")
    for seed in range(2):
        overfeat.save(make_net("small", seed=seed), path)
        assert same_weights(overfeat.load(path), make_net("small", seed=seed))
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


# Bad files


@pytest.fixture
def good(make_net, tmp_path):
    """A good file, for a test to damage: its path, tensors and metadata."""
    path = tmp_path / "net.safetensors"
    overfeat.save(make_net("small"), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return path, load_file(path), metadata


def refused(path, words):
    """load raises InputError with the file's name and these words, on one readable line."""
    with pytest.raises(InputError, match=words) as error:
        overfeat.load(path)
    assert str(error.value).startswith(f"{path}: ")


def test_missing_file_and_folder(tmp_path):
    refused(tmp_path / "none", "no such file")
    refused(tmp_path, "no such file")
    refused(tmp_path / "no folder" / "none", "no such file")


@pytest.mark.parametrize("content", [b"", b"{", b"weights\n" * 100, b"\0" * 4096, b"\xff" * 64], ids=repr)
def test_files_of_another_kind(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    refused(tmp_path / "file", "not a readable safetensors file")


def test_truncated_file(good):
    path, *_ = good
    whole = path.read_bytes()
    for size in (4, 8, 100, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "not a readable safetensors file")
    path.write_bytes(whole + b"more")
    refused(path, "not a readable safetensors file")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"overfeat": "999"}], ids=repr)
def test_safetensors_of_others(good, metadata):
    path, tensors, _ = good
    save_file(tensors, path, metadata)
    refused(path, "not one that this version of overfeat wrote")


BROKEN = {
    "class_names": [None, "", "[]", "5", '["one"]', '["a", "b", "c", "d", "e", "f"]', "{", '"abcdef"'],
    "architecture": [None, "", "{}", "[]", "null", '{"convs": [{"width": 3}]}', CUSTOM.to_json()],
    "flip": [None, "", "yes"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in BROKEN for value in BROKEN[key]])
def test_metadata_that_does_not_fit_the_weights(good, key, value):
    path, tensors, metadata = good
    metadata = {k: v for k, v in metadata.items() if k != key}
    save_file(tensors, path, metadata if value is None else {**metadata, key: value})
    refused(path, "its weights and its metadata do not fit together")


@pytest.mark.parametrize("change", ["missing", "more", "renamed", "other shape", "transposed"])
def test_weights_that_do_not_fit_the_architecture(good, change):
    path, tensors, metadata = good
    weight = tensors.pop("fc_layers.1.weight")
    tensors |= {
        "missing": {},
        "more": {"fc_layers.1.weight": weight, "fc_layers.9.weight": weight.clone()},
        "renamed": {"full.1.weight": weight},
        "other shape": {"fc_layers.1.weight": weight[:-1].clone()},
        "transposed": {"fc_layers.1.weight": weight.permute(2, 1, 0, 3).contiguous()},
    }[change]
    save_file(tensors, path, metadata)
    refused(path, "its weights and its metadata do not fit together")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["conv_layers.0.weight", "conv_layers.3.bias", "fc_layers.2.bias"])
def test_nan_and_infinite_weights(good, name, value):
    path, tensors, metadata = good
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path, metadata)
    refused(path, f"{name} holds NaN or infinite values")


# Writes that fail


@pytest.mark.parametrize("write", [overfeat.save, save_released])
@pytest.mark.parametrize("where", ["none/net", "file/net", "folder", "n" * 300])
def test_paths_that_cannot_be_written(make_net, tmp_path, write, where):
    (tmp_path / "file").write_text("a file, no folder")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="cannot be written"):
        write(make_net("small"), tmp_path / where)
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"


@pytest.mark.parametrize("write", [overfeat.save, save_released])
def test_an_interrupted_write_leaves_the_old_file(make_net, tmp_path, monkeypatch, write):
    path = tmp_path / "net"
    path.write_text("old")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(make_net("small"), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


FULL_DISK = """
import resource, sys
from pathlib import Path
from overfeat import InputError, build, save
from overfeat.models.released import save_released

path, write = Path(sys.argv[1]), {"save": save, "save_released": save_released}[sys.argv[2]]
net = build("small", 5)
write(net, path)
whole = path.stat().st_size
path.write_text("old")
for missing in (1, 15, 3000, whole // 2, whole - 10):
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole - missing, resource.RLIM_INFINITY))
    try:
        write(net, path)
    except InputError as error:
        assert f"{path}: cannot be written" in str(error), error
    else:
        sys.exit(f"{path.stat().st_size} of {whole} bytes written, and no error")
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == [path.name]
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the limit on a file's size is POSIX's")
@pytest.mark.parametrize("write", ["save", "save_released"])
def test_a_full_disk_leaves_the_old_file(tmp_path, write):
    """A limit on the size of files stands for the disk that fills up, wherever in the file it does."""
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "here" / "net"), write]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


# Class names


def test_labels(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("tench, Tinca tinca\n\n  naïve 猫 \r\nkit fox", encoding="utf-8")
    assert read_labels(path, 3) == ["tench, Tinca tinca", "naïve 猫", "kit fox"]
    with pytest.raises(InputError, match="3 names for a net of 4 classes"):
        read_labels(path, 4)
    with pytest.raises(InputError, match="no such file"):
        read_labels(tmp_path / "none", 3)
    path.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(InputError, match="not a text file in UTF-8"):
        read_labels(path, 1)


# The released files

# weights of every layer in the file's order, [out, in, height, width]; each is followed by `out` biases
RELEASED = {
    "fast": (
        583_683_488,
        [(96, 3, 11, 11), (256, 96, 5, 5), (512, 256, 3, 3), (1024, 512, 3, 3), (1024, 1024, 3, 3)]
        + [(3072, 1024, 6, 6), (4096, 3072, 1, 1), (1000, 4096, 1, 1)],
    ),
    "accurate": (
        578_625_952,
        [(96, 3, 7, 7), (256, 96, 7, 7), (512, 256, 3, 3), (512, 512, 3, 3), (1024, 512, 3, 3)]
        + [(1024, 1024, 3, 3), (4096, 1024, 5, 5), (4096, 4096, 1, 1), (1000, 4096, 1, 1)],
    ),
}


@pytest.fixture(params=RELEASED)
def released(request, tmp_path):
    """A file of random numbers in the layout of the release: its path and the net's name."""
    size, _ = RELEASED[request.param]
    # A prime length, so that no two positions of the file hold the same run of numbers in the same order.
    block = np.random.default_rng(0).standard_normal(1_000_003, dtype=np.float32)
    block = (block * np.float32(0.01)).astype("<f4")
    path = tmp_path / RELEASED_FILES[request.param]
    with open(path, "wb") as file:
        for start in range(0, size // 4, len(block)):
            file.write(block[: size // 4 - start].tobytes())
    yield path, request.param
    for left in tmp_path.iterdir():
        left.unlink()


def test_released_file_at_full_size(released, tmp_path):
    path, name = released
    size, shapes = RELEASED[name]
    assert path.stat().st_size == size
    net = load_released(path, name)
    assert not net.training and net.num_classes == 1000 and net.architecture == ARCHITECTURES[name]
    numbers = np.memmap(path, "<f4", "r")
    start = 0
    for shape, layer in zip(shapes, [*net.conv_layers, *net.fc_layers], strict=True):
        for values, size in ((layer.weight, shape), (layer.bias, shape[:1])):
            count = int(np.prod(size))
            assert np.array_equal(values.detach().numpy(), numbers[start : start + count].reshape(size))
            start += count
    assert start == len(numbers)

    layers = net.architecture.layers
    images = pixels(net.architecture.window + 1, net.architecture.window + net.architecture.stride() + 3)
    shapes = []
    for number in range(len(layers)):
        with torch.no_grad():
            shapes.append(net.layer_output(images, number).shape)
    height, width = images.shape[2:]
    expected = [(1, *layer_shape(net.architecture, n, height, width, 1000)) for n in range(len(layers))]
    assert shapes == expected and expected[-1] == (1, 1000, 1, 2)

    save_released(net, tmp_path / "again")
    with open(path, "rb") as one, open(tmp_path / "again", "rb") as other:
        while block := one.read(1 << 24):
            assert block == other.read(1 << 24)
        assert not other.read(1)


def test_first_layer_reads_the_file_as_out_in_height_width(make_net, tmp_path):
    """One output of the first convolution by hand, from the numbers as they stand in the file."""
    net = make_net("small")
    save_released(net, tmp_path / "raw")
    numbers = np.fromfile(tmp_path / "raw", "<f4").astype(np.float64)
    count = 32 * 3 * 5 * 5
    weight, bias = numbers[:count].reshape(32, 3, 5, 5), numbers[count : count + 32]
    images = pixels(50, 61)
    window = (images[0, :, 4:9, 10:15].double().numpy() - 118.380948) / 61.896913
    expected = [(weight[o] * window).sum() + bias[o] for o in range(32)]
    with torch.no_grad():
        output = net.double().layer_output(images, 1)[0, :, 2, 5]
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("size", [0, 4, 583_683_488, 583_683_484, 578_625_952, 578_625_953])
def test_released_files_of_other_sizes(tmp_path, name, size):
    if size == RELEASED[name][0]:
        pytest.skip("the right size for this net")
    path = tmp_path / "weights"
    with open(path, "wb") as file:
        file.truncate(size)  # a hole: it takes no room
    with pytest.raises(InputError) as error:
        load_released(path, name)
    for words in (str(path), f"{size:,} bytes", "583,683,488", "578,625,952", "net_weight_0", "net_weight_1"):
        assert words in str(error.value)


def test_released_files_that_are_missing(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_released(tmp_path / "none", "fast")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="released weights are for fast and accurate, not 'small'"):
        load_released(tmp_path / "file", "small")


def test_what_is_no_net_is_not_written(tmp_path, make_net):
    with pytest.raises(TypeError, match="net must be an OverFeat, not Linear"):
        save_released(torch.nn.Linear(2, 2), tmp_path / "raw")
    with pytest.raises(InputError, match="net must be an OverFeat, not Linear; for a converted net save"):
        overfeat.save(torch.nn.Linear(2, 2), tmp_path / "net")
    with pytest.raises(InputError, match="regressor must be a BoxRegressor, not OverFeat"):
        overfeat.save(make_net("small"), tmp_path / "net", regressor=make_net("small"))
    with pytest.raises(InputError, match="model must be a MultiBox, not OverFeat"):
        overfeat.save_multibox(make_net("small"), tmp_path / "net")
    with pytest.raises(TypeError, match="architecture must be a name or an Architecture, not NoneType"):
        overfeat.build(None)
    assert not list(tmp_path.iterdir())


def test_released_file_with_a_nan(tmp_path):
    path = tmp_path / "net_weight_1"
    try:
        with open(path, "wb") as file:
            file.truncate(RELEASED["accurate"][0])
            file.seek(4 * (96 * 3 * 7 * 7 + 5))
            file.write(np.array(np.nan, "<f4").tobytes())
        with pytest.raises(InputError, match="NaN or infinite weights"):
            load_released(path, "accurate")
    finally:
        path.unlink()


# The thresholds of a detector


def test_thresholds_travel_with_the_weights(make_net, tmp_path):
    net, path = make_net("small", 3), tmp_path / "net"
    overfeat.save(net, path)
    assert overfeat.load(path).thresholds is None
    for thresholds in (
        DetectionThresholds(),
        DetectionThresholds(0.4, 0.3, 0.6, 0.2),
        DetectionThresholds((0.1, 0.5, 2), class_iou_threshold=1.0),
        DetectionThresholds(postprocess="vote", min_score=(0.5, 0, 1)),
        DetectionThresholds(min_score=0.45),
    ):
        net.thresholds = thresholds
        overfeat.save(net, path, dtype=torch.float16)
        assert overfeat.load(path).thresholds == thresholds


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "5", '{"match": 1}', '{"match_threshold": -1}', '{"match_threshold": [0.1, 0.2]}',
     '{"match_threshold": [0.1, NaN, 0.5, 0.5, 0.5]}', '{"match_threshold": []}', '{"match_threshold": "0.5"}',
     '{"score_threshold": 1.5}', '{"nms_iou_threshold": "x"}', '{"class_iou_threshold": NaN}',
     '{"min_score": 1.5}', '{"min_score": [0.5, 0.4]}', '{"min_score": []}', '{"min_score": "0.5"}'],
)  # fmt: skip
def test_thresholds_that_are_broken(good, text):
    path, tensors, metadata = good
    save_file(tensors, path, {**metadata, "thresholds": text})
    refused(path, "its weights and its metadata do not fit together")
