"""What was measured on a device, in a JSON file in the user's cache folder: written by tune.py, read by launch.py."""

import json
import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
import triton

from overfeat.files import ensure_dir, write_json
from overfeat.kernels.cost_model import Constants
from overfeat.kernels.plan import ANY, Tile

FORMAT = 1
REMEDY = "measure again with `python -m bench --tune`"


def path_of(device: torch.device) -> Path:
    """The file of a device: $XDG_CACHE_HOME/overfeat/kernels-NAME.json, by default in ~/.cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return folder / "overfeat" / f"kernels-{re.sub(r'[^A-Za-z0-9]+', '-', _name(device))}.json"


def write(device: torch.device, constants: Constants) -> Path:
    """Store what was measured. Raises WriteError."""
    efficiency = [[*key, sorted(known.items())] for key, known in constants.efficiency.items()]
    tiles = {
        kind: [[rows, [t.m, t.n, t.k, t.warps, t.stages, t.group_m, t.programs]] for rows, t in table]
        for kind, table in constants.tiles.items()
    }
    path = path_of(device)
    ensure_dir(path.parent)
    numbers = {name: getattr(constants, name) for name in ("multiprocessors", "flops", "bandwidth", "launch")}
    write_json(path, {"measured on": _origin(device), **numbers, "efficiency": efficiency, "tiles": tiles})
    return path


def read(device: torch.device) -> Constants | None:
    """What was stored, or None: without a file, and with a warning if it is damaged or of other software."""
    path = path_of(device)
    try:
        stored = json.loads(path.read_bytes())
        if stored["measured on"] != _origin(device):
            warnings.warn(f"{path} was measured with another device or software and is ignored; {REMEDY}", stacklevel=2)
            return None
        return _parsed(stored)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        warnings.warn(f"{path} is damaged and ignored ({error!r}); {REMEDY}", stacklevel=2)
        return None


def _origin(device: torch.device) -> dict[str, Any]:
    """What a measurement holds for."""
    return {"format": FORMAT, "device": _name(device), "torch": torch.__version__, "triton": triton.__version__}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _parsed(stored: dict[str, Any]) -> Constants:
    """Raises ValueError, TypeError, KeyError or AttributeError unless all numbers make sense."""
    return Constants(
        multiprocessors=_whole(stored["multiprocessors"]),
        flops={kind: _positive(stored["flops"][kind]) for kind in ("16 bit", "tf32", "ieee")},
        bandwidth=_positive(stored["bandwidth"]),
        launch=_positive(stored["launch"]),
        efficiency={
            (gemm, kind, variant): {_whole(count): _positive(fraction) for count, fraction in known}
            for gemm, kind, variant, known in stored["efficiency"]
        },
        tiles={kind: _table(table) for kind, table in stored["tiles"].items()},
    )


def _positive(value: float) -> float:
    if isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{value!r:.40} is no positive number")
    return float(value)


def _whole(value: int) -> int:
    if type(value) is not int or not 1 <= value <= ANY:
        raise ValueError(f"{value!r:.40} is no positive whole number")
    return value


def _table(entries: list) -> list[tuple[int, Tile]]:
    table = [(_whole(rows), _tile(*map(_whole, numbers))) for rows, numbers in entries]
    if [rows for rows, _ in table][-1:] != [ANY] or table != sorted(table, key=lambda entry: entry[0]):
        raise ValueError(f"{entries} are not tiles by maximum number of rows")
    return table


def _tile(*numbers: int) -> Tile:
    tile = Tile(*numbers)
    sides = (tile.m, tile.n, tile.k)
    fits = 16 <= min(sides) and max(sides) <= 512 and tile.warps <= 16 and tile.stages <= 8
    if any(side & (side - 1) for side in (*sides, tile.warps)) or not fits:
        raise ValueError(f"{tile} is no tile")
    return tile
