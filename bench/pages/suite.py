"""The suite's results: its page, the headline table of README and BENCHMARKS.md, and the speed targets."""

import math

from bench.pages import densify, runtimes
from bench.pages.tables import measured_on, milliseconds, number, table
from bench.suite.machine import DIRECT, EAGER, FAST, LOOP, MONAI, NAIVE, OURS, PAPER_LOOP, WBF
from bench.suite.runner import SINGLE_RUN_SECONDS

TITLES = {
    "end-to-end": "an image to class scores",
    "dense": "every window of a scale",
    "small-net": "every window of images of growing size, small net of ten classes",
    "classifier": "the classifier at every offset",
    "train": "training steps",
    "merge": "merging boxes",
    "pooling": "offset pooling on a GPU",
    "first-layer": "the first full layer on a GPU, in every variant",
    "classification": "whole classifications on a GPU, with flips",
    "merge-groups": "merging many groups of boxes on a GPU",
    "gradients": "forward and backward of the first full layer on a GPU",
    "single-scales": "the first full layer at each scale on a GPU",
    "other-types": "the first full layer on a GPU in other arithmetic",
    "densify": "any patch classifier at every window",
}
FIRST_LAYER_GFLOPS = {1: 87, 4: 214, 6: 217}  # target at each scale, from a manual measurement with packed weights

GPU_METHOD = """On a GPU, times of the kernels' suites (pooling, first-layer, gradients, single-scales, other-types) are
the GPU's own, from a cold L2 cache, while the host runs ahead; all others include the host's. After `overfeat.fast-`
stands a variant that was forced (kernels/launch.py), how pooling was done, `each`: a call per map, `graph`: a captured
CUDA graph, `default-memory`: the default memory limit. The last column of `overfeat.fast` has the variant it chose.
Minimal filtering needs fewer multiplications and can exceed the peak.
"""
METHOD = f"""`overfeat` is the library on the eager backend and `overfeat.fast` with `import overfeat.fast` (`-direct`:
without Winograd convolutions); `torch.eager` and `torch.compile` (`-frozen`: with constant weights) are plain PyTorch;
`onnxruntime` and `openvino` run the same layers, exported to ONNX with sizes left open, on as many threads; the other
implementations are in `bench/suite/baselines.py`. Every result was compared with the case's reference (its first
implementation, same dtype) before it was timed, except where the last column says otherwise, as of results that differ
by design. The implementations of a case were timed in turns: median with the 20th and 80th percentile; what takes more
than {SINGLE_RUN_SECONDS:.0f} seconds was timed once. GFLOP/s count the multiplications and additions of direct
convolutions and matmuls, so Winograd convolutions, which need fewer, can exceed the measured peak. GB/s count weights,
inputs and outputs once each. Peak memory excludes what was allocated before: weights and their packed copies.
"""


def has_headline(results: dict) -> bool:
    """Whether a run measured the headline's cases; an interrupted one may not have."""
    kinds = {(row["suite"], row["op"], row["dtype"]) for row in results["rows"]}
    six = "end-to-end", "accurate net, six scales", "float32"
    return {six, ("classifier", "first full layer", "float32")} <= kinds


def headline(results: dict) -> str:
    """Six scales of the accurate net by each implementation."""
    rows = [row for row in results["rows"] if row["suite"] == "end-to-end"]
    fast = {row["dtype"]: row["median"] for row in rows if row["backend"] == FAST}
    lines = [
        [
            f"{row['backend']}, {row['dtype']}", f"{row['median']:.2f}",
            f"{row['median'] / fast[row['dtype']]:.1f}" if row["dtype"] in fast else "",
            number(row["gflops"]), f"{row['fraction']:.2f}",
        ]
        for row in sorted(rows, key=lambda row: (row["dtype"] != "float32", row["median"]))
    ]  # fmt: skip
    head = [f"{rows[0]['op']}: {rows[0]['shape']}", "s per image", f"relative to {FAST}", "GFLOP/s", "of measured peak"]
    return table(head, lines)


def targets(results: dict) -> list[tuple[str, float, float, bool]]:
    """(name, measured, bound, whether the bound is a minimum) of every speed target of a complete run."""
    main = _main_targets(results) if results["growth"] else []
    return main + runtimes.targets(results) + densify.targets(results)


def _main_targets(results: dict) -> list[tuple[str, float, float, bool]]:
    def row(suite: str, backend: str, part: str = "", op: str = "") -> dict:
        return next(
            r for r in results["rows"]
            if (r["suite"], r["backend"], r["dtype"]) == (suite, backend, "float32")
            and part in r["shape"] and op in r["op"]
        )  # fmt: skip

    six, one, layers = row("end-to-end", FAST), row("dense", FAST, "scale 6"), row("classifier", OURS, op="all")
    merge = row("merge", OURS, "1575")
    many = next(entry for entry in results["growth"] if "many objects" in entry["what"])
    large = next(point for point in many["points"] if point["size"] == 33337)
    memory = results["process memory"][OURS]
    # A baseline that is not installed, or whose result differs, has no rows.
    nothing = float("nan")
    measured = [
        (f"six scales, {FAST}: fraction of the measured peak", six["fraction"], 0.8, True),
        (f"six scales, {DIRECT}: fraction of the measured peak", row("end-to-end", DIRECT)["fraction"], 0.8, True),
        (f"six scales, {FAST}: speed-up over {EAGER}", six["speedups"][EAGER], 2, True),
        (f"six scales, {OURS}: fraction of the measured peak", row("end-to-end", OURS)["fraction"], 0.6, True),
        (f"scale 6, {FAST}: speed-up over {NAIVE}", one["speedups"].get(NAIVE, nothing), 20, True),
        (f"scale 6, {FAST}: speed-up over {MONAI}", one["speedups"].get(MONAI, nothing), 15, True),
        (f"all full layers in one pass, {OURS}: speed-up over {LOOP}", layers["speedups"][LOOP], 3, True),
        *(
            (f"first full layer at scale {number}, {FAST}: GFLOP/s (target: measured manually with packed weights)",
             row("classifier", FAST, f"scale {number}", "first")["gflops"], bound, True)
            for number, bound in FIRST_LAYER_GFLOPS.items()
        ),
        ("merging 1,575 boxes: speed-up over the paper's loop", merge["speedups"].get(PAPER_LOOP, nothing), 100, True),
        ("merging 1,575 boxes: speed-up over weighted box fusion", merge["speedups"].get(WBF, nothing), 1, True),
        ("merging 33,337 boxes of many objects: seconds (a public tree-based merger reports 0.118 on another machine)",
         large["median"], 1, False),
        ("merging boxes of many objects: exponent of time", many["time exponent"], 1.5, False),
        (f"a process, six scales, {OURS}: peak memory beyond the weights, GB",
         (memory["peak"] - memory["weights"]) / 1e9, 1.5, False),
    ]  # fmt: skip
    return [target for target in measured if not math.isnan(target[1])]


def missed(results: dict) -> list[str]:
    """One line for every target that was missed."""
    return [
        f"{name}: {number(measured)}, target {'at least' if minimum else 'at most'} {bound:g}"
        for name, measured, bound, minimum in targets(results)
        if not _met(measured, bound, minimum)
    ]


def page(name: str, results: dict) -> str:
    """Every row of a run, suite by suite, then memory and growth."""
    packages = ", ".join(f"{package} {version}" for package, version in results["packages"].items())
    peaks = "; ".join(
        f"{dtype}: GEMM {p['gemm'] / 1e9:.0f} GFLOP/s, convolution {p['convolution'] / 1e9:.0f} GFLOP/s, copy "
        f"{p['copy'] / 1e9:.1f} GB/s" for dtype, p in results["peaks"].items()
    )  # fmt: skip
    device = "" if results["device"] == "cpu" else f" on {results['machine']['gpu']}"
    sections = [
        f"# The bench suite{device}\n\n{measured_on(results)} {packages}.\n",
        f"Peaks measured in the same run (the highest of each): {peaks}.\n\n{METHOD}",
        *([GPU_METHOD] if device else []),
    ]
    if not results["complete"]:
        sections.append("The run was interrupted: rows are missing.\n")
    for entry in results.get("failed", []):
        sections.append(f"Failed: {entry['what']}: {entry['why'].splitlines()[0]}\n")
    if results["device"] == "cpu" and results["complete"] and targets(results):
        sections.append(f"## Targets\n\n{_target_table(results)}\n")
    if beside := runtimes.summary(results):
        sections.append(f"## Beside ONNX Runtime and OpenVINO\n\n{beside}\n")
    for suite, title in TITLES.items():
        rows = [row for row in results["rows"] if row["suite"] == suite]
        if rows:
            before = f"{densify.section(results)}\n" if suite == "densify" else ""
            sections.append(f"## {suite}: {title}\n\n{before}{_rows(rows)}\n")
    if "process memory" in results:
        sections.append(f"## Memory of a process\n\n{memory(results)}\n")
    if results["growth"]:
        chart = f"![Time and memory against size]({name}-growth.svg)"
        text = f"With {FAST}; evaluations are of the small net, in tiles of the default memory limit."
        sections.append(f"## Growth\n\n{text}\n\n{_growth(results['growth'])}\n\n{chart}\n")
    return "\n".join(sections)


def memory(results: dict) -> str:
    """The peak memory of whole processes, in a sentence."""
    processes = results["process memory"]
    peaks = ", ".join(f"{(p['peak'] - p['weights']) / 1e9:.2f} GB with {name}" for name, p in processes.items())
    weights = next(iter(processes.values()))["weights"] / 1e9
    return (
        "A process that classifies one image three times at six scales with horizontal flips, float32 "
        "(`python -m bench.suite.memory`, `python -m bench.suite.memory fast`), peaks above the "
        f"{weights:.2f} GB of the weights at {peaks}, packed weights included."
    )


def growth_summary(results: dict) -> str:
    """The exponents of time and memory."""
    rows = [
        [f"{entry['what']}, by {entry['unit']}",
         " to ".join(f"{entry['points'][end]['size']:.4g}" for end in (0, -1)),
         *(f"{entry[key]:.2f}" if key in entry else "" for key in ("time exponent", "memory exponent"))]
        for entry in results["growth"]
    ]  # fmt: skip
    return table(["growth", "sizes", "exponent of time", "exponent of memory"], rows)


def _met(measured: float, bound: float, minimum: bool) -> bool:
    return measured >= bound if minimum else measured <= bound


def _target_table(results: dict) -> str:
    rows = [
        [name, number(measured), f"{'at least' if minimum else 'at most'} {bound:g}",
         "met" if _met(measured, bound, minimum) else "missed"]
        for name, measured, bound, minimum in targets(results)
    ]  # fmt: skip
    return table(["", "measured", "target", ""], rows)


def _rows(rows: list[dict]) -> str:
    columns = {
        "implementation": lambda row: row["backend"],
        "ms": milliseconds,
        "GFLOP/s": lambda row: number(row["gflops"]) if "gflops" in row else "",
        "of measured peak": lambda row: f"{row['fraction']:.2f}" if "fraction" in row else "",
        "images/s": lambda row: number(row["images_per_s"]) if "images_per_s" in row else "",
        "GB/s": lambda row: number(row["gbs"]) if row.get("gbs", 0) > 0.1 else "",
        "peak, MB": lambda row: "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}",
        "speed-up over": lambda row: (
            "" if row["baseline"] else ", ".join(f"{name} {number(ratio)}" for name, ratio in row["speedups"].items())
        ),
        "": lambda row: row["remark"],
    }
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    cells = {name: column for name, column in cells.items() if any(column)}
    titles = [f"{row['op']}, {row['shape']}, {row['dtype']}" for row in rows]
    titles = [title if title != before else "" for title, before in zip(titles, ["", *titles], strict=False)]
    return table(["op, shape, dtype", *cells], [list(line) for line in zip(titles, *cells.values(), strict=True)])


def _growth(entries: list[dict]) -> str:
    rows = [
        [
            entry["what"], entry["unit"], ", ".join(f"{point['size']:.4g}" for point in entry["points"]),
            ", ".join(number(1e3 * point["median"]) for point in entry["points"]),
            ", ".join("" if point["peak_bytes"] is None else number(point["peak_bytes"] / 1e6)
                      for point in entry["points"]),
            f"{entry['time exponent']:.2f}", f"{entry['memory exponent']:.2f}" if "memory exponent" in entry else "",
        ]
        for entry in entries
    ]  # fmt: skip
    return table(["", "grows with", "sizes", "ms", "peak, MB", "exponent of time", "exponent of memory"], rows)
