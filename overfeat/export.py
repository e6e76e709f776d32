"""`export`: a net for other runtimes, as an ONNX file or a torch.export program, for images of any size."""

import json
import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from overfeat.densify.net import DensifiedNet
from overfeat.densify.plain import PlainDensified
from overfeat.errors import ArgumentError, InputError
from overfeat.files import atomic_write, check_writable
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.fc_layers import ConvList
from overfeat.models.geometry import Stride
from overfeat.models.net import Net, Regressor
from overfeat.models.overfeat import OverFeat
from overfeat.models.plain import PlainFeatures, PlainHead
from overfeat.models.wrappers import as_net, unwrap
from overfeat.ops.boxes import decode
from overfeat.packages import package

ONNX, PT2 = ".onnx", ".pt2"
METADATA = "overfeat.json"  # the file in a .pt2 archive; in ONNX each entry is one of the model's metadata


def export(
    net: Net, path: str | os.PathLike, *, regressor: Regressor | None = None, stride: Stride | None = None
) -> list[str]:
    """Write a net as an ONNX file (.onnx) or a torch.export program (.pt2), atomically; returns its outputs' names.

    Input "images": float32 [N, C, H, W], RGB in 0..255, H and W at least the window (of .pt2 a stride more). Outputs:
    "scores" [N, classes, h, w], probabilities as `score_maps` gives them at the images' own size; with boxes also
    "boxes" [N, h, w, num_classes or 1, 4], (x1, y1, x2, y2) in pixels. Window, stride, class names and the rest that a
    program needs are in the metadata.

    Args:
        net: A built-in net without context and with feature layers of its own, or a converted one with "neighbours" or
            without padding.
        regressor: Of a built-in net's boxes; those of a converted net are exported with it.
        stride: Between outputs; None: the net's own.

    Raises:
        InputError: For other nets, a file that cannot be written, and for ONNX without the extra `export`.
    """
    net, regressor, path = as_net(net), unwrap(regressor), Path(path)
    if path.suffix not in (ONNX, PT2):
        raise InputError(f"{path}: must end in {ONNX} or {PT2}")
    for name in ("onnx", "onnxscript") if path.suffix == ONNX else ():
        package(name, f"{ONNX} files need", "export")
    check_writable(path)
    pixels = net.geometry.stride(net.default_stride if stride is None else stride)
    module = _Outputs(net, regressor, pixels).eval()
    names = ["scores", "boxes"][: 1 + (module.coder is not None)]
    metadata = _metadata(net, pixels, names)
    program = _program(module, net, pixels)
    with atomic_write(path) as part:
        if path.suffix == PT2:
            with _quiet():
                torch.export.save(program, part, extra_files={METADATA: json.dumps(metadata, indent=1)})
        else:
            _write_onnx(program, part, names, metadata)
    return names


class _Outputs(nn.Module):
    """What is exported: images to probabilities, and to boxes in pixels."""

    def __init__(self, net: Net, regressor: Regressor | None, stride: int):
        super().__init__()
        self.stride, self.window, self.coder = stride, net.geometry.window, None
        self.probabilities = net.probabilities
        if isinstance(net, DensifiedNet):
            if regressor not in (None, net.regressor):
                raise ArgumentError("regressor", "must be left out: a converted net has its own")
            self.plain: nn.Module | None = PlainDensified(net, stride)
            self.numbers = (net.outputs.scores, net.outputs.boxes)
            self.coder = None if net.regressor is None else net.box_coder
            return
        self.plain = None
        _check(net, regressor)
        assert isinstance(net, OverFeat)
        self.features, self.head = PlainFeatures(net), PlainHead(net, stride)
        if isinstance(regressor, BoxRegressor):
            self.coder, self.boxes = regressor.box_coder, _Boxes(regressor, net.architecture.maps_stride(stride))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.plain is not None:
            outputs = self.plain(images)
            scores, codes = outputs[self.numbers[0]], None if self.coder is None else outputs[self.numbers[1]]
        else:
            maps = self.features(images)
            scores, codes = self.head(maps), None if self.coder is None else self.boxes(maps)
        scores = self.probabilities(scores)
        return (scores,) if codes is None else (scores, self._decoded(codes))

    def _decoded(self, codes: Tensor) -> Tensor:
        """Codes [N, 4 * k, h, w] as boxes [N, h, w, k, 4] in pixels."""
        n, numbers, height, width = codes.shape
        y, x = (torch.arange(count, device=codes.device) * self.stride for count in (height, width))
        y, x = y[:, None].expand(height, width).float(), x[None].expand(height, width).float()
        windows = torch.stack([x, y, x + self.window[1], y + self.window[0]], dim=-1)[:, :, None]
        of_windows = codes.float().permute(0, 2, 3, 1).reshape(n, height, width, numbers // 4, 4)
        return decode(of_windows, windows, self.coder or "xyxy")


class _Boxes(nn.Module):
    """A box regressor's layers on the last, unpooled maps: codes [N, 4 * k, h, w]."""

    def __init__(self, regressor: BoxRegressor, step: int):
        super().__init__()
        self.layers: ConvList = regressor.fc_layers
        self.pooled, self.pool, self.step = regressor.box_features == "pooled", regressor.architecture.pool, step

    def forward(self, maps: Tensor) -> Tensor:
        first = self.layers[0]
        if self.pooled:
            pooled = F.max_pool2d(maps, self.pool, self.step) if self.pool > 1 else maps
            hidden = F.conv2d(pooled, first.weight, first.bias, dilation=self.pool // self.step)
        else:
            hidden = F.conv2d(maps, first.weight, first.bias, stride=self.step)
        for layer in self.layers[1:]:
            hidden = F.conv2d(hidden.relu(), layer.weight, layer.bias)
        return hidden


def _check(net: Net, regressor: Regressor | None) -> None:
    """Raises InputError for a net that has no plain layers, and a regressor that is not its."""
    if not isinstance(net, OverFeat):
        raise ArgumentError("net", f"must be a built-in or a converted net, not {type(net).__name__}")
    later = "such nets cannot be exported yet"
    if net.context is not None:
        raise ArgumentError("net", f"must have no context, which is seen in a second, smaller image; {later}")
    if net.backbone is not None or net.reach:
        raise ArgumentError("net", f"must have feature layers of its own and no windows beyond the border; {later}")
    if regressor is not None:
        if not isinstance(regressor, BoxRegressor):
            raise ArgumentError("regressor", f"must be a BoxRegressor, not {type(regressor).__name__}")
        regressor.check_made_for(net)


def _metadata(net: Net, stride: int, names: Sequence[str]) -> dict[str, Any]:
    """What a program needs beside the graph, each value as JSON."""
    return {
        "overfeat": "1", "input": "RGB in 0..255, normalised by the net", "outputs": list(names),
        "window": list(net.geometry.window), "stride": stride, "class_names": net.class_names,
        "background": net.background, "mean": list(net.mean_color), "std": list(net.pixel_std),
        "scale_factors": net.scale_factors and list(net.scale_factors),
    }  # fmt: skip


def _program(module: nn.Module, net: Net, stride: int) -> ExportedProgram:
    """The exported program, for any number and size of images."""
    dynamic = torch.export.Dim.DYNAMIC
    # Two images, and more windows than one: sizes of one would be taken for constants.
    example = torch.zeros(2, net.in_channels, *(side + 4 * stride for side in net.geometry.window), device=net.device)
    with torch.no_grad(), _quiet():
        return torch.export.export(
            module, (example,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip


def _write_onnx(program: ExportedProgram, path: Path, names: Sequence[str], metadata: dict[str, Any]) -> None:
    with _quiet():
        exported = torch.onnx.export(program, (), input_names=["images"], output_names=list(names), verbose=False)
    assert exported is not None
    exported.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    exported.save(path)


@contextmanager
def _quiet() -> Any:
    """Without what the exporters log and warn of other packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
