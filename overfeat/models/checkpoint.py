"""Weights on disk: safetensors files with the architecture and all other attributes of a net in their metadata."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from overfeat.errors import ArgumentError, InputError, printable, shorten
from overfeat.files import atomic_write
from overfeat.models.architecture import Architecture
from overfeat.models.backbone import FeatureLayers
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.metadata import flag, items, parse, real, string
from overfeat.models.multibox import MultiBox
from overfeat.models.overfeat import OverFeat, channels_last
from overfeat.models.thresholds import DetectionThresholds
from overfeat.models.wrappers import unwrap

FORMAT = "1"
REGRESSOR = "regressor."  # the prefix of its tensors' names
FEATURES = ("conv_layers.", "backbone.")  # the prefixes of those of the feature layers
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of weights in files
MAX_SCALES, MAX_SCALE_FACTOR = 100, 1000  # that a file may ask for
MAX_REASON = 300  # characters
Module = TypeVar("Module", bound=torch.nn.Module)


def save(
    net: OverFeat, path: str | os.PathLike, *, dtype: torch.dtype | None = None, regressor: BoxRegressor | None = None
) -> None:
    """Write a net with all its attributes to a safetensors file, atomically.

    Args:
        dtype: Of the weights in the file, one of floating point (float16 halves it); None: as they are.
        regressor: Written to the same file, for `load_regressor`.

    Raises:
        InputError: Where the file cannot be written, the regressor was made for another net, the attributes are none
            that `load` could read, or the dtype cannot represent a weight.
    """
    net, regressor = unwrap(net), unwrap(regressor)
    if not isinstance(net, OverFeat):
        remedy = "for a converted net save the module's state_dict, and convert it again"
        raise ArgumentError("net", f"must be an OverFeat, not {type(net).__name__}; {remedy}")
    if regressor is not None:
        if not isinstance(regressor, BoxRegressor):
            raise ArgumentError("regressor", f"must be a BoxRegressor, not {type(regressor).__name__}")
        regressor.check_made_for(net)
    with consistent(path, "the net"):
        metadata = _net_metadata(net)
        if regressor is not None:
            metadata["regressor"] = regressor.to_json()
            check_fits(_regressor_of(metadata), regressor.state_dict())
        check_fits(_net_of(metadata), net.state_dict())
    of_regressor = {} if regressor is None else regressor.state_dict()
    tensors = net.state_dict() | {f"{REGRESSOR}{name}": tensor for name, tensor in of_regressor.items()}
    write_tensors(path, tensors, metadata, dtype)


def load(path: str | os.PathLike) -> OverFeat:
    """Read a net that `save` wrote, as float32, in evaluation mode.

    Raises:
        InputError: For a file that is missing, not a safetensors file, not written by overfeat, inconsistent with its
            own architecture, or with NaN or infinite weights.
    """
    metadata, tensors = read_tensors(path, lambda name: not name.startswith(REGRESSOR))
    if "multibox" in metadata:
        raise InputError(f"{path}: holds a DeepMultiBox, whose boxes are class-agnostic, and no classifier")
    if "prototypes" in metadata:
        raise InputError(f"{path}: holds prototypes, and no net; overfeat.Prototypes.load(path, net=...) reads them")
    with consistent(path, "its weights"):
        net = fill(_net_of(metadata), tensors)
        net.features_id = _features_id(tensors)
    return _finite(net, path)


def load_regressor(path: str | os.PathLike) -> BoxRegressor:
    """Read the box regressor that `save` wrote beside a net. Raises InputError as `load`, and where there is none."""
    regressor = find_regressor(path)
    if regressor is None:
        raise InputError(f"{path}: holds a net without a box regressor; add one with `overfeat train regressor`")
    return regressor


def find_regressor(path: str | os.PathLike) -> BoxRegressor | None:
    """`load_regressor`, or None where the file holds a net alone."""
    metadata, tensors = read_tensors(path, lambda name: name.startswith((REGRESSOR, *FEATURES)))
    if "regressor" not in metadata:
        return None
    with consistent(path, "the regressor", "; train it again"):
        own = {name.removeprefix(REGRESSOR): t for name, t in tensors.items() if name.startswith(REGRESSOR)}
        regressor = fill(_regressor_of(metadata), own)
        regressor.features_id = _features_id(tensors)
    return _finite(regressor, path, REGRESSOR)


def save_multibox(model: MultiBox, path: str | os.PathLike, *, dtype: torch.dtype | None = None) -> None:
    """Write DeepMultiBox's net to a safetensors file, atomically. dtype and InputError as in `save`."""
    if not isinstance(model, MultiBox):
        raise ArgumentError("model", f"must be a MultiBox, not {type(model).__name__}")
    with consistent(path, "the net"):
        metadata = {"overfeat": FORMAT, "architecture": model.net.architecture.to_json(), "multibox": model.to_json()}
        check_fits(_multibox_of(metadata), model.state_dict())
    write_tensors(path, model.state_dict(), metadata, dtype)


def load_multibox(path: str | os.PathLike) -> MultiBox:
    """Read what `save_multibox` wrote, as float32, in evaluation mode. Raises InputError as `load`."""
    metadata, tensors = read_tensors(path, lambda name: True)
    if "multibox" not in metadata:
        raise InputError(f"{path}: holds no DeepMultiBox; train one with `overfeat train multibox`")
    with consistent(path, "its weights"):
        model = fill(_multibox_of(metadata), tensors)
    return _finite(model, path)


def load_any(path: str | os.PathLike) -> OverFeat | MultiBox:
    """`load` or `load_multibox`, as the file is. Raises InputError as they do."""
    return load_multibox(path) if "multibox" in read_tensors(path, lambda name: False)[0] else load(path)


# Metadata, and modules on the meta device that they describe


def _net_metadata(net: OverFeat) -> dict[str, str]:
    """All attributes of a net."""
    factors = net.scale_factors
    values = {
        "class_names": [str(name) for name in net.class_names],
        "flip": bool(net.flip),
        "background": bool(net.background),
        "scale_factors": None if factors is None else [float(factor) for factor in factors],
        "reach": float(net.reach),
        "context": net.context is not None,
    }
    metadata = {"overfeat": FORMAT, "architecture": net.architecture.to_json()}
    metadata |= {name: json.dumps(value) for name, value in values.items()}
    if net.thresholds is not None:
        metadata["thresholds"] = net.thresholds.to_json()
    return metadata


def _net_of(metadata: dict[str, str]) -> OverFeat:
    """A net with these attributes. Raises ValueError for invalid ones."""
    names = [string(name, "a class name") for name in items(parse(metadata["class_names"]), "class_names")]
    context = flag(parse(metadata["context"]), "context")
    net = meta_net(_architecture(metadata), len(names), context)
    net.class_names = names
    net.flip = flag(parse(metadata["flip"]), "flip")
    net.background = flag(parse(metadata["background"]), "background")
    factors = parse(metadata["scale_factors"])
    if factors is not None:
        limits = "scale_factors", 1 / MAX_SCALE_FACTOR, MAX_SCALE_FACTOR
        net.scale_factors = tuple(real(factor, *limits) for factor in items(factors, "scale_factors", MAX_SCALES))
        if not factors:
            raise ValueError("scale_factors are none")
    # Files of earlier versions have neither.
    net.thresholds = DetectionThresholds.from_json(metadata.get("thresholds", "null"), net.num_foreground_classes)
    net.reach = real(parse(metadata.get("reach", "0.0")), "reach", 0, 1)
    return net


def _regressor_of(metadata: dict[str, str]) -> BoxRegressor:
    """The regressor of a net with these attributes. Raises ValueError for invalid ones."""
    architecture = _architecture(metadata)
    with torch.device("meta"):
        regressor = BoxRegressor.from_json(metadata["regressor"], architecture)
    background = flag(parse(metadata["background"]), "background")
    classes = len(items(parse(metadata["class_names"]), "class_names")) - background
    if regressor.num_classes not in (None, classes):
        raise ValueError(f"boxes of {regressor.num_classes} classes")
    return regressor


def _multibox_of(metadata: dict[str, str]) -> MultiBox:
    """A DeepMultiBox with these attributes. Raises ValueError for invalid ones."""
    architecture = _architecture(metadata)
    with torch.device("meta"):
        return MultiBox.from_json(metadata["multibox"], architecture)


def _architecture(metadata: dict[str, str]) -> Architecture:
    """The architecture, whose backbone runs on an image of a window's size. Raises ValueError or RuntimeError."""
    architecture = Architecture.from_json(metadata["architecture"])
    if architecture.backbone is not None:
        with torch.device("meta"), torch.no_grad():
            image = torch.empty(1, architecture.in_channels, architecture.window, architecture.window)
            maps = FeatureLayers(architecture.backbone)(image)
        side = architecture.kernel * architecture.pool
        if tuple(maps.shape) != (1, architecture.channels, side, side):
            raise ValueError(f"the backbone gives maps {list(maps.shape)} of a window")
    return architecture


def _features_id(tensors: dict[str, torch.Tensor]) -> str:
    """A digest of the feature layers' weights as float32, by which a regressor knows the net it was trained on."""
    digest = hashlib.sha256()
    for name in sorted(name for name in tensors if name.startswith(FEATURES)):
        digest.update(tensors[name].float().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def consistent(path: str | os.PathLike, part: str, remedy: str = "") -> Iterator[None]:
    """InputError for what metadata and tensors that do not belong together raise in the block."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RuntimeError) as error:
        why = printable(error)[:MAX_REASON]
        if isinstance(error, KeyError):
            why = f"{error.args[0]} is missing"
        elif isinstance(error, RuntimeError):  # of torch, at times with a stack of C++
            why = "torch has no layers of these sizes"
        raise InputError(f"{path}: {part} and its metadata do not fit together ({why}){remedy}") from error


def check_fits(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Raises ValueError unless these are the module's weights by name, shape and kind."""
    expected = module.state_dict()
    if missing := [name for name in expected if name not in tensors]:
        raise ValueError(f"without {shorten(missing)}")
    if unknown := [name for name in tensors if name not in expected]:
        raise ValueError(f"with unknown {shorten(unknown)}")
    for name, tensor in expected.items():
        actual = tensors[name]
        if actual.shape != tensor.shape:
            raise ValueError(f"{name} is {list(actual.shape)}, not {list(tensor.shape)}")
        if not actual.is_floating_point():
            raise ValueError(f"{name} is {actual.dtype}, not of floating point")


def fill(module: Module, tensors: dict[str, torch.Tensor]) -> Module:
    """A module from the meta device with these weights, as float32. Raises ValueError where they do not fit."""
    check_fits(module, tensors)
    module = allocate(channels_last(module))
    module.load_state_dict(tensors)
    return module


def allocate(module: Module) -> Module:
    """A module from the meta device with float32 weights that are not initialised, in the memory format that they have.

    As `to_empty`, for which torch imports its symbolic shapes, of 40 MiB.
    """
    return module.float()._apply(lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu"))


def read_safetensors(
    path: str | os.PathLike, select: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata of a safetensors file, and the tensors whose names `select` accepts. Raises InputError."""
    path = existing_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys() if select(name)}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({printable(error)[:MAX_REASON]})") from error


def read_tensors(
    path: str | os.PathLike, select: Callable[[str], bool]
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata of a file that overfeat wrote, and the tensors whose names `select` accepts."""
    metadata, tensors = read_safetensors(path, select)
    if metadata.get("overfeat") != FORMAT:
        problem = "a safetensors file, but not one that this version of overfeat wrote"
        remedy = "make one with `overfeat train` or `overfeat convert`, or run weights of your own `module` with that"
        raise InputError(f"{path}: {problem}; {remedy}")
    return metadata, tensors


def write_tensors(
    path: str | os.PathLike, tensors: dict[str, torch.Tensor], metadata: dict[str, str], dtype: torch.dtype | None
) -> None:
    check_path(path)
    if not (dtype is None or (isinstance(dtype, torch.dtype) and dtype in DTYPES)):
        allowed = ", ".join(map(str, DTYPES))
        raise ArgumentError("dtype", f"must be None or one of {allowed}, not {dtype}")
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


def empty_net(architecture: Architecture, classes: int, context: bool = False) -> OverFeat:
    """A net whose weights are allocated and not initialised."""
    return allocate(channels_last(meta_net(architecture, classes, context)))


def meta_net(architecture: Architecture, classes: int, context: bool = False) -> OverFeat:
    """A net without the memory for its weights."""
    with torch.device("meta"):
        return OverFeat(architecture, classes, context)


def check_path(path: object) -> None:
    """Raises TypeError for what is no path."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be that of a file, not {type(path).__name__}")


def existing_file(path: str | os.PathLike) -> Path:
    """The path. Raises InputError where it is no file."""
    check_path(path)
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path
