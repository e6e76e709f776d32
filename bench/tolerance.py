"""How far a result may lie from its reference: one table for all tests and checks, one line a dtype."""

from collections.abc import Sequence

import torch
from torch import Tensor

# dtype of the arithmetic: (largest error, RMS error), relative as defined in `assert_matches`
TOLERANCES: dict[torch.dtype | str, tuple[float, float]] = {
    torch.float64: (1e-12, 1e-13),
    torch.float32: (5e-5, 5e-6),
    "tf32": (1e-2, 1e-3),  # float32 with 10-bit mantissas in matmuls: precision "high"
    torch.float16: (1e-2, 2e-3),
    torch.bfloat16: (6e-2, 8e-3),
}
MAX_SHOWN = 8  # wrong elements in a message

Tensors = Tensor | Sequence[Tensor]


def assert_matches(actual: Tensors, expected: Tensors, dtype: torch.dtype | str) -> None:
    """Fail unless `actual` equals `expected` within the tolerance of arithmetic in `dtype`.

    The error of an element is |actual - expected| divided by the larger of |expected| and the RMS of all of
    `expected`; its maximum and its RMS over all elements must stay within TOLERANCES[dtype]. NaN and the two
    infinities must be at the same positions.

    Args:
        actual: a tensor, or a list of tensors; any dtype and device.
        expected: tensors of the same shapes; the comparison runs on their device.
        dtype: a key of TOLERANCES.
    """
    if not isinstance(expected, Tensor):
        assert len(actual) == len(expected), f"{len(actual)} tensors, expected {len(expected)}"
        for one, other in zip(actual, expected, strict=True):
            assert_matches(one, other, dtype)
        return
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return
    actual, expected = (t.detach().to(expected.device, torch.float64) for t in (actual, expected))
    non_finite = ~actual.isfinite() | ~expected.isfinite()
    equal = (actual == expected) | (actual.isnan() & expected.isnan())
    _fail_where(non_finite & ~equal, actual, expected, "NaN or infinite on one side only")
    finite = torch.where(non_finite, 0.0, expected)
    scale = finite.square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    error = torch.where(non_finite, 0.0, actual - expected).abs() / finite.abs().clamp(min=scale)
    largest, rms = TOLERANCES[dtype]
    _fail_where(error > largest, actual, expected, f"largest error {error.max():.2e}, allowed {largest:.0e}")
    actual_rms = error.square().mean().sqrt().item()
    assert actual_rms <= rms, f"RMS error {actual_rms:.2e}, allowed {rms:.0e} in {dtype}"


def _fail_where(wrong: Tensor, actual: Tensor, expected: Tensor, why: str) -> None:
    positions = wrong.nonzero()
    if not len(positions):
        return
    lines = [f"{why}; {len(positions)} of {wrong.numel()} elements differ:"]
    for position in positions[:MAX_SHOWN].tolist():
        index = tuple(position)
        lines.append(f"  {position}: {actual[index].item():.9g}, expected {expected[index].item():.9g}")
    raise AssertionError("\n".join(lines + ["  ..."] * (len(positions) > MAX_SHOWN)))
