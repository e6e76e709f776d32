"""Files of weights whose metadata are changed."""

from safetensors import safe_open
from safetensors.torch import load_file, save_file


def metadata_of(path):
    """The metadata of a file of weights."""
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def change_metadata(path, **changes):
    """Replace entries of the metadata by these texts; None: leave them out."""
    metadata = metadata_of(path) | changes
    save_file(load_file(path), path, {name: text for name, text in metadata.items() if text is not None})
