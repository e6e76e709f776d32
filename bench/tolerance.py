"""How far a result may lie from its reference: one table for all tests and checks, one line a dtype."""

from collections.abc import Sequence

import torch
from torch import Tensor

# dtype of the arithmetic: (largest error, RMS error), see `assert_matches` for what they are relative to
TOLERANCES: dict[torch.dtype | str, tuple[float, float]] = {
    torch.float64: (1e-12, 1e-13),
    torch.float32: (5e-5, 5e-6),
    "tf32": (1e-2, 1e-3),  # float32 whose products keep 10 bits: matmul precision "high"
    torch.float16: (1e-2, 2e-3),
    torch.bfloat16: (6e-2, 8e-3),
}
SHOWN = 8  # bad places in a message

Tensors = Tensor | Sequence[Tensor]


def assert_matches(got: Tensors, want: Tensors, dtype: torch.dtype | str) -> None:
    """Fail unless `got` equals `want` as nearly as arithmetic in `dtype` allows.

    got, want: tensors of one shape, or lists of them; any dtypes and devices. NaN and the two
    infinities must stand at the same places. Elsewhere the error of an element is |got - want|
    divided by the larger of |want| and the RMS of all of `want`; its largest value and its RMS over
    all elements stay within TOLERANCES[dtype]. They are compared on the device of `want`.
    """
    if not isinstance(want, Tensor):
        assert len(got) == len(want), f"{len(got)} tensors in place of {len(want)}"
        for one, other in zip(got, want, strict=True):
            assert_matches(one, other, dtype)
        return
    assert got.shape == want.shape, f"shape {tuple(got.shape)} in place of {tuple(want.shape)}"
    if not want.numel():
        return
    got, want = (t.detach().to(want.device, torch.float64) for t in (got, want))
    odd = ~got.isfinite() | ~want.isfinite()
    same = (got == want) | (got.isnan() & want.isnan())
    _complain(odd & ~same, got, want, "NaN or infinite on one side only")
    plain = torch.where(odd, 0.0, want)
    scale = plain.square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    error = torch.where(odd, 0.0, got - want).abs() / plain.abs().clamp(min=scale)
    largest, rms = TOLERANCES[dtype]
    _complain(error > largest, got, want, f"largest error {error.max():.2e}, allowed {largest:.0e}")
    found = error.square().mean().sqrt().item()
    assert found <= rms, f"RMS error {found:.2e}, allowed {rms:.0e} in {dtype}"


def _complain(bad: Tensor, got: Tensor, want: Tensor, why: str) -> None:
    places = bad.nonzero()
    if not len(places):
        return
    lines = [f"{why}; {len(places)} of {bad.numel()} elements are off:"]
    for place in places[:SHOWN].tolist():
        lines.append(f"  {place}: {got[tuple(place)].item():.9g} in place of {want[tuple(place)].item():.9g}")
    raise AssertionError("\n".join(lines + ["  ..."] * (len(places) > SHOWN)))
