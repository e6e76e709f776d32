"""Annotated images in the layout of PASCAL VOC, for tests."""

import numpy as np
from PIL import Image


def voc(folder, count, size=(150, 200), objects=3, seed=0):
    """Write VOC XML files and PNGs of discs and squares on noise; image 1 has no object."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture, entries = rng.integers(60, 120, (*size, 3), dtype=np.uint8), []
        y, x = np.mgrid[: size[0], : size[1]]
        for _ in range(0 if number == 1 else objects):
            name, r = str(rng.choice(["disc", "square"])), int(rng.integers(8, 24))
            cx, cy = (int(rng.integers(r + 1, side - r - 1)) for side in size[::-1])
            inside = (
                (x - cx) ** 2 + (y - cy) ** 2 <= r * r if name == "disc" else (abs(x - cx) <= r) & (abs(y - cy) <= r)
            )
            picture[inside] = rng.integers(150, 256, 3)
            edges = zip(("xmin", "ymin", "xmax", "ymax"), (cx - r + 1, cy - r + 1, cx + r + 1, cy + r + 1), strict=True)
            box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
            entries.append(f"<object><name>{name}</name><bndbox>{box}</bndbox></object>")
        Image.fromarray(picture).save(folder / f"{number}.png")
        text = f"<annotation><filename>{number}.png</filename>{''.join(entries)}</annotation>"
        (folder / f"{number}.xml").write_text(text)
    return folder
