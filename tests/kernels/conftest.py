"""Every test of the kernels writes into poisoned memory, and has a dtype that the kernels support."""

import os

import pytest
import torch

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def poisoned():
    """Unwritten memory holds NaN: torch fills it in this mode."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    if os.environ.get("TRITON_INTERPRET") == "1" and request.param == torch.bfloat16:
        pytest.skip("Triton's interpreter computes bfloat16 GEMMs wrongly by design: for a GPU")
    return request.param
