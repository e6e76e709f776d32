"""The nets that are served: those that ship, and files of weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from overfeat.densify.net import DensifiedNet
from overfeat.densify.squeezenet import squeezenet
from overfeat.errors import InputError
from overfeat.files import ASSETS
from overfeat.models.checkpoint import find_regressor, load
from overfeat.models.net import Net, Regressor
from overfeat.models.overfeat import OverFeat

TASKS = ("classify", "detect", "localize", "features")
SHIPPED = {"digits": "small", "digit-detector": "detector", "blood-cells": "cells"}  # name: file in assets


@dataclass(frozen=True)
class Model:
    """A net with its name and, where it has one, its box regressor."""

    name: str
    net: Net
    regressor: Regressor | None = None

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Those of TASKS that it has, its main one first."""
        detects = self.regressor is not None and (self.net.background or self.net.activation != "softmax")
        tasks = ["classify", "features"]
        if self.regressor is not None:
            tasks.insert(0 if not detects else 1, "localize")
        return tuple(["detect"] * detects + tasks)

    @property
    def teaches(self) -> bool:
        """Whether `Prototypes` can be made of the net's features."""
        return isinstance(self.net, DensifiedNet) or (
            isinstance(self.net, OverFeat) and bool(self.net.architecture.hidden)
        )

    def describe(self) -> dict[str, Any]:
        """As JSON holds it."""
        net = self.net
        layers: list[str] = []
        if isinstance(net, DensifiedNet):
            layers = [node.name for node in net.program.nodes]
        elif isinstance(net, OverFeat):
            layers = [str(number) for number in range(len(net.architecture.layers))]
        return {
            "name": self.name, "tasks": list(self.tasks), "window": list(net.geometry.window),
            "classes": net.class_names[: net.num_foreground_classes], "any_stride": net.geometry.any_stride,
            "stride": net.geometry.stride(net.default_stride),
            "scales": "six" if net.scale_factors is None else ",".join(map(str, net.scale_factors)),
            "layers": layers, "teaches": self.teaches,
        }  # fmt: skip


def load_models(
    paths: Sequence[Path] = (), device: torch.device | None = None, shipped: bool = True
) -> dict[str, Model]:
    """The nets of files, by the files' names without suffix, and those that ship.

    Raises InputError for files that are no weights of overfeat, and for two nets of one name.
    """
    models = {model.name: model for path in paths for model in [_from_file(path)]}
    if len(models) < len(paths):
        raise InputError("two files of weights have one name; rename one of them")
    for model in _shipped() if shipped else ():
        if model.name in models:
            raise InputError(f"{model.name}.safetensors: a net that ships has this name; rename the file")
        models[model.name] = model
    if device is not None:
        for model in models.values():
            model.net.to(device)
            if model.regressor is not None:
                model.regressor.to(device)
    return models


def _shipped() -> list[Model]:
    net = squeezenet()
    nets = [Model("squeezenet", net), Model("squeezenet-neighbours", net.with_borders("neighbours"))]
    return nets + [_from_file(ASSETS / f"{file}.safetensors", name) for name, file in SHIPPED.items()]


def _from_file(path: Path, name: str | None = None) -> Model:
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: not weights of overfeat's own, which are .safetensors; see `overfeat convert`")
    return Model(name or path.stem, load(path), find_regressor(path))
