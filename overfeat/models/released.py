"""The weights of the 2013 release, as raw files."""

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from overfeat.errors import InputError, in_one_line
from overfeat.files import atomic_write
from overfeat.models.architecture import ARCHITECTURES, RELEASED_FILES
from overfeat.models.checkpoint import empty_net, existing_file, meta_net
from overfeat.models.overfeat import OverFeat
from overfeat.models.wrappers import unwrap


def load_released(path: str | os.PathLike, name: str) -> OverFeat:
    """Read the 2013 release's raw weights.

    Little-endian float32 without a header: for every convolution and fully connected layer in order the weight as
    `[out][in][height][width]`, then the bias. 1,000 classes in the order of the ILSVRC2012 development kit.

    Args:
        path: The file; InputError for a wrong size, naming those that are right.
        name: "fast" for net_weight_0, "accurate" for net_weight_1.
    """
    path = existing_file(path)
    if not isinstance(name, str) or name not in RELEASED_FILES:
        raise InputError(f"released weights are for {' and '.join(RELEASED_FILES)}, not {in_one_line(name)}")
    size = path.stat().st_size
    nets = {name: meta_net(ARCHITECTURES[name], 1000) for name in RELEASED_FILES}
    right = {name: 4 * sum(parameter.numel() for parameter in net.parameters()) for name, net in nets.items()}
    if size != right[name]:
        sizes = ", ".join(f"{RELEASED_FILES[name]} ({name}): {bytes_:,}" for name, bytes_ in right.items())
        raise InputError(f"{path}: {size:,} bytes; the released files have {sizes}")
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
    net = unwrap(net)
    if not isinstance(net, OverFeat):
        raise TypeError(f"net must be an OverFeat, not {type(net).__name__}")
    with atomic_write(path) as part, open(part, "wb") as file:
        for parameter in released_order(net):
            # Not ndarray.tofile, which reports success on a full disk.
            file.write(parameter.detach().cpu().float().contiguous().numpy().astype("<f4").data)


def read_labels(path: str | os.PathLike, classes: int) -> list[str]:
    """Class names from a text file, one per line. Raises InputError where their number is wrong."""
    try:
        names = existing_file(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error.reason})") from error
    names = [name.strip() for name in names if name.strip()]
    if len(names) != classes:
        raise InputError(f"{path}: {len(names)} names for a net of {classes} classes; one name a line is needed")
    return names


def released_order(net: OverFeat) -> Iterator[Tensor]:
    """The weight and bias of every layer, in the order of the released files."""
    for layer in (*net.conv_layers, *net.fc_layers):
        yield layer.weight
        yield layer.bias
