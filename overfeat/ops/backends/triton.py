"""The Triton kernels as a backend, for NVIDIA GPUs of capability 8.0 and later, AMD's, and Triton's interpreter."""

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.ops.backends import eager
from overfeat.ops.registry import Backend

MIN_CAPABILITY = (8, 0)  # of an NVIDIA GPU: tile sizes are chosen for its tensor cores and shared memory
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BOX_DTYPES = (torch.float32, torch.float64)
MAX_CLASSES = 32768  # class_scores holds a row of logits in registers


def supports(op: str, device: torch.device, dtype: torch.dtype, num_classes: int | None = None) -> str | None:
    """Why the kernels do not run an op on such inputs, or None if they do."""
    if not _has_triton():
        return "Triton is not installed"
    if dtype not in (BOX_DTYPES if op == "merge_boxes" else DTYPES):
        return f"the kernels do not support {str(dtype).removeprefix('torch.')}"
    if op == "class_scores" and num_classes is not None and num_classes > MAX_CLASSES:
        return f"the kernels support {MAX_CLASSES} classes at most"
    if device.type == "cpu":
        if not _interpreted():
            return "Triton needs a GPU"
        return "Triton's interpreter computes bfloat16 GEMMs wrongly" if dtype == torch.bfloat16 else None
    if device.type != "cuda":
        return f"the kernels do not run on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < MIN_CAPABILITY:
        return "capability {}.{} is below {}.{}".format(*capability, *MIN_CAPABILITY)
    return None


@lru_cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _kernel(file: str, name: str) -> Callable[..., Any]:
    """A function of a file in overfeat.kernels, imported at its first call, run on its tensors' device."""

    def run(first: Tensor | Sequence[Tensor], *rest: object, **options: object) -> Any:
        with torch.cuda.device_of(first if isinstance(first, Tensor) else first[0]):
            return getattr(importlib.import_module(f"overfeat.kernels.{file}"), name)(first, *rest, **options)

    return run


BACKEND = Backend(
    "triton",
    {
        "offset_max_pool": _kernel("offset_pool", "forward"),
        "offset_max_pool_backward": _kernel("offset_pool", "backward"),
        "skip_classifier_flat": _kernel("skip_classifier", "forward"),
        "skip_classifier_flat_backward": _kernel("skip_classifier_backward", "backward"),
        "class_scores": _kernel("class_scores", "forward"),
        "merge_boxes": _kernel("box_merge", "merge"),
    },
    supports,
    "kernels, interpreted on the CPU (TRITON_INTERPRET=1)" if _interpreted() else "kernels",
)


def supports_filtering(op: str, device: torch.device, dtype: torch.dtype, num_classes: int | None = None) -> str | None:
    """Why convolutions are not computed by minimal filtering on such inputs, or None if they may be."""
    if device.type != "cuda":
        return "minimal filtering by Triton is for GPUs"
    if dtype != torch.bfloat16:
        return "minimal filtering on GPUs is for bfloat16"
    return supports(op, device, dtype, num_classes)


def convolution(
    maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int, relu: bool, dilation: int
) -> Tensor:
    """See ops.convolution."""
    if stride == 1 and maps.numel():
        result = _kernel("convolution", "forward")(maps, weight, bias, pad, relu, dilation)
        if result is not None:
            return result
    return eager.convolution(maps, weight, bias, stride, pad, relu, dilation)


def convolution_pool(maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int, pool: int) -> Tensor:
    """See ops.convolution_pool."""
    return F.max_pool2d(convolution(maps, weight, bias, stride, pad, True, 1), pool)


FILTERING = Backend(
    "filtering", {"convolution": convolution, "convolution_pool": convolution_pool}, supports_filtering,
    "by minimal filtering where it pays",
)  # fmt: skip
