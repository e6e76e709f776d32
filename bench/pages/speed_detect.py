"""Detection from the file to the boxes: rates, where the time goes, peak memory."""

from bench.pages.tables import measured_on, milliseconds, table
from bench.suite.runtimes import ONNXRUNTIME, OPENVINO


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
    memory = [
        [f"{side} x {side}", f"{measured['image']:.0f}", f"{measured['megabytes']:.0f}", f"{measured['seconds']:.1f}",
         f"{measured['objects']:,}"]
        for side, measured in results["memory"].items() if side != "limit"
    ]  # fmt: skip
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

Peak memory with a memory limit of {limit} MiB, beyond the network and the decoded image, in a process of its own. Tiles
keep to the limit; the rest grows with the image: the image at the two largest scales, as bytes, and the buffers of
resizing.

{table(["image", "image, MiB", "peak beyond, MiB", "s", "detections"], memory)}
"""


def _images(results: dict) -> list[tuple[str, dict]]:
    return [("a test image", results["images"]), (f"one image of {results['large']['side']}²", results["large"])]


def _peak(results: dict) -> float:
    return max(results["peaks"]["gemm"], results["peaks"]["convolution"]) / 1e9
