"""Image files for tests, and what reading them gives."""

import numpy as np
import pytest

from overfeat.data.images import read_image
from overfeat.errors import InputError

GRADIENT = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def rows(tensor):
    """[3, H, W] to nested lists of RGB triples."""
    return tensor.permute(1, 2, 0).tolist()


def error_of(path, **options):
    """The error message, checked to be one line that names the file."""
    with pytest.raises(InputError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "; " in message
    return message
