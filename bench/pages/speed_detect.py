"""Detection from the file to the boxes: rates, where the time goes, peak memory."""

from bench.pages.tables import measured_on, milliseconds, table
from bench.suite.runtimes import ONNXRUNTIME, OPENVINO

MEMORY = {  # heads of the columns: keys and formats
    "the image": ("image", "{:.0f}"),
    "reading": ("reading", "{:.0f}"),
    "detect": ("detection", "{:.0f}"),
    "s": ("seconds", "{:.1f}"),
    "detections": ("objects", "{:,}"),
    "picture": ("drawing", "{:.0f}"),
    "features": ("features", "{:.0f}"),
    "their output": ("output", "{:.0f}"),
}


def summary(results: dict) -> str:
    """Time per image of small images and of a large one, on both backends."""
    peak = _peak(results)
    rows, runtimes = [], [name for name in (ONNXRUNTIME, OPENVINO) if name in results["large"]["seconds"]]
    for name, measured in _images(results):
        fast, eager = measured["seconds"]["fast"], measured["seconds"]["eager"]
        rows.append([
            name, f"{measured['positions']:,.0f}", milliseconds(fast), f"{1 / fast['median']:.3g}",
            milliseconds(eager), f"{eager['median'] / fast['median']:.2f}", f"{measured['gflops']:.0f}",
            f"{measured['gflops'] / peak:.2f}",
            *(milliseconds(seconds) if (seconds := measured["seconds"].get(name)) else "" for name in runtimes),
        ])  # fmt: skip
    head = ["", "windows", "ms, overfeat.fast", "images/s", "ms, eager backend", "speed-up", "GFLOP/s",
            "of measured peak", *(f"ms, net in {name}" for name in runtimes)]  # fmt: skip
    return table(head, rows)


def page(results: dict) -> str:
    fractions = [
        [name, *(f"{100 * fraction:.1f}" for fraction in measured["fractions"].values())]
        for name, measured in _images(results)
    ]
    limit = results["memory"]["limit"]
    sides = {f"{side} x {side}": of_side for side, of_side in results["memory"].items() if side != "limit"}
    columns = {
        head: column for head, column in MEMORY.items() if all(column[0] in of_side for of_side in sides.values())
    }
    memory = [[side, *(form.format(of_side[key]) for key, form in columns.values())] for side, of_side in sides.items()]
    return f"""# Detection: speed and memory

{measured_on(results)}

From the image file to the merged boxes, with the shipped detector (small net with context features,
{len(results["scale_factors"])} scales, fine stride): {results["images"]["images"]} test images with none to eight
digits, one by one, and one large image composed of test images with {results["large"]["digits"]} digits. GFLOP/s
count the network without context features and box heads (computed); the measured peak is {_peak(results):.0f}
GFLOP/s. So small a network has few weights for `overfeat.fast` to pack. A net in ONNX Runtime or OpenVINO computes
scores and maps; all else, the boxes included, is the library's.

{summary(results)}

## Where the time goes

In percent, with `overfeat.fast`; `other` is candidate selection, box decoding and Python:

{table(["", *results["images"]["fractions"]], fractions)}

## Memory

Peak memory in MiB with a memory limit of {limit} MiB, in a process of its own: of reading the image, with the image;
of `detect` and of the picture of its results, beyond the network and the image; of the output of a layer
(`overfeat features`), with the output. Tiles keep to the limit; the rest grows with the image: `detect` holds the image
at the two largest scales, as bytes, and the buffers of resizing.

{table(["image", *columns], memory)}
"""


def _images(results: dict) -> list[tuple[str, dict]]:
    return [("a test image", results["images"]), (f"one image of {results['large']['side']}²", results["large"])]


def _peak(results: dict) -> float:
    return max(results["peaks"]["gemm"], results["peaks"]["convolution"]) / 1e9
