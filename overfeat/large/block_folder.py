"""The folder with the results of blocks: a record of what they depend on keeps runs of other settings out."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from overfeat.errors import InputError
from overfeat.files import atomic_write, ensure_dir, remove_leftovers
from overfeat.large.blocks import Plan

PLAN = "plan.json"


def claim_folder(folder: Path, plan: Plan, settings: dict[str, Any]) -> None:
    """Prepare a folder for the results of a plan's blocks. Raises InputError if it holds those of others.

    settings: What the results depend on beside the plan.
    """
    text = json.dumps({**_record(plan), **settings}, sort_keys=True, default=str)
    file = ensure_dir(folder) / PLAN
    if file.exists():
        if file.read_text() != text:
            problem = f"{folder}: holds blocks of another image, net or settings"
            raise InputError(f"{problem}; delete it, or write to another place")
    else:
        with atomic_write(file) as part:
            part.write_text(text)
    remove_leftovers(folder)


def _record(plan: Plan) -> dict[str, Any]:
    """A plan as JSON holds it."""
    image, view = plan.view.image, plan.view
    path = Path(image.name)
    return {
        "image": os.path.abspath(path),
        "levels": list(image.levels),
        "file": [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else None,
        "level": view.level,
        "region": view.region,
        "grids": [asdict(grid) for grid in plan.grids],
        "blocks": hashlib.sha256(repr(plan.blocks).encode()).hexdigest(),
    }


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 of a module's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
