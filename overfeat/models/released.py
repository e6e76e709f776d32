"""The weights of the 2013 release, as raw files."""

import os

import numpy as np
import torch

from overfeat.errors import InputError
from overfeat.files import atomic_write
from overfeat.models.architecture import ARCHITECTURES, RELEASED_FILES
from overfeat.models.checkpoint import empty_net, existing_file, meta_net
from overfeat.models.overfeat import OverFeat


def load_released(path: str | os.PathLike, name: str) -> OverFeat:
    """Read the 2013 release's raw weights: net_weight_0 (name "fast") or net_weight_1 ("accurate").

    Little-endian float32 without a header: for every convolution and full layer in order the
    weight as [out][in][height][width], then the bias. 1,000 classes in the order of the
    ILSVRC2012 development kit. Raises InputError for a wrong size, naming those that are right.
    """
    path = existing_file(path)
    if name not in RELEASED_FILES:
        raise InputError(f"released weights are for {' and '.join(RELEASED_FILES)}, not {name!r}")
    size = path.stat().st_size
    right = {name: released_size(meta_net(ARCHITECTURES[name], 1000)) for name in RELEASED_FILES}
    if size != right[name]:
        told = ", ".join(f"{RELEASED_FILES[name]} ({name}): {bytes_:,}" for name, bytes_ in right.items())
        raise InputError(f"{path}: {size:,} bytes; the released files have {told}")
    net = empty_net(ARCHITECTURES[name], 1000)
    with open(path, "rb") as file, torch.no_grad():
        for parameter in released_order(net):
            values = np.fromfile(file, dtype="<f4", count=parameter.numel())
            parameter.copy_(torch.from_numpy(values.astype(np.float32, copy=False)).view(parameter.shape))
            if not parameter.isfinite().all():
                raise InputError(f"{path}: NaN or infinite weights; is it complete and of this layout?")
    return net.eval()


def save_released(net: OverFeat, path: str | os.PathLike) -> None:
    """Write a net's weights in the released layout; `load_released` reads those of 1,000 classes."""
    with atomic_write(path) as part, open(part, "wb") as file:
        for parameter in released_order(net):
            # Not ndarray.tofile, which takes a full disk for success.
            file.write(parameter.detach().cpu().float().contiguous().numpy().astype("<f4").data)


def released_size(net: OverFeat) -> int:
    """Bytes of the net's weights in the released layout."""
    return 4 * sum(parameter.numel() for parameter in net.parameters())


def read_labels(path: str | os.PathLike, classes: int) -> list[str]:
    """Class names from a text file, one a line. Raises InputError where their number is wrong."""
    try:
        names = existing_file(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error.reason})") from error
    names = [name.strip() for name in names if name.strip()]
    if len(names) != classes:
        raise InputError(f"{path}: {len(names)} names for a net of {classes} classes; one name a line is needed")
    return names


def released_order(net: OverFeat):
    for layer in (*net.conv_layers, *net.fc_layers):
        yield layer.weight
        yield layer.bias
