"""`export`: a net for other runtimes, as an ONNX file or a torch.export program, for images of any size."""

import json
import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from overfeat.densify.net import DensifiedNet
from overfeat.densify.plain import PlainDensified
from overfeat.errors import ArgumentError, InputError
from overfeat.files import atomic_write, check_writable
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.geometry import Stride
from overfeat.models.net import Net, Regressor
from overfeat.models.overfeat import OverFeat
from overfeat.models.plain import PlainNet
from overfeat.models.wrappers import as_net, unwrap
from overfeat.ops.boxes import decode
from overfeat.packages import package

ONNX, PT2 = ".onnx", ".pt2"
METADATA = "overfeat.json"  # the file in a .pt2 archive; in ONNX each entry is one of the model's metadata


def export(
    net: Net, path: str | os.PathLike, *, regressor: Regressor | None = None, stride: Stride | None = None
) -> list[str]:
    """Write a net as an ONNX file (.onnx) or a torch.export program (.pt2), atomically; returns its outputs' names.

    Input "images": float32 [N, C, H, W], RGB in 0..255, H and W at least the window less the margins (of .pt2 a stride
    more). Outputs: "scores" [N, classes, h, w], probabilities as `score_maps` gives them for float images at their own
    size; with boxes also "boxes" [N, h, w, num_classes or 1, 4], (x1, y1, x2, y2) in pixels. Window, stride, margin,
    class names and the rest that a program needs are in the metadata.

    Args:
        net: A built-in net, or a converted one with "neighbours" or without padding.
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
    regressor = _regressor_of(net, regressor)
    pixels = net.geometry.stride(net.default_stride if stride is None else stride)
    names = ["scores", "boxes"] if regressor is not None else ["scores"]
    metadata = _metadata(net, pixels, names)
    program = _program(_Outputs(net, regressor, pixels).eval(), net, pixels)
    if path.suffix == PT2:
        with atomic_write(path) as part, _quiet():
            torch.export.save(program, part, extra_files={METADATA: json.dumps(metadata, indent=1)})
    else:
        model = _onnx(program, names, metadata)
        with atomic_write(path) as part:
            model.save(part)
    return names


class _Outputs(nn.Module):
    """What is exported: images to probabilities, and to boxes in pixels."""

    plain: nn.Module

    def __init__(self, net: Net, regressor: Regressor | None, stride: int):
        super().__init__()
        self.stride, self.window, self.margin = stride, net.geometry.window, net.margin
        self.probabilities, self.coder = net.probabilities, None if regressor is None else regressor.box_coder
        self.numbers: tuple[int, int | None] = (0, 1)
        if isinstance(net, DensifiedNet):
            self.plain, self.numbers = PlainDensified(net, stride, net.margin), (net.outputs.scores, net.outputs.boxes)
        else:
            assert isinstance(net, OverFeat) and isinstance(regressor, BoxRegressor | None)
            self.plain = PlainNet(net, stride, regressor)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.plain(images)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        scores = self.probabilities(outputs[self.numbers[0]])
        if self.coder is None or self.numbers[1] is None:
            return (scores,)
        return scores, self._decoded(outputs[self.numbers[1]], self.coder)

    def _decoded(self, codes: Tensor, coder: str) -> Tensor:
        """Codes [N, 4 * k, h, w] as boxes [N, h, w, k, 4] in pixels."""
        n, numbers, height, width = codes.shape
        y, x = (
            torch.arange(count, device=codes.device).float() * self.stride - margin
            for count, margin in zip((height, width), self.margin, strict=True)
        )
        y, x = y[:, None].expand(height, width), x[None].expand(height, width)
        windows = torch.stack([x, y, x + self.window[1], y + self.window[0]], dim=-1)[:, :, None]
        of_windows = codes.float().permute(0, 2, 3, 1).reshape(n, height, width, numbers // 4, 4)
        return decode(of_windows, windows, coder)


def _regressor_of(net: Net, regressor: Regressor | None) -> Regressor | None:
    """That of the boxes to export. Raises ArgumentError for other nets, and InputError for another net's regressor."""
    if isinstance(net, DensifiedNet):
        if regressor not in (None, net.regressor):
            raise ArgumentError("regressor", "must be left out: a converted net has its own")
        return net.regressor
    if not isinstance(net, OverFeat):
        raise ArgumentError("net", f"must be a built-in or a converted net, not {type(net).__name__}")
    if regressor is not None:
        if not isinstance(regressor, BoxRegressor):
            raise ArgumentError("regressor", f"must be a BoxRegressor, not {type(regressor).__name__}")
        regressor.check_made_for(net)
    return regressor


def _metadata(net: Net, stride: int, names: Sequence[str]) -> dict[str, Any]:
    """What a program needs beside the graph, each value as JSON."""
    return {
        "overfeat": "1", "input": "RGB in 0..255, normalised by the net", "outputs": list(names),
        "window": list(net.geometry.window), "stride": stride, "margin": list(net.margin),
        "class_names": net.class_names, "background": net.background,
        "mean": list(net.mean_color), "std": list(net.pixel_std),
        "scale_factors": net.scale_factors and list(net.scale_factors),
        "thresholds": net.thresholds and asdict(net.thresholds),
    }  # fmt: skip


def _program(module: nn.Module, net: Net, stride: int) -> ExportedProgram:
    """The exported program, for any number and size of images."""
    dynamic = torch.export.Dim.DYNAMIC
    # Two images, and more windows than one: sizes of one would be taken for constants.
    example = torch.zeros(2, net.in_channels, *(side + 4 * stride for side in net.geometry.window), device=net.device)
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            module, (example,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip
    program.graph.eliminate_dead_code()  # views that nothing uses, see `densify.values.from_plain`
    return program


def _onnx(program: ExportedProgram, names: Sequence[str], metadata: dict[str, Any]) -> ONNXProgram:
    with _quiet():
        model = torch.onnx.export(program, (), input_names=["images"], output_names=list(names), verbose=False)
    assert model is not None
    model.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    return model


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
