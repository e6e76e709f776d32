"""Weights of nets, box regressors and DeepMultiBox, state dicts and checkpoints, damaged: they run, or are refused."""

import functools
import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import mutate, refused
from safetensors.torch import load, save
from torch import nn

import overfeat
from overfeat.cli.state_dict import load_state_dict
from overfeat.errors import InputError
from overfeat.models.architecture import Architecture, Conv
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.checkpoint import load_any
from overfeat.models.feature_graph import FeatureGraph, Op
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat
from overfeat.models.thresholds import DetectionThresholds
from overfeat.training.resume import CHECKPOINT, RunFolder

CASES = 100
GRAPH = FeatureGraph(
    3,
    (
        Op("flip", (0,), (), ((1,),)),
        Op("conv2d", (1,), (0, 1), ((2, 2), (1, 1), (1, 1), 1)),
        Op("hardtanh", (2,), (), (0.0, float("inf"))),
        Op("conv2d", (3,), (2,), ((1, 1), (1, 1), (1, 1), 2)),
        Op("prelu", (4,), (3,)),
        Op("cat", (5, 3), (), (1,)),
        Op("max_pool2d", (6,), (), ((2, 2), (2, 2), (0, 0), (1, 1), False)),
        Op("mul", (7,), (), (0.5,)),
    ),
    ((4, 3, 3, 3), (4,), (4, 2, 3, 3), (1,)),
)
ARCHITECTURES = (
    Architecture("tiny", (Conv(2, 3, stride=2, pad=1, pool=2), Conv(3, 3)), 2, (3,), 20, scales=((40, 50),) * 6),
    Architecture("backbone", (), 2, (3,), 20, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), backbone=GRAPH, backbone_pool=2),
)
# What metadata do not hold, or not there.
VALUES = (
    None, True, False, -1, 0, 1, 2, 3, 7, 255, 10**6, 2**31, 2**63, 10**18, 10**400, -0.5, 0.5, 1e-300, 1e300,
    float("nan"), float("inf"), -float("inf"),
    "", "1", "relu", "x" * 10**5, "\x1b[31m\n\u202e", "\ud800", [], [1], [[]],
    [0] * 1000, {}, {"name": "x"},
)  # fmt: skip
MAX_RUN = 300  # pixels of a window with which a net that was read is run


def check(rng: random.Random, folder: Path) -> str:
    kind = rng.choice(tuple(KINDS))
    content = KINDS[kind][0]()
    damaged = rng.random() < 0.9
    if damaged:
        content = damage(content, rng) if content[8:9] == b"{" else mutate(content, rng)
    path = folder / {"safetensors": "state.safetensors", "checkpoint": CHECKPOINT}.get(kind, "state.pt")
    path.write_bytes(content)
    try:
        KINDS[kind][1](path)
    except InputError as error:
        assert damaged, error
        return refused(error, path)
    return "damaged, read" if damaged else "read"


# What a file is read by, and what must hold then


def read_net(path: Path) -> None:
    """A net that runs, is written, and is then the same; its box regressor is refused or runs with it."""
    net = load_any(path)
    again = path.with_name("again.safetensors")
    if isinstance(net, MultiBox):
        if net.image_size <= MAX_RUN:
            boxes, _ = net(torch.zeros(1, net.net.in_channels, net.image_size, net.image_size))
            assert tuple(boxes.shape) == (1, net.num_groups, net.num_boxes, 4), boxes.shape
        overfeat.save_multibox(net, again)
        assert overfeat.load_multibox(again).to_json() == net.to_json()
        return
    side = net.architecture.window
    if side <= MAX_RUN:
        scores = net(torch.zeros(1, net.in_channels, side, side))
        assert tuple(scores.shape) == (1, len(net.class_names), 1, 1), scores.shape
    overfeat.save(net, again)
    written = overfeat.load(again)
    for name in ("architecture", "class_names", "flip", "background", "scale_factors", "reach", "thresholds"):
        assert getattr(written, name) == getattr(net, name), name
    assert written.features_id == net.features_id
    regressor = read_regressor(path, net)
    try:
        image = torch.full((net.in_channels, 24, 30), 100.0)
        scores = overfeat.classify(net, image, scales=net.scale_factors)
        assert tuple(scores.shape) == (1, len(net.class_names)), scores.shape
        if regressor is not None:
            assert overfeat.detect(net, regressor, image).boxes.isfinite().all()
    except InputError as error:
        refused(error)


def read_regressor(path: Path, net: OverFeat) -> BoxRegressor | None:
    try:
        regressor = overfeat.load_regressor(path)
    except InputError as error:
        refused(error, path)
        return None
    regressor.check_made_for(net)
    if net.architecture.window <= MAX_RUN:
        side = net.architecture.kernel * net.architecture.pool
        boxes, _ = regressor.forward_flat([torch.zeros(1, net.architecture.channels, side, side)])
        assert tuple(boxes.shape) == (1, regressor.num_classes or 1, 4), boxes.shape
    return regressor


def read_state(path: Path) -> None:
    module = small_module()
    load_state_dict(module, path)
    assert all(weight.isfinite().all() for weight in module.state_dict().values())


def read_checkpoint(path: Path) -> None:
    assert isinstance(RunFolder(path.parent).read_checkpoint({"lr": 0.1}), dict)


# Whole files


def small_module() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


@functools.cache
def net_file(number: int) -> bytes:
    net = overfeat.build(ARCHITECTURES[number], 3)
    net.class_names, net.background, net.scale_factors = ["naïve", "\x1b[1m\n", "background"], True, (0.5, 1.25)
    net.thresholds, net.reach = DetectionThresholds(0.4, min_score=(0.5, 0.25), postprocess="vote"), 0.25
    if not number:
        net.add_context()
    regressor = BoxRegressor(net.architecture, 2 if number else None, box_features="unpooled")
    return written(lambda path: overfeat.save(net, path, regressor=regressor))


@functools.cache
def multibox_file() -> bytes:
    model = MultiBox(ARCHITECTURES[0], 3, ["cat", "dog"], torch.rand(3, 4))
    return written(lambda path: overfeat.save_multibox(model, path, dtype=torch.float16))


@functools.cache
def state_file(suffix: str) -> bytes:
    state = small_module().state_dict()
    if suffix == "safetensors":
        return save(state)
    return pickled({"state_dict": state, "epoch": 5, "args": {"lr": 0.1}} if suffix == "nested" else state)


@functools.cache
def checkpoint_file() -> bytes:
    state = {"module": small_module().state_dict(), "fingerprint": {"lr": 0.1}, "epoch": 1, "sums": {}}
    return pickled(state)


def written(write: Callable[[Path], object]) -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        write(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


def pickled(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


KINDS: dict[str, tuple[Callable[[], bytes], Callable[[Path], None]]] = {
    "net": (functools.partial(net_file, 0), read_net),
    "net on a backbone": (functools.partial(net_file, 1), read_net),
    "multibox": (multibox_file, read_net),
    "safetensors": (functools.partial(state_file, "safetensors"), read_state),
    "state dict": (functools.partial(state_file, "plain"), read_state),
    "nested state dict": (functools.partial(state_file, "nested"), read_state),
    "checkpoint": (checkpoint_file, read_checkpoint),
}


# Damage of safetensors


def damage(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with other bytes, another header, other metadata or other tensors."""
    if rng.random() < 0.2:
        return mutate(content, rng)
    (length,) = struct.unpack_from("<Q", content)
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    choice = rng.random()
    if choice < 0.15:
        header = change(header, rng)
    elif choice < 0.7 and header.get("__metadata__"):
        change_metadata(header["__metadata__"], rng)
    else:
        tensors = load(content)
        change_tensors(tensors, rng)
        return save(tensors, header.get("__metadata__"))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def change_metadata(metadata: dict[str, str], rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        name = rng.choice(tuple(metadata))
        choice = rng.random()
        if choice < 0.6:
            try:
                metadata[name] = json.dumps(change(json.loads(metadata[name]), rng))
            except (ValueError, RecursionError):
                metadata[name] = "[" * rng.choice((10, 10_000))
        elif choice < 0.8:
            metadata[name] = mutate(metadata[name].encode(), rng).decode(errors="replace")
        elif choice < 0.9:
            other = rng.choice(tuple(metadata))
            metadata[name] = metadata[other]
        elif choice < 0.95:
            metadata[name] = metadata[name][:-1] + ", " + metadata[name][1:]  # keys that are given twice
        else:
            del metadata[name]
        if not metadata:
            return


def change(value: Any, rng: random.Random) -> Any:
    """The JSON value with a part replaced, repeated or left out."""
    parts = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if not parts or rng.random() < 0.15:
        return rng.choice(VALUES)
    key = rng.choice(parts)
    choice = rng.random()
    if choice < 0.75:
        value[key] = change(value[key], rng)
    elif choice < 0.9:
        del value[key]
    elif isinstance(value, list):
        value += [value[key]] * rng.choice((1, 1, 10, 2000))
    else:
        value[rng.choice(("more", "", key))] = rng.choice(VALUES)
    return value


def change_tensors(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    name = rng.choice(tuple(tensors))
    tensor = tensors[name].clone()
    if tensor.numel() and tensor.is_floating_point() and rng.random() < 0.3:
        tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice((float("nan"), float("inf"), 3e38, 1e-45, -0.0))
    elif rng.random() < 0.4:
        kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64)
        tensor = tensor.to(rng.choice((*kinds, torch.float8_e4m3fn)))
    elif rng.random() < 0.5:
        tensor = rng.choice((tensor[..., None], tensor[None], tensor.flatten(), torch.ones(0), torch.tensor(1.0)))
    else:
        other = rng.choice(tuple(tensors))
        tensors[rng.choice((f"{name}.more", "\x1b[1m", ""))] = tensors[other].clone()
        if rng.random() < 0.5:
            tensors.pop(name)
        return
    tensors[name] = tensor.contiguous()
