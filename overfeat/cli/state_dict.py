"""The weights of the user's own module: a state dict, read without unpickling objects and checked key by key."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.errors import InputError, shorten

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
SAVE_ALONE = 'save the state dict alone: torch.save(net.state_dict(), "state.pt")'


def load_state_dict(module: "nn.Module | ExportedProgram", path: Path) -> None:
    """Load the state dict in a file, safetensors or of torch.save, into a module.

    A checkpoint may hold other things beside one state dict, and keys may have a prefix, as of DataParallel.

    Raises:
        InputError: For a file that holds pickled objects or no state dict, and for missing, unexpected or differently
            shaped keys, which the message names.
    """
    from torch import nn

    if not isinstance(module, nn.Module):
        raise InputError(f"{path}: an exported program has its weights already; leave --weights out")
    own, state = module.state_dict(), _find_state_dict(_read(path), path)
    state = _match_prefix(state, own)
    _check_keys(module, own, state, path)
    for name, tensor in state.items():
        if not tensor.to(own[name].dtype).isfinite().all():
            raise InputError(f"{path}: {name} holds NaN or infinite values; the file or its training is broken")
    module.load_state_dict(state, strict=False)  # BatchNorm's num_batches_tracked may be missing


def _read(path: Path) -> object:
    """What a file holds."""
    if not path.is_file():
        raise InputError(f"{path}: {'a folder, not a file of weights' if path.is_dir() else 'no such file'}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, "Tensor"]:
    from overfeat.models.checkpoint import read_safetensors

    metadata, tensors = read_safetensors(path)
    if "overfeat" in metadata:
        raise InputError(f"{path}: holds a net of overfeat's own; leave --module out")
    return tensors


def _read_torch(path: Path) -> object:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler raises many kinds for what is no file of torch.save
        text = str(error)
        if pickled := re.search(r"GLOBAL (\S+) was not an allowed global", text):
            kind = pickled.group(1).strip("`'")
            raise InputError(f"{path}: holds pickled objects ({kind}), which are not loaded; {SAVE_ALONE}") from error
        if "TorchScript" in text or "data.pkl" in text:
            raise InputError(f"{path}: a saved program, not a state dict; {SAVE_ALONE}") from error
        problem = "not a file of torch.save, or damaged or cut short"
        raise InputError(f"{path}: {problem}; copy it again, or {SAVE_ALONE}") from error


def _find_state_dict(content: object, path: Path) -> dict[str, "Tensor"]:
    """The state dict: all of the file, or its only entry that is one."""
    if state := _as_state_dict(content):
        return state
    entries = list(content.items()) if isinstance(content, Mapping) else []
    states = {str(name): state for name, value in entries if (state := _as_state_dict(value))}
    if len(states) == 1:
        return next(iter(states.values()))
    if not states:
        names = f" of {shorten([str(name) for name, _ in entries])}" if entries else ""
        kind = f"a {type(content).__name__}{names}"
        raise InputError(f"{path}: holds {kind}, not a state dict; {SAVE_ALONE}")
    first = next(iter(states))
    advice = f"save the right one alone: torch.save(checkpoint[{first!r}], ...)"
    raise InputError(f"{path}: holds the state dicts {shorten(list(states))}; {advice}")


def _as_state_dict(content: object) -> "dict[str, Tensor] | None":
    """The content where all of it is tensors by name, as of a state dict; else None."""
    from torch import Tensor

    if not isinstance(content, Mapping) or not content:
        return None
    named = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    return dict(content) if named else None


def _match_prefix(state: dict[str, "Tensor"], own: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The state dict without a prefix that all of its keys have, or with that of all of the module's."""
    for prefix in ("", *_common_prefixes(state)):
        shorter = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        if shorter.keys() & own.keys():
            return shorter
    for prefix in _common_prefixes(own):
        longer = {prefix + name: tensor for name, tensor in state.items()}
        if longer.keys() & own.keys():
            return longer
    return state


def _common_prefixes(state: Mapping[str, "Tensor"]) -> list[str]:
    """What all keys start with, up to a dot."""
    first = next(iter(state), "")
    prefixes = [first[: match.end()] for match in re.finditer(r"\.", first)]
    return [prefix for prefix in prefixes if all(name.startswith(prefix) for name in state)]


def _check_keys(module: "nn.Module", own: Mapping[str, "Tensor"], state: dict[str, "Tensor"], path: Path) -> None:
    """Raises InputError where a state dict does not fit the module."""
    from torch.nn.parameter import is_lazy

    loaded = {own[name].data_ptr() for name in own.keys() & state.keys() if not is_lazy(own[name])}
    missing = [name for name, tensor in own.items() if name not in state and not name.endswith("num_batches_tracked")]
    missing = [name for name in missing if is_lazy(own[name]) or own[name].data_ptr() not in loaded]  # but tied weights
    problems = [
        f"{len(names)} key{'s' if len(names) > 1 else ''} {what} ({shorten(names)})"
        for what, names in (
            ("missing", missing),
            ("that the module does not have", [name for name in state if name not in own]),
        )
        if names
    ]
    for name in filter(own.__contains__, state):
        given, expected = state[name], own[name]
        if not is_lazy(expected) and given.shape != expected.shape:
            problems.append(f"{name} is {list(given.shape)}, in the module {list(expected.shape)}")
        elif expected.is_floating_point() and not given.is_floating_point():
            problems.append(f"{name} is {given.dtype}, in the module {expected.dtype}")
    if problems:
        remedy = "make the module that the weights were saved from"
        raise InputError(f"{path}: does not fit {type(module).__name__}: {shorten(problems)}; {remedy}")
