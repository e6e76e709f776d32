"""Weights on disk: safetensors that hold all the net needs to know of itself, and the released raw files."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from overfeat.architectures import ARCHITECTURES, Architecture
from overfeat.files import InputError, replacing
from overfeat.heads import MultiBox, Regressor
from overfeat.nets import OverFeat

FORMAT = "1"
REGRESSOR = "regressor."  # the prefix of its tensors' names
Module = TypeVar("Module", bound=torch.nn.Module)
RELEASED_FILES = {"fast": "net_weight_0", "accurate": "net_weight_1"}


def save(
    net: OverFeat, path: str | os.PathLike, dtype: torch.dtype | None = None, regressor: Regressor | None = None
) -> None:
    """Write a net with all its attributes to a safetensors file, atomically.

    regressor: written beside it, for `load_regressor`. dtype: store the weights as this type (float16
    halves the file); by default as they are. Raises InputError where the file cannot be written.
    """
    metadata = {
        "overfeat": FORMAT,
        "architecture": net.architecture.to_json(),
        "class_names": json.dumps(net.class_names),
        "flip": json.dumps(net.flip),
        "background": json.dumps(net.background),
        "zooms": json.dumps(net.zooms),
        "context": json.dumps(net.context is not None),
    }
    if regressor is not None:
        metadata["regressor"] = regressor.to_json()
    _write(path, _named(net, regressor), metadata, dtype)


def load(path: str | os.PathLike) -> OverFeat:
    """Read a net that `save` wrote, as float32, in evaluation mode.

    Raises InputError where the file is missing, no safetensors file, not written by overfeat,
    at odds with its own architecture, or holds NaN or infinite weights.
    """
    metadata, tensors = _read(path, lambda name: not name.startswith(REGRESSOR))
    if "multibox" in metadata:
        raise InputError(f"{path}: holds a DeepMultiBox, which gives boxes of anything, and no net of classes")
    try:
        names = json.loads(metadata["class_names"])
        if not isinstance(names, list):
            raise TypeError("class_names is no list")
        context = json.loads(metadata.get("context", "false"))
        net = _empty(Architecture.from_json(metadata["architecture"]), len(names), context)
        net.class_names = [str(name) for name in names]
        net.flip = bool(json.loads(metadata["flip"]))
        net.background = bool(json.loads(metadata.get("background", "false")))
        net.zooms = _zooms(json.loads(metadata.get("zooms", "null")))
        net.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: its weights and its metadata do not fit together ({error})") from error
    return _finite(net, path)


def load_regressor(path: str | os.PathLike) -> Regressor:
    """Read the box regressor that `save` wrote beside a net. Raises InputError as `load`, and where there is none."""
    regressor = find_regressor(path)
    if regressor is None:
        raise InputError(f"{path}: holds a net without a box regressor; add one with `overfeat train regressor`")
    return regressor


def find_regressor(path: str | os.PathLike) -> Regressor | None:
    """`load_regressor`, or None where the file holds a net alone."""
    metadata, tensors = _read(path, lambda name: name.startswith(REGRESSOR))
    if "regressor" not in metadata:
        return None
    try:
        architecture = Architecture.from_json(metadata["architecture"])
        with torch.device("meta"):
            regressor = Regressor.from_json(metadata["regressor"], architecture)
        tensors = {name.removeprefix(REGRESSOR): tensor for name, tensor in tensors.items()}
        for name, tensor in regressor.state_dict().items():
            if name not in tensors or tensors[name].shape != tensor.shape or not tensors[name].is_floating_point():
                raise ValueError(f"{name} is missing, or no {list(tensor.shape)} of floating point")
        regressor = regressor.to_empty(device="cpu").to(memory_format=torch.channels_last)
        regressor.load_state_dict(tensors)
        classes = len(json.loads(metadata["class_names"])) - bool(json.loads(metadata.get("background", "false")))
        if regressor.classes not in (None, classes):
            raise ValueError(f"boxes of {regressor.classes} classes")
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise InputError(
            f"{path}: the regressor and its metadata do not fit together ({why}); train it anew"
        ) from error
    return _finite(regressor, path, REGRESSOR)


def save_multibox(model: MultiBox, path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Write DeepMultiBox's net to a safetensors file, atomically. dtype and InputError as in `save`."""
    metadata = {"overfeat": FORMAT, "architecture": model.net.architecture.to_json(), "multibox": model.to_json()}
    _write(path, model.state_dict(), metadata, dtype)


def load_multibox(path: str | os.PathLike) -> MultiBox:
    """Read what `save_multibox` wrote, as float32, in evaluation mode. Raises InputError as `load`."""
    metadata, tensors = _read(path, lambda name: True)
    if "multibox" not in metadata:
        raise InputError(f"{path}: holds no DeepMultiBox; train one with `overfeat train multibox`")
    try:
        with torch.device("meta"):
            model = MultiBox.from_json(metadata["multibox"], Architecture.from_json(metadata["architecture"]))
        model = model.to_empty(device="cpu").to(memory_format=torch.channels_last)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"{path}: its weights and its metadata do not fit together ({why})") from error
    return _finite(model, path)


def load_any(path: str | os.PathLike) -> OverFeat | MultiBox:
    """`load` or `load_multibox`, as the file is. Raises InputError as they do."""
    return load_multibox(path) if "multibox" in _read(path, lambda name: False)[0] else load(path)


def _read(path: str | os.PathLike, wanted: Callable[[str], bool]) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata of a file of ours, and the tensors whose names are wanted."""
    path = _existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if wanted(name)}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    if metadata.get("overfeat") != FORMAT:
        raise InputError(
            f"{path}: a safetensors file, but not one that this version of overfeat wrote; "
            "make one with `overfeat train` or `overfeat convert`"
        )
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
        raise InputError(f"{path}: not written; {broken[0]} is too large a number for {dtype}, or is none")
    with replacing(path) as part:
        save_file(tensors, part, metadata)


def _named(net: OverFeat, regressor: Regressor | None) -> dict[str, torch.Tensor]:
    """All tensors of a file, by name."""
    of_regressor = {} if regressor is None else regressor.state_dict()
    return net.state_dict() | {f"{REGRESSOR}{name}": tensor for name, tensor in of_regressor.items()}


def _finite(module: Module, path: str | os.PathLike, prefix: str = "") -> Module:
    """The module in evaluation mode; InputError where a weight is no number."""
    for name, tensor in module.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {prefix}{name} holds NaN or infinite values; the file or its training is broken")
    return module.eval()


def load_released(path: str | os.PathLike, name: str) -> OverFeat:
    """Read the 2013 release's raw weights: net_weight_0 (name "fast") or net_weight_1 ("accurate").

    Little-endian float32 without a header: for every convolution and full layer in order the
    weight as [out][in][height][width], then the bias. 1,000 classes in the order of the
    ILSVRC2012 development kit. Raises InputError for a wrong size, naming those that are right.
    """
    path = _existing(path)
    if name not in RELEASED_FILES:
        raise InputError(f"released weights are for {' and '.join(RELEASED_FILES)}, not {name!r}")
    size = path.stat().st_size
    right = {name: released_size(_meta(ARCHITECTURES[name], 1000)) for name in RELEASED_FILES}
    if size != right[name]:
        told = ", ".join(f"{RELEASED_FILES[name]} ({name}): {bytes_:,}" for name, bytes_ in right.items())
        raise InputError(f"{path}: {size:,} bytes; the released files have {told}")
    net = _empty(ARCHITECTURES[name], 1000)
    with open(path, "rb") as file, torch.no_grad():
        for parameter in _released_order(net):
            values = np.fromfile(file, dtype="<f4", count=parameter.numel())
            parameter.copy_(torch.from_numpy(values.astype(np.float32, copy=False)).view(parameter.shape))
            if not parameter.isfinite().all():
                raise InputError(f"{path}: NaN or infinite weights; is it complete and of this layout?")
    return net.eval()


def save_released(net: OverFeat, path: str | os.PathLike) -> None:
    """Write a net's weights in the released layout; `load_released` reads those of 1,000 classes."""
    with replacing(path) as part, open(part, "wb") as file:
        for parameter in _released_order(net):
            # Not ndarray.tofile, which takes a full disk for success.
            file.write(parameter.detach().cpu().float().contiguous().numpy().astype("<f4").data)


def released_size(net: OverFeat) -> int:
    """Bytes of the net's weights in the released layout."""
    return 4 * sum(parameter.numel() for parameter in net.parameters())


def read_labels(path: str | os.PathLike, classes: int) -> list[str]:
    """Class names from a text file, one a line. Raises InputError where their number is wrong."""
    try:
        names = _existing(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error.reason})") from error
    names = [name.strip() for name in names if name.strip()]
    if len(names) != classes:
        raise InputError(f"{path}: {len(names)} names for a net of {classes} classes; one name a line is needed")
    return names


def _released_order(net: OverFeat):
    for layer in (*net.convs, *net.fulls):
        yield layer.weight
        yield layer.bias


def _zooms(values: object) -> tuple[float, ...] | None:
    if values is None:
        return None
    zooms = tuple(float(value) for value in values)
    if not zooms or not all(0 < zoom < math.inf for zoom in zooms):
        raise ValueError(f"zooms {values}")
    return zooms


def _empty(architecture: Architecture, classes: int, context: bool = False) -> OverFeat:
    """A net whose weights are allocated and not initialised: they are about to be overwritten."""
    return _meta(architecture, classes, context).to_empty(device="cpu").to(memory_format=torch.channels_last)


def _meta(architecture: Architecture, classes: int, context: bool = False) -> OverFeat:
    """A net without the memory for its weights."""
    with torch.device("meta"):
        return OverFeat(architecture, classes, context)


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path
