"""Draw the pictures of README and docs, which `overfeat demo` draws, as JPEG files: python -m bench.pictures"""

import tempfile
from pathlib import Path

from PIL import Image

from bench.common import RESULTS, ROOT
from overfeat.cli import demo
from overfeat.files import atomic_write

# Function of the demo, the picture of those that it draws, and where that goes.
DRAWN = (
    (demo.overview, "overview.png", ROOT / "docs" / "overview.jpg"),
    (demo.explanation, "explained.png", RESULTS / "explained.jpg"),
    (demo.cells, "BloodImage_00385.png", RESULTS / "cells.jpg"),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for draw, name, path in DRAWN:
            print(*draw(Path(folder)), sep="\n")
            with Image.open(Path(folder) / name) as picture, atomic_write(path) as part:
                picture.convert("RGB").save(part, format="JPEG", quality=88)


if __name__ == "__main__":
    main()
