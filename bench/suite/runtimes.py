"""ONNX Runtime and OpenVINO as baselines: a module exported to ONNX, run on a CPU with torch's number of threads."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.suite.names import ONNXRUNTIME
from overfeat.models.box_regressor import BoxRegressor
from overfeat.models.net import Shape
from overfeat.models.overfeat import ContextFeatures, OverFeat
from overfeat.models.plain import PlainFeatures, PlainHead

EXPORTER = "onnxscript"  # what torch.onnx.export needs, beside onnx
IMAGE_SIZE, BATCH_SIZE = (2, 3), (0,)  # dimensions that may vary: of images or maps; of windows or positions
BFLOAT16_CAPABILITY = "BF16"
OPTION_BY_DTYPE = {torch.float32: "f32", torch.bfloat16: "bf16"}
Run = Callable[..., Tensor]


class Exported:
    """A module as an ONNX file, and sessions on it; both are made when first used and then kept.

    Args:
        module: Makes it, with weights in float32.
        inputs: Makes an example of its inputs.
        free: For each input, the dimensions whose sizes may differ from the example's.
    """

    def __init__(
        self, module: Callable[[], nn.Module], inputs: Callable[[], Sequence[Tensor]], free: Sequence[Sequence[int]]
    ):
        self.module, self.inputs, self.free = module, inputs, free
        self._sessions: dict[tuple[str, torch.dtype], Run] = {}

    def run(self, runtime: str, dtype: torch.dtype, *inputs: Tensor) -> Tensor:
        """The module's output, float32; dtype: of the arithmetic."""
        key = runtime, dtype
        if key not in self._sessions:
            threads = torch.get_num_threads()
            self._sessions[key] = (
                _onnxruntime(self.path, threads) if runtime == ONNXRUNTIME else _openvino(self.path, threads, dtype)
            )
        return self._sessions[key](*inputs)

    @cached_property
    def path(self) -> Path:
        """The ONNX file, which is deleted with this object."""
        self._folder = tempfile.TemporaryDirectory(prefix="overfeat-bench-")
        path = Path(self._folder.name) / "module.onnx"
        inputs = tuple(_as_input(tensor) for tensor in self.inputs())
        sizes = [{dim: torch.export.Dim.DYNAMIC for dim in dims} for dims in self.free]
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports the operators of packages not installed
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            module = self.module().eval()
            torch.onnx.export(module, inputs, path, dynamic_shapes=sizes, verbose=False)
        return path


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    import openvino

    return BFLOAT16_CAPABILITY in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def detector_in(runtime: str, net: OverFeat, regressor: BoxRegressor) -> tuple[OverFeat, BoxRegressor]:
    """A detector whose net runs in another runtime, at fine stride; boxes are computed by the library.

    net: Without padding, as the small net is: a tile then needs none of its own.
    """
    assert not any(spec.pad for spec in net.architecture.convs)
    side = net.architecture.window + 4 * net.architecture.fine_stride

    def inputs() -> list[Tensor]:
        maps = PlainFeatures(net)(torch.zeros(1, 3, side, side + 4))
        height, width = (length - net.architecture.pool * net.architecture.kernel + 1 for length in maps.shape[2:])
        return [maps, maps[:, :, 1:], torch.zeros(height * width, dtype=torch.int64)]

    features = Exported(lambda: PlainFeatures(net), lambda: [torch.zeros(1, 3, side, side + 4)], [IMAGE_SIZE])
    head = Exported(lambda: PlainHead(net), lambda: inputs()[:1], [IMAGE_SIZE])
    context_head = Exported(lambda: PlainHead(net), inputs, [IMAGE_SIZE, IMAGE_SIZE, BATCH_SIZE])

    def logits(maps: Tensor, context: ContextFeatures | None) -> Tensor:
        if context is None or context.maps is None:
            return head.run(runtime, torch.float32, maps)
        return context_head.run(runtime, torch.float32, maps, context.maps, context.positions)

    def head_flat(maps: Sequence[Tensor], stride: Any, context: Sequence[ContextFeatures] = ()):
        each = [logits(m, c) for m, c in zip(maps, context or [None] * len(maps), strict=True)]
        shapes: list[Shape] = [(len(scores), *scores.shape[2:]) for scores in each]
        return torch.cat([scores.permute(0, 2, 3, 1).flatten(0, 2) for scores in each]), shapes

    def boxes(maps: Sequence[Tensor], *more: Any):
        return regressor.forward_flat([m.contiguous(memory_format=torch.channels_last) for m in maps], *more)

    other_net, other_regressor = copy.copy(net), copy.copy(regressor)
    other_net.tile_features = lambda crop, *spans: features.run(runtime, torch.float32, crop)
    other_net.forward_head_flat, other_regressor.forward_flat = head_flat, boxes
    return other_net, other_regressor


def _onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that spin after a run would slow down whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays: dict[str, Any] = {name: _as_input(t).numpy() for name, t in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


def _openvino(path: Path, threads: int, dtype: torch.dtype) -> Run:
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": threads, "ENABLE_HYPER_THREADING": True, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": OPTION_BY_DTYPE[dtype],
    }  # fmt: skip
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()

    def run(*inputs: Tensor) -> Tensor:
        arrays = {number: _as_input(tensor).numpy() for number, tensor in enumerate(inputs)}
        return torch.from_numpy(request.infer(arrays, share_inputs=True)[0])

    return run


def _as_input(tensor: Tensor) -> Tensor:
    """As the exported modules take it: pixels as float32, in rows."""
    return (tensor.float() if tensor.dtype == torch.uint8 else tensor).contiguous()
