"""Nets that ship as ONNX files, in ONNX Runtime and OpenVINO, beside the library: python -m bench.exported

Exports each net, runs it at several sizes, and prints the largest differences of scores and boxes; the exit status is 1
where a score differs by more than 1e-4 or an edge of a box by more than 0.05 pixels.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import overfeat
from overfeat.dense.config import DenseConfig
from overfeat.dense.evaluate import evaluate_tiles
from overfeat.dense.grid import grids
from overfeat.densify.squeezenet import squeezenet
from overfeat.export import export
from overfeat.files import ASSETS
from overfeat.models.geometry import Stride
from overfeat.models.net import Net, Regressor
from overfeat.ops.boxes import decode

MAX_SCORE_ERROR, MAX_BOX_ERROR = 1e-4, 0.05
PHOTO = ASSETS / "cells" / "BloodImage_00021.jpg"
SIZES = ((61, 47), (130, 97), (240, 240), (227, 333), (400, 480))
Run = Callable[[np.ndarray], list[np.ndarray]]


def library_outputs(net: Net, images: Tensor, stride: Stride, regressor: Regressor | None = None) -> list[np.ndarray]:
    """What an exported net gives, by dense evaluation: scores, and with a regressor boxes."""
    (grid,) = grids(net, (images.shape[2], images.shape[3]), DenseConfig(scales=[1.0], flip=False, stride=stride))
    (tile,) = evaluate_tiles(net, images, [grid], 1 << 40)
    n, height, width = tile.shape
    outputs = [net.probabilities(tile.outputs).view(n, height, width, -1).permute(0, 3, 1, 2)]
    if regressor is not None:
        with torch.no_grad():
            codes, _ = regressor.forward_flat([tile.features], grid.stride)
        windows = tile.windows()[:, None].float().repeat(n, 1, 1)
        outputs.append(decode(codes.float(), windows, regressor.box_coder).view(n, height, width, -1, 4))
    return [output.numpy() for output in outputs]


def nets() -> Iterator[tuple[str, Net, Regressor | None, Stride]]:
    """The nets that ship: name, net, boxes, stride."""
    for name, strides in (("small", ("fine",)), ("detector", ("fine", "coarse")), ("cells", ("fine", "coarse"))):
        weights = ASSETS / f"{name}.safetensors"
        net, regressor = overfeat.load(weights), overfeat.load_regressor(weights)
        yield from ((f"{name}, {stride}", net, regressor, stride) for stride in strides)
    yield "SqueezeNet, 32 px", squeezenet().with_borders("neighbours"), None, 32


def runtimes(path: Path) -> Iterator[tuple[str, Run]]:
    """The runtimes that are installed, on an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    yield "ONNX Runtime", lambda pixels: session.run(None, {"images": pixels})
    try:
        import openvino
    except ImportError:
        return
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    yield "OpenVINO", lambda pixels: list(compiled(pixels).values())


def compare(name: str, net: Net, regressor: Regressor | None, stride: Stride) -> bool:
    """Export a net and print its line; whether it agrees with the library."""
    photo, agrees = Image.open(PHOTO).convert("RGB"), True
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "net.onnx", time.perf_counter()
        export(net, path, regressor=regressor, stride=stride)
        print(f"{name}: exported in {time.perf_counter() - start:.0f} s, {path.stat().st_size / 2**20:.1f} MiB")
        for runtime, run in runtimes(path):
            errors: list[list[float]] = []
            for height, width in SIZES:
                if not net.geometry.fits((height + 2 * net.margin[0], width + 2 * net.margin[1])):
                    continue
                pixels = np.array(photo.resize((width, height)), np.float32).transpose(2, 0, 1)[None]
                expected = library_outputs(net, torch.from_numpy(pixels), stride, regressor)
                errors.append([float(np.abs(a - e).max()) for a, e in zip(run(pixels), expected, strict=True)])
            largest = np.max(errors, axis=0)
            agrees &= bool((largest <= [MAX_SCORE_ERROR, MAX_BOX_ERROR][: len(largest)]).all())
            kinds = zip(("scores", "boxes"), largest, strict=False)
            print(f"  {runtime}, {len(errors)} sizes: {', '.join(f'{kind} within {e:.1e}' for kind, e in kinds)}")
    return agrees


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.exported", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only nets whose name starts so")
    names = tuple(parser.parse_args().names) or ("",)
    return 0 if all([compare(*each) for each in nets() if each[0].startswith(names)]) else 1


if __name__ == "__main__":
    sys.exit(main())
