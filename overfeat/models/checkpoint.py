"""Weights on disk: safetensors files with the architecture and all other attributes of a net in their metadata."""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from overfeat.errors import ArgumentError, InputError
from overfeat.files import atomic_write
from overfeat.models.architecture import Architecture
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat, channels_last
from overfeat.models.thresholds import DetectionThresholds

FORMAT = "1"
REGRESSOR = "regressor."  # the prefix of its tensors' names
Module = TypeVar("Module", bound=torch.nn.Module)


def save(
    net: OverFeat, path: str | os.PathLike, *, dtype: torch.dtype | None = None, regressor: BoxRegressor | None = None
) -> None:
    """Write a net with all its attributes to a safetensors file, atomically.

    Args:
        dtype: Of the weights in the file (float16 halves it); None: as they are.
        regressor: Written to the same file, for `load_regressor`.

    Raises:
        InputError: Where the file cannot be written, or the dtype cannot represent a weight.
    """
    if not isinstance(net, OverFeat):
        remedy = "for a converted net save the module's state_dict, and convert it again"
        raise ArgumentError("net", f"must be an OverFeat, not {type(net).__name__}; {remedy}")
    metadata = {"overfeat": FORMAT, "architecture": net.architecture.to_json()}
    metadata |= {
        name: json.dumps(getattr(net, name)) for name in ("class_names", "flip", "background", "scale_factors", "reach")
    }
    metadata["context"] = json.dumps(net.context is not None)
    if net.thresholds is not None:
        metadata["thresholds"] = net.thresholds.to_json()
    if regressor is not None:
        metadata["regressor"] = regressor.to_json()
    of_regressor = {} if regressor is None else regressor.state_dict()
    tensors = net.state_dict() | {f"{REGRESSOR}{name}": tensor for name, tensor in of_regressor.items()}
    _write(path, tensors, metadata, dtype)


def load(path: str | os.PathLike) -> OverFeat:
    """Read a net that `save` wrote, as float32, in evaluation mode.

    Raises:
        InputError: For a file that is missing, not a safetensors file, not written by overfeat, inconsistent with its
            own architecture, or with NaN or infinite weights.
    """
    metadata, tensors = _read(path, lambda name: not name.startswith(REGRESSOR))
    if "multibox" in metadata:
        raise InputError(f"{path}: holds a DeepMultiBox, whose boxes are class-agnostic, and no classifier")
    with _consistent(path, "its weights"):
        names = json.loads(metadata["class_names"])
        if not isinstance(names, list):
            raise TypeError("class_names is no list")
        context = json.loads(metadata["context"])
        net = empty_net(Architecture.from_json(metadata["architecture"]), len(names), context)
        net.class_names = [str(name) for name in names]
        net.flip = bool(json.loads(metadata["flip"]))
        net.background = bool(json.loads(metadata["background"]))
        net.scale_factors = _scale_factors(json.loads(metadata["scale_factors"]))
        thresholds = metadata.get("thresholds", "null")  # files of earlier versions have none
        net.thresholds = DetectionThresholds.from_json(thresholds, net.num_foreground_classes)
        net.reach = _reach(json.loads(metadata.get("reach", "0.0")))  # files of earlier versions have none
        net.load_state_dict(tensors)
    return _finite(net, path)


def load_regressor(path: str | os.PathLike) -> BoxRegressor:
    """Read the box regressor that `save` wrote beside a net. Raises InputError as `load`, and where there is none."""
    regressor = find_regressor(path)
    if regressor is None:
        raise InputError(f"{path}: holds a net without a box regressor; add one with `overfeat train regressor`")
    return regressor


def find_regressor(path: str | os.PathLike) -> BoxRegressor | None:
    """`load_regressor`, or None where the file holds a net alone."""
    metadata, tensors = _read(path, lambda name: name.startswith(REGRESSOR))
    if "regressor" not in metadata:
        return None
    with _consistent(path, "the regressor", "; train it again"):
        architecture = Architecture.from_json(metadata["architecture"])
        with torch.device("meta"):
            regressor = BoxRegressor.from_json(metadata["regressor"], architecture)
        tensors = {name.removeprefix(REGRESSOR): tensor for name, tensor in tensors.items()}
        for name, tensor in regressor.state_dict().items():
            if name not in tensors or tensors[name].shape != tensor.shape or not tensors[name].is_floating_point():
                raise ValueError(f"{name} is missing, or no {list(tensor.shape)} of floating point")
        regressor = channels_last(regressor.to_empty(device="cpu"))
        regressor.load_state_dict(tensors)
        classes = len(json.loads(metadata["class_names"])) - bool(json.loads(metadata["background"]))
        if regressor.num_classes not in (None, classes):
            raise ValueError(f"boxes of {regressor.num_classes} classes")
    return _finite(regressor, path, REGRESSOR)


def save_multibox(model: MultiBox, path: str | os.PathLike, *, dtype: torch.dtype | None = None) -> None:
    """Write DeepMultiBox's net to a safetensors file, atomically. dtype and InputError as in `save`."""
    metadata = {"overfeat": FORMAT, "architecture": model.net.architecture.to_json(), "multibox": model.to_json()}
    _write(path, model.state_dict(), metadata, dtype)


def load_multibox(path: str | os.PathLike) -> MultiBox:
    """Read what `save_multibox` wrote, as float32, in evaluation mode. Raises InputError as `load`."""
    metadata, tensors = _read(path, lambda name: True)
    if "multibox" not in metadata:
        raise InputError(f"{path}: holds no DeepMultiBox; train one with `overfeat train multibox`")
    with _consistent(path, "its weights"):
        with torch.device("meta"):
            model = MultiBox.from_json(metadata["multibox"], Architecture.from_json(metadata["architecture"]))
        model = channels_last(model.to_empty(device="cpu"))
        model.load_state_dict(tensors)
    return _finite(model, path)


def load_any(path: str | os.PathLike) -> OverFeat | MultiBox:
    """`load` or `load_multibox`, as the file is. Raises InputError as they do."""
    return load_multibox(path) if "multibox" in _read(path, lambda name: False)[0] else load(path)


@contextmanager
def _consistent(path: str | os.PathLike, part: str, remedy: str = "") -> Iterator[None]:
    """InputError for what metadata and tensors that do not belong together raise in the block."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise InputError(f"{path}: {part} and its metadata do not fit together ({why}){remedy}") from error


def _read(path: str | os.PathLike, select: Callable[[str], bool]) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata of a file that overfeat wrote, and the tensors whose names `select` accepts."""
    path = existing_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if select(name)}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    if metadata.get("overfeat") != FORMAT:
        problem = "a safetensors file, but not one that this version of overfeat wrote"
        remedy = "make one with `overfeat train` or `overfeat convert`, or give the module that it is of (--module)"
        raise InputError(f"{path}: {problem}; {remedy}")
    return metadata, tensors


def _write(
    path: str | os.PathLike, tensors: dict[str, torch.Tensor], metadata: dict[str, str], dtype: torch.dtype | None
) -> None:
    tensors = {
        name: tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
        for name, tensor in tensors.items()
    }
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if dtype is not None and broken:
        raise InputError(f"{path}: not written; {broken[0]} is too large for {dtype}, NaN or infinite")
    with atomic_write(path) as part:
        save_file(tensors, part, metadata)


def _finite(module: Module, path: str | os.PathLike, prefix: str = "") -> Module:
    """The module in evaluation mode; InputError for NaN or infinite weights."""
    for name, tensor in module.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {prefix}{name} holds NaN or infinite values; the file or its training is broken")
    return module.eval()


def _scale_factors(values: list[float] | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    scale_factors = tuple(float(value) for value in values)
    if not scale_factors or not all(0 < factor < math.inf for factor in scale_factors):
        raise ValueError(f"scale_factors {values}")
    return scale_factors


def _reach(value: float) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"reach {value}")
    return float(value)


def empty_net(architecture: Architecture, classes: int, context: bool = False) -> OverFeat:
    """A net whose weights are allocated and not initialised."""
    return channels_last(meta_net(architecture, classes, context).to_empty(device="cpu"))


def meta_net(architecture: Architecture, classes: int, context: bool = False) -> OverFeat:
    """A net without the memory for its weights."""
    with torch.device("meta"):
        return OverFeat(architecture, classes, context)


def existing_file(path: str | os.PathLike) -> Path:
    """The path. Raises InputError where it is no file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path
