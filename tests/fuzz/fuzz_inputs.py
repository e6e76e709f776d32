"""An image as a path, PIL image, array or tensor, in a list or generator: one result; wrong values: refused."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_names import thin_net
from harness import check_message
from PIL import Image

import overfeat
from overfeat.errors import InputError

CASES = 40
WRONG = (
    None, True, 0, -1, 3.5, float("nan"), 10**30, "", "six", "no such file.png", "\x1b[31m", b"bytes", [], [[]], [None],
    (), {}, {"a": 1}, {1, 2}, object(), np.float32(1), np.int64(3), np.zeros((0, 3)), np.array("text"), torch.zeros(0),
    torch.zeros(2, 2), torch.zeros(1, 3, 60, 60, dtype=torch.complex64), torch.full((3, 60, 60), torch.nan), iter([]),
    np.full((60, 60, 3), np.inf), np.zeros((60, 60, 3), "O"), np.zeros((60, 60, 7), np.uint8), torch.rand(3, 60, 60),
    Image.new("F", (60, 60)), lambda: None, len, int,
)  # fmt: skip
FUNCTIONS = ("classify", "score_maps", "localize", "detect")


def check(rng: random.Random, folder: Path) -> str:
    net, regressor = thin_net(["digit"])
    if rng.random() < 0.5:
        return check_wrong(rng, net, regressor)
    size = rng.choice(((48, 48), (60, 51), (47, 80)))
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (*size, 3), np.uint8)
    if rng.random() < 0.3:
        pixels[:] = pixels[..., :1]  # grey
    given = presented(rng, pixels, folder)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    options = {"scales": [1.0], "stride": rng.choice(("fine", "coarse"))}
    scores = overfeat.classify(net, given, **options)
    torch.testing.assert_close(scores, overfeat.classify(net, expected, **options), rtol=1e-5, atol=1e-6)
    return "equal"


def presented(rng: random.Random, pixels: np.ndarray, folder: Path) -> Any:
    """An image in one of the ways in which people hold one."""
    grey = bool((pixels == pixels[..., :1]).all())
    kind = rng.choice(("path", "PIL", "array", "tensor"))
    if kind in ("path", "PIL"):
        image: Any = Image.fromarray(pixels)
        image = rng.choice((image, image.convert("RGBA"), *([image.convert("L")] if grey else [])))
        if kind == "path":
            image.save(folder / "image.png")
            image = rng.choice((folder / "image.png", str(folder / "image.png")))
    else:
        image = pixels[..., 0] if grey and rng.random() < 0.5 else pixels
        image = image.astype(rng.choice((np.uint8, np.float32, np.float64, np.dtype(">f4"))))
        if rng.random() < 0.3:
            image = np.asfortranarray(image)
        if kind == "tensor":
            image = torch.from_numpy(np.ascontiguousarray(image.astype(image.dtype.newbyteorder("="))))
            image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
            image = image[None] if rng.random() < 0.3 else image
    return rng.choice((image, [image], (image,), (each for each in [image])))


def check_wrong(rng: random.Random, net: Any, regressor: Any) -> str:
    """A call with one or two wrong values: an error that the library raises, in one line, or a result."""
    name = rng.choice(FUNCTIONS)
    image = torch.arange(3 * 60 * 60).view(3, 60, 60).to(torch.uint8)
    arguments: list[Any] = [net, image] if name in ("classify", "score_maps") else [net, regressor, image]
    options: dict[str, Any] = {"scales": [1.0], "flip": False, "stride": "fine"}
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.6:
            arguments[rng.randrange(len(arguments))] = rng.choice((*WRONG, net, regressor))
        else:
            options[rng.choice(("scales", "flip", "stride", "memory_limit", "value_range"))] = rng.choice(WRONG)
    try:
        getattr(overfeat, name)(*arguments, **options)
    except (InputError, TypeError, ValueError) as error:
        check_message(str(error))
        assert raised_on_purpose(error), f"{type(error).__name__} from inside: {error}"
        return f"refused ({'InputError' if isinstance(error, InputError) else type(error).__name__})"
    return "accepted"


def raised_on_purpose(error: Exception) -> bool:
    """Whether a `raise` of the library raised it, rather than an operation that failed."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    code, line = (trace.tb_frame.f_code.co_filename, trace.tb_lineno) if trace else ("", 0)
    if "overfeat" not in Path(code).parts:
        return False
    lines = Path(code).read_text().split("\n")
    return "raise" in lines[line - 1]
