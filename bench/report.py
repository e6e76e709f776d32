"""Write BENCHMARKS.md from bench/results/*.json: python -m bench.report

Every number in BENCHMARKS.md comes from those files, or from the paper and says so.
`tests/test_report.py` fails when the page and the files differ.
"""

import json

from bench.accuracy.multibox_page import multibox
from bench.accuracy.page import classification, detection, localization
from bench.common import RESULTS, ROOT
from bench.gpu.page import page as gpu_page
from bench.tables import table, where
from overfeat.architectures import ARCHITECTURES
from overfeat.files import replacing
from overfeat.geometry import output_size
from overfeat.measuring import work

PAGE = ROOT / "BENCHMARKS.md"

HOW = """## How to run it

`make bench` measures speed and compiles the kernels (about ten minutes on two cores), `make gpu` checks and
measures the kernels on a GPU (eight minutes; it needs that machine's own torch and no network), `make scenes crowds
committee regressors detectors multiboxes` makes the scenes and trains the nets and the boxes (five hours), `make
accuracy` evaluates them (an hour and a half), and `make report` writes this page. Every result file in `bench/results`
holds the command, the device, the versions, the date and the commit. Ratios are of times from one run on one machine;
times from different machines are not compared.

## Not measured

ImageNet was not at hand, so the paper's own error rates are not
repeated; they stand beside ours to compare the order of the rows.
"""


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def spread(times: dict, unit: float = 1.0, digits: int = 2) -> str:
    """Median with the 20th and 80th percentile; a single run has no spread."""
    if times["repeats"] == 1:
        return f"{times['median'] * unit:.{digits}f} (one run)"
    return f"{times['median'] * unit:.{digits}f} ({times['p20'] * unit:.{digits}f} to {times['p80'] * unit:.{digits}f})"


def speed(results: dict) -> str:
    scale, stage, six = results["scale_6"], results["classifier"], results["six_scales"]
    memory, product = results["memory"], results["matrix_product_gflops"]
    extra = memory["peak"] - memory["weights"]
    goals = table(
        ["accurate net, float32, batch 1, stock torch", "measured", "target"],
        [
            [f"scale 6 ({scale['places']} windows), fine stride: whole image against every window cropped, "
             "times faster", f"{scale['ratio']:.1f}", "20"],
            ["classifier stage, six scales: one pass against the loop over 9 offsets, times faster",
             f"{stage['ratio']:.1f}", "3"],
            ["six scales, image to scores: fraction of a large matrix product's rate", f"{six['fraction']:.2f}", "0.6"],
            ["peak memory of the process beyond the weights, six scales (GB)", f"{extra * 2**20 / 1e9:.2f}", "1.5"],
        ],
    )  # fmt: skip
    stages = table(
        ["scale", "places", "one pass, ms", "loop over offsets, ms", "times faster", "largest difference"],
        [
            [str(s["scale"]), str(s["places"]), spread(s["ours"], 1e3, 0), spread(s["loop"], 1e3, 0),
             f"{s['loop']['median'] / s['ours']['median']:.1f}", f"{s['difference']:.1e}"]
            for s in stage["scales"]
        ],
    )  # fmt: skip
    return f"""## Dense evaluation on a CPU

{where(results)}

{goals}

Scale 6 takes {spread(scale["whole"])} s over the whole image and {spread(scale["naive"])} s window by
window, in batches of 16. The padded convolutions make these two not quite the same function: inside the
image a window's border sees its real neighbours where a crop sees zeros. The classifier stage, from the
last maps on, is exactly the same function; the difference below is relative to the largest output.

All six scales, {six["places"]} places, without the mirror image, take {spread(six["seconds"])} s:
{six["gflop"]:.0f} GFLOP (computed from the net) at {six["gflops"]:.0f} GFLOP/s, where a 4096 x 4096 matrix
product reached {product[0]:.0f} GFLOP/s before and {product[1]:.0f} after in the same run. The matrix product is
not the machine's limit (a 3 x 3 convolution can pass it), so the fraction can exceed 1.

The classifier stage scale by scale, and all six in one pass over the weights: {spread(stage["packed"], 1e3, 0)} ms.

{stages}
"""


def prepared(results: dict) -> str:
    """`overfeat.fast` on a CPU."""
    parts, rows = [], []
    for dtype, found in results["dtypes"].items():
        times = found["six_scales"]
        stock, fast = times["stock"]["median"], times["fast"]["median"]
        ceilings = [max(c.values()) for c in found["ceiling_gflops"]]
        rate = found["gflop"] / fast
        rows.append([
            dtype, spread(times["stock"]), spread(times["backend_torch"]), spread(times["fast"]), f"{stock / fast:.2f}",
            f"{rate:.0f}", " and ".join(f"{c:.0f}" for c in ceilings), f"{found['largest_difference']:.0e}",
        ])  # fmt: skip
        layers = [
            [str(x["scale"]), str(x["places"]), f"{x['gflop'] / x['stock']['median']:.0f}",
             f"{x['gflop'] / x['fast']['median']:.0f}", str(BY_HAND[i]) if dtype == "float32" else "",
             f"{x['rms_difference']:.1e}"]
            for i, x in enumerate(found["layers"])
        ]  # fmt: skip
        together = sum(x["gflop"] for x in found["layers"]) / found["together"]["median"]
        head = [f"{dtype}: scale", "places", "stock, GFLOP/s", "fast, GFLOP/s", "target", "RMS difference"]
        parts.append(f"{table(head, layers)}\n\nAll six in one call: {together:.0f} GFLOP/s.\n")
    head = ["six scales", "stock eager, s", "backend torch, s", "fast, s", "times faster than eager (target 2)",
            "GFLOP/s", "ceiling before and after", "largest difference of a score"]  # fmt: skip
    weights, peak = (results["memory"][key] * 2**20 / 1e9 for key in ("weights", "peak"))
    return f"""## `overfeat.fast` on a CPU

{where(results)}

The accurate net, batch 1, image to scores without the mirror image. Stock eager is plain torch: scale by scale, max
pooling at stride 1, dilated convolution, ReLU, channels-last, nothing of this library. The ceiling is the better of a
4096 x 4096 matrix product and a 3 x 3 convolution with packed weights, in GFLOP/s. In float32 `fast` does fewer
multiplications than a plain sum (Winograd's minimal filtering, for the first full layer and the 3 x 3 and 7 x 7
convolutions); its GFLOP/s count those of the plain sum and so pass the ceiling.

{table(head, rows)}

A process that classifies one image three times at six scales with its mirror images, float32, peaks at
{peak - weights:.2f} GB beyond the weights' {weights:.2f} GB; prepared forms included.

The first full layer alone, scale by scale; targets are what was once measured by hand with packed weights on two cores:

{chr(10).join(parts)}"""


# GFLOP/s of the first full layer at scales 1 to 6; none was named for 2, 3 and 5.
BY_HAND = (87, "", "", 214, "", 217)


def kernels(results: dict) -> str:
    """What the compiler makes of the kernels, by chip, kernel and dtype."""
    chips = list(dict.fromkeys(row["chip"] for row in results["kernels"]))
    groups: dict[str, dict[str, list[dict]]] = {}
    for row in results["kernels"]:
        name = row["kernel"]
        if any(other["matrix"] for other in results["kernels"] if other["kernel"] == name):
            name += {"float16": ", 16 bit", "bfloat16": ", 16 bit"}.get(row["kind"], f", {row['kind']}")
        groups.setdefault(name, {}).setdefault(row["chip"], []).append(row)
    rows = [[name, *(compiled(of_chips.get(chip, [])) for chip in chips)] for name, of_chips in sorted(groups.items())]
    return f"""## What the compiler makes of the kernels

{where(results).replace("Measured", "Compiled")} Triton {results["triton"]}.

Compiled for chips that were not there, through the functions that launch the kernels:
{len(results["kernels"])} kernels, one for every launch configuration and dtype. Each cell has the most over them:
registers a thread, bytes spilled a thread, KB of shared memory a program; and the matrix instructions found. Nothing
here says how fast a kernel is.
Tiles of fewer than 64 rows run on HMMA everywhere; full float32 ("ieee") uses no matrix unit by intent. sm_86, sm_120
and gfx942 take the configurations of sm_80; gfx942 compiles, fits its 64 KB, and was not disassembled.

{table(["registers / spilled / shared", *chips], rows)}
"""


def compiled(rows: list[dict]) -> str:
    """One cell: the most registers, bytes spilled and KB of shared memory; the instructions."""
    registers, spills, shared = (
        max((row[key] for row in rows), default=0) for key in ("registers", "spills", "shared")
    )
    matrix = sorted({word for row in rows for word in row["matrix"].split() if not word.startswith("x")})
    return " ".join([f"{registers} / {spills} / {shared / 1024:.0f}", *matrix])


def roofline() -> str:
    """The least time of the first full layer on an H200, computed from the vendor's figures."""
    net = ARCHITECTURES["accurate"]
    rows, flops_rate, byte_rate = [], 989e12, 4.8e12
    cases = [(f"scale {i}", [size], 1) for i, size in enumerate(net.scales, 1)]
    cases += [("all six, batch 1", net.scales, 1), ("all six with flip, batch 8", net.scales, 16)]
    for name, sizes, images in cases:
        counts = [work(net, *size, 1000, "fine") for size in sizes]
        places = images * sum(c["places"] for c in counts)
        flops = 2 * images * sum(c["first"] for c in counts)
        channels, outputs, taps = net.convs[-1].channels, net.hidden[0], net.kernel**2
        cells = images * sum(
            output_size(net.feature_steps, height) * output_size(net.feature_steps, width) for height, width in sizes
        )
        moved = 2 * (cells * channels + outputs * channels * taps + places * outputs)
        computing, moving = flops / flops_rate, moved / byte_rate
        rows.append([
            name, str(places), f"{flops / 1e9:.0f}", f"{moved / 1e6:.0f}", f"{flops / moved:.0f}",
            f"{max(computing, moving) * 1e6:.0f}", "memory" if moving > computing else "matrix units",
        ])  # fmt: skip
    head = ["computed, not measured", "places", "GFLOP", "MB at least", "FLOP/byte", "least time, us", "bound by"]
    return f"""## First full layer on a GPU: the least time

Computed, not measured: the least time that the accurate net's first full layer in bfloat16 can take on an H200 by its
vendor's figures (989 TFLOP/s dense, 4.8 TB/s), each input read and each output written once. Scale by scale at batch
1, three of the six are bound by reading the 210 MB of weights; all six in one launch read them once.

{table(head, rows)}
"""


def merging(results: dict) -> str:
    """Merging of boxes: beside others on one image, in bulk, in crowds, and its growth."""
    one, groups, crowd = results["one image"], results["groups"], results["crowd"]
    own = one["merge_boxes"]["median"]
    rows = [
        [name, spread(found, 1e3) if found["repeats"] > 1 else f"{1e3 * found['median']:.0f}",
         f"{found['median'] / own:.3g}", str(found["results"])]
        for name, found in one.items() if isinstance(found, dict)
    ]  # fmt: skip
    growth = [
        [f"{int(count):,}", spread(found, 1e3, 1), f"{found['megabytes']:.1f}", f"{found['results']:,}"]
        for count, found in results["growth"]["times"].items()
    ]
    equal = "equal to" if one["equal to the loop"] else "NOT EQUAL to"
    return f"""## Merging boxes

{where(results)}

The boxes of one image and class at six scales, 1,575 of them; two thirds lie around one object. The result is
{equal} that of the paper's loop, bit for bit. Target: 100 times as fast as the loop, no slower than weighted box
fusion. Weighted box fusion and NMS are those of ensemble-boxes.

{table(["one image, one class", "ms", "times merge_boxes", "boxes left"], rows)}

{groups["groups"]} such groups in one call: {spread(groups)} s. A crowd of {crowd["boxes"]:,} boxes, six to an object:
{spread(crowd, 1e3, 1)} ms and {crowd["megabytes"]:.1f} MB (target: under 1 s; a public tree-based merger reports
0.118 s on another machine). Time grows as the number of boxes to the power of
{results["growth"]["exponent"]:.2f} (target: below 1.5):

{table(["boxes in a crowd", "ms", "memory, MB", "boxes left"], growth)}
"""


def on_gpus() -> list[str]:
    """A section for every GPU that was measured."""
    runs = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("gpu/*.json"))]
    runs = [run for run in runs if not run["dry run"]]
    if not runs:
        return ["## On a GPU: not yet measured\n\nNo GPU was at hand; `make gpu` measures one in eight minutes.\n"]
    return [gpu_page(run) for run in runs]


def detecting(results: dict) -> str:
    """Time from the file to the boxes, where it goes, and the memory."""
    rate = max(rates["convolution"] for rates in results["ceiling_gflops"])
    rows, shares = [], []
    for name, found in (
        ("a scene", results["scenes"]),
        (f"one image of {results['large']['side']}²", results["large"]),
    ):
        fast, stock = found["seconds"]["fast"], found["seconds"]["torch"]
        rows.append([
            name, f"{found['places']:,.0f}", spread(fast), f"{1 / fast['median']:.3g}", spread(stock),
            f"{stock['median'] / fast['median']:.2f}", f"{found['gflops']:.0f}", f"{found['gflops'] / rate:.2f}",
        ])  # fmt: skip
        shares.append([name, *(f"{100 * share:.1f}" for share in found["shares"].values())])
    used = results["memory"]
    memory = [
        [f"{side} x {side}", f"{found['image']:.0f}", f"{found['megabytes']:.0f}", f"{found['seconds']:.1f}",
         f"{found['objects']:,}"]
        for side, found in used.items() if side != "limit"
    ]  # fmt: skip
    head = ["", "windows", "s, fast", "images/s", "s, stock torch", "stock / fast", "GFLOP/s", "of the ceiling"]
    return f"""## Detection

{where(results)}

From the file to the merged boxes, with the shipped detector (small net with context, {len(results["zooms"])} sizes,
fine stride): {results["scenes"]["images"]} test scenes, one by one, and one large image of test scenes side by side
with {results["large"]["digits"]} digits. GFLOP/s count the net without its context and the boxes; the ceiling is the
faster of the 3 x 3 convolutions timed before and after, {rate:.0f} GFLOP/s. A net this small has too few weights for
`overfeat.fast` to prepare much.

{table(head, rows)}

Where the time goes, in percent (with `overfeat.fast`; `other` is choosing and decoding boxes, and Python):

{table(["", *results["scenes"]["shares"]], shares)}

Peak memory with `--memory {used["limit"]}`, beyond the net and the image as it was read, in a process of its own. Tiles
keep to the limit; what grows with the image is the image at the size that is searched and at half of it, as bytes,
and what resizing takes:

{table(["image", "the image itself, MiB", "peak beyond, MiB", "s", "objects"], memory)}
"""


def page() -> str:
    return "\n".join(
        [
            "# Benchmarks\n\n<!-- Written by python -m bench.report from bench/results; do not edit. -->\n",
            speed(read("speed-dense")),
            prepared(read("speed-fast")),
            merging(read("speed-merge")),
            detecting(read("speed-detect")),
            *on_gpus(),
            roofline(),
            kernels(read("kernel-report")),
            classification(read("accuracy-classification")),
            localization(read("accuracy-localization")),
            detection(read("accuracy-detection")),
            multibox(read("accuracy-multibox")),
            HOW,
        ]
    )


def main() -> None:
    with replacing(PAGE) as part:
        part.write_text(page())
    print(f"written to {PAGE.name}")


if __name__ == "__main__":
    main()
