"""Annotated images in the manner of PASCAL VOC, for tests."""

import numpy as np
from PIL import Image


def voc(folder, count, size=(150, 200), objects=3, seed=0):
    """VOC XML and PNGs of discs and squares on noise; one image without an object."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture, things = draw.integers(60, 120, (*size, 3), dtype=np.uint8), []
        y, x = np.mgrid[: size[0], : size[1]]
        for _ in range(0 if number == 1 else objects):
            name, r = str(draw.choice(["disc", "square"])), int(draw.integers(8, 24))
            cx, cy = (int(draw.integers(r + 1, side - r - 1)) for side in size[::-1])
            inside = (
                (x - cx) ** 2 + (y - cy) ** 2 <= r * r if name == "disc" else (abs(x - cx) <= r) & (abs(y - cy) <= r)
            )
            picture[inside] = draw.integers(150, 256, 3)
            edges = zip(("xmin", "ymin", "xmax", "ymax"), (cx - r + 1, cy - r + 1, cx + r + 1, cy + r + 1), strict=True)
            box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
            things.append(f"<object><name>{name}</name><bndbox>{box}</bndbox></object>")
        Image.fromarray(picture).save(folder / f"{number}.png")
        text = f"<annotation><filename>{number}.png</filename>{''.join(things)}</annotation>"
        (folder / f"{number}.xml").write_text(text)
    return folder
