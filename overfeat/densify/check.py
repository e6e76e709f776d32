"""Whether a converted net gives what the module gives."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from overfeat.densify.net import DensifiedNet
from overfeat.errors import ArgumentError, InputError
from overfeat.models.net import eval_mode

TOLERANCE = {torch.float64: 1e-7, torch.float32: 5e-3}  # of the largest output; rounding grows with a net's depth
LOW_PRECISION = 5e-2
COUNTS = (2, 3)  # windows down and across


@torch.no_grad()
def check_conversion(net: DensifiedNet, module: nn.Module | ExportedProgram) -> None:
    """Compare random windows, cropped, with the net; InputError for a difference.

    Borders are compared as "exact", whatever the net's are: of neighbours the module knows nothing.
    """
    run = module.module() if isinstance(module, ExportedProgram) else module
    stride, (height, width) = net.geometry.stride("fine"), net.geometry.window
    size = (height + (COUNTS[0] - 1) * stride, width + (COUNTS[1] - 1) * stride)
    generator = torch.Generator().manual_seed(0)
    # Noise at another brightness in each of 8 x 8 areas: of noise alone, nets that average give every window the same.
    noise = torch.randint(0, 256, (1, net.in_channels, *size), generator=generator)
    brightness = torch.rand(1, 1, 8, 8, generator=generator, dtype=torch.float32)
    images = (noise * F.interpolate(brightness, size=size)).to(net.device)
    prepared = net.normalise(images)
    starts = [(i * stride, j * stride) for i in range(COUNTS[0]) for j in range(COUNTS[1])]
    windows = torch.cat([prepared[:, :, top : top + height, left : left + width] for top, left in starts])
    windows = windows.contiguous()
    first, last = windows[:1], windows[-1:]
    with eval_mode(module) if isinstance(module, nn.Module) else nullcontext():
        together = _tensors(run(windows.clone()))  # modules may write into their input
        # Each beside the other at another brightness, which what is computed over the batch depends on.
        of_first, of_last = (_tensors(run(torch.cat(pair))) for pair in ((first, 3 * last), (3 * first, last)))
    tolerance = TOLERANCE.get(net.dtype, LOW_PRECISION)
    for number, outputs in enumerate(zip(together, of_first, of_last, strict=True)):
        difference = _difference(torch.stack([outputs[1][0], outputs[2][1]]), outputs[0][[0, -1]])
        if not difference <= tolerance:
            raise InputError(
                f"output {number} of a window depends on the others in its batch: it differs by {difference:.2g} of "
                "the largest output; normalize by running statistics, not by the batch's"
            )
    _check_scores(together[net.outputs.scores].reshape(len(windows), -1), net.activation)
    exact = net if net.borders != "neighbours" else net.with_borders("exact")
    for number, (expected, actual) in enumerate(zip(together, _tensors(exact(images, stride)), strict=True)):
        difference = _difference(actual.flatten(2)[0].T.reshape(expected.shape), expected)
        if not difference <= tolerance:
            raise InputError(
                f"output {number} of the converted module differs from the module's by {difference:.2g} of the largest "
                "output; please report this module"
            )


def _check_scores(scores: Tensor, activation: str) -> None:
    """ArgumentError for probabilities that are said to be logits, and the other way round."""
    probabilities = bool((scores >= 0).all() and (scores <= 1).all())
    if activation == "none" and not probabilities:
        raise ArgumentError("logits", f"must be True: there are scores from {scores.min():.2g} to {scores.max():.2g}")
    if activation == "softmax" and probabilities and bool((scores.float().sum(1) - 1).abs().max() < 1e-3):
        raise ArgumentError("logits", "must be False: the module's scores are probabilities, whose sum is 1")


def _tensors(value: object) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest, as a fraction of the largest number."""
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    return float(((actual - expected).abs() / scale).masked_fill(same, 0.0).max())
