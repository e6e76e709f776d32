"""The ops inside torch.func's transforms and in forward-mode differentiation: plain PyTorch, right in every mode.

Custom ops have reverse-mode gradients only; of the others torch would report zeros.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from overfeat.ops.layout import flatten_positions, in_transform


def is_transformed(*tensors: Tensor | None) -> bool:
    """Whether a transform of torch.func is running or one of the tensors carries a forward-mode tangent."""
    if torch.compiler.is_compiling():
        return False
    if in_transform():
        return True
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def refuse_transforms(op: str, *tensors: Tensor) -> None:
    """Raises ValueError where the derivatives of an op that has none would be reported as zeros."""
    if is_transformed(*tensors):
        raise ValueError(f"{op} has no derivatives: detach its inputs, and call it outside of torch.func's transforms")


def offset_max_pool(maps: Tensor, size: int, dilation: int) -> Tensor:
    """See ops.offset_max_pool."""
    return F.max_pool2d(maps, size, 1, 0, dilation)


def skip_classifier_flat(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: int, relu: bool, tap: int
) -> Tensor:
    """See ops.skip_classifier_flat."""
    flat = torch.cat(
        [flatten_positions(F.conv2d(offset_max_pool(m, size, 1), weight, bias, dilation=tap)) for m in maps]
    )
    return flat.relu() if relu else flat
