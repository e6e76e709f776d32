"""What `overfeat bench` measured, for BENCHMARKS.md and README."""

from bench.pages.tables import table, where
from bench.suite.cases import DIRECT, EAGER, FAST, LOOP, MONAI, NAIVE, OURS, PAPER_LOOP, WBF
from bench.suite.runner import SINGLE_RUN_SECONDS as LONG

TITLES = {
    "end-to-end": "an image to its classes",
    "dense": "every window of a scale",
    "classifier": "the interleaved classifier",
    "train": "training steps",
    "merge": "merging boxes",
}
BY_HAND = {1: 87, 4: 214, 6: 217}  # GFLOP/s of the first full layer, once measured by hand with packed weights


def has_headline(results: dict) -> bool:
    """Whether a run came as far as what the headline tells; an interrupted one need not."""
    kinds = {(row["op"], row["dtype"]) for row in results["rows"]}
    return {("accurate net, six scales", "float32"), ("first full layer", "float32")} <= kinds


def headline(results: dict) -> str:
    """The table that README shows: the whole evaluation by every way."""
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
    head = [f"{rows[0]['op']}: {rows[0]['shape']}", "seconds an image", f"times {FAST}'s", "GFLOP/s", "of the ceiling"]
    return table(head, lines)


def targets(results: dict) -> str:
    """What was promised, beside what was found."""

    def row(suite: str, backend: str, part: str = "", op: str = "", dtype: str = "float32") -> dict:
        rows = [
            r for r in results["rows"]
            if r["suite"] == suite and r["backend"] == backend and r["dtype"] == dtype and part in r["shape"]
            and op in r["op"]
        ]  # fmt: skip
        return rows[0]

    six, one, stages = row("end-to-end", FAST), row("dense", FAST, "scale 6"), row("classifier", OURS, op="all")
    merge, grown = row("merge", OURS, "1575"), {entry["what"]: entry for entry in results["growth"]}
    crowd = next(entry for what, entry in grown.items() if "crowd" in what)
    named = next(point for point in crowd["points"] if point["size"] == 33337)
    memory = {way: found["peak"] - found["weights"] for way, found in results["process memory"].items()}
    lines = [
        [f"six scales, {FAST}: share of the ceiling", six["fraction"], 0.8, True],
        [f"six scales, {DIRECT}: share of the ceiling", row("end-to-end", DIRECT)["fraction"], 0.8, True],
        [f"six scales, {FAST}: times as fast as {EAGER}", six["times"][EAGER], 2, True],
        [f"six scales, {OURS}: share of the ceiling", row("end-to-end", OURS)["fraction"], 0.6, True],
        [f"scale 6, {FAST}: times as fast as {NAIVE}", one["times"][NAIVE], 20, True],
        [f"scale 6, {FAST}: times as fast as {MONAI}", one["times"][MONAI], 15, True],
        [f"all full layers in one pass, {OURS}: times as fast as the {LOOP}", stages["times"][LOOP], 3, True],
        *(
            [f"first full layer at scale {number}, {FAST}: GFLOP/s (by hand, with packed weights)",
             row("classifier", FAST, f"scale {number}", "first")["gflops"], least, True]
            for number, least in BY_HAND.items()
        ),
        ["merging 1,575 boxes: times as fast as the paper's loop", merge["times"][PAPER_LOOP], 100, True],
        ["merging 1,575 boxes: times as fast as weighted box fusion", merge["times"][WBF], 1, True],
        ["merging a crowd of 33,337: seconds (a public tree-based merger reports 0.118 on another machine)",
         named["median"], 1, False],
        ["merging a crowd: exponent of time", crowd["time exponent"], 1.5, False],
        [f"a process, six scales, {OURS}: GB at its peak beyond the weights", memory[OURS] / 1e9, 1.5, False],
    ]  # fmt: skip
    rows = [
        [name, number(found), f"{'at least' if least else 'at most'} {bound:g}",
         "met" if (found >= bound if least else found <= bound) else "missed"]
        for name, found, bound, least in lines
    ]  # fmt: skip
    return table(["", "measured", "target", ""], rows)


def number(value: float, digits: int = 3) -> str:
    """With so many digits that count, and without an exponent."""
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def milliseconds(row: dict) -> str:
    """Median with the 20th and 80th percentile; a single run has no spread."""
    median, low, high = (number(1e3 * row[key], 4) for key in ("median", "p20", "p80"))
    return f"{median} (one run)" if row["repeats"] == 1 else f"{median} ({low} to {high})"


HOW_MEASURED = f"""overfeat is the library on stock torch, overfeat.fast what `import overfeat.fast` makes of it
(-direct: without Winograd's convolutions), torch.eager and torch.compile what one writes in torch alone; the other ways
stand in `bench/suite/baselines.py`. Every result but those that the last column speaks of was compared with that
of the first way of its case (in the same dtype) before it was timed; {NAIVE}, nms and wbf give other results by
design. The ways of a case were timed in turns: median, 20th and 80th percentile; what takes more than {LONG:.0f}
seconds was timed once. GFLOP/s count the multiplications and additions of direct convolutions and products (computed),
so that Winograd's convolutions, which do fewer, can pass the ceiling; GB/s the weights, inputs and outputs, once each
(computed). Peaks are of memory beyond what was held before, so without the weights and what was prepared of them.
"""


def section(results: dict, picture: str) -> str:
    """Every row, suite by suite; growth, with its picture's place in the project."""
    told = "; ".join(
        f"{name}: product {c['product'] / 1e9:.0f} GFLOP/s, convolution {c['convolution'] / 1e9:.0f} GFLOP/s, copy "
        f"{c['copy'] / 1e9:.1f} GB/s" for name, c in results["ceilings"].items()
    )  # fmt: skip
    parts = [
        f"## The bench suite{'' if results['device'] == 'cpu' else ' on ' + results['machine']['gpu']}\n\n"
        f"{where(results)} {', '.join(f'{name} {version}' for name, version in results['packages'].items())}.\n",
        f"Ceilings, the best of the run: {told}.\n\n{HOW_MEASURED}",
    ]
    if not results["complete"]:
        parts.append("The run was interrupted: rows are missing.\n")
    for suite, title in TITLES.items():
        rows = [row for row in results["rows"] if row["suite"] == suite]
        if rows:
            parts.append(f"### {suite}: {title}\n\n{_rows(rows)}\n")
    if "process memory" in results:
        told = ", ".join(
            f"{(found['peak'] - found['weights']) / 1e9:.2f} GB with {way}"
            for way, found in results["process memory"].items()
        )
        weights = next(iter(results["process memory"].values()))["weights"] / 1e9
        parts.append(
            "A process that classifies one image three times at six scales with their mirror images, float32 "
            "(`python -m bench.suite.memory`, `python -m bench.suite.memory fast`), peaks "
            f"beyond the weights' {weights:.2f} GB at {told}; what is prepared of them included.\n"
        )
    if results["growth"]:
        parts.append(f"### growth\n\n{_growth(results['growth'])}\n\n![Time and memory against size]({picture})\n")
    return "\n".join(parts)


def _rows(rows: list[dict]) -> str:
    columns = {
        "way": lambda row: row["backend"],
        "ms": milliseconds,
        "GFLOP/s": lambda row: number(row["gflops"]) if "gflops" in row else "",
        "of the ceiling": lambda row: f"{row['fraction']:.2f}" if "fraction" in row else "",
        "images/s": lambda row: number(row["images_per_s"]) if "images_per_s" in row else "",
        "GB/s": lambda row: number(row["gbs"]) if row.get("gbs", 0) > 0.1 else "",
        "peak, MB": lambda row: "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}",
        "times as fast as": lambda row: (
            "" if row["baseline"] else ", ".join(f"{name} {number(ratio)}" for name, ratio in row["times"].items())
        ),
        "": lambda row: row["remark"],
    }
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    cells = {name: column for name, column in cells.items() if any(column)}
    titles = [f"{row['op']}, {row['shape']}, {row['dtype']}" for row in rows]
    titles = [title if title != before else "" for title, before in zip(titles, ["", *titles], strict=False)]
    return table(["op, shape, dtype", *cells], [list(line) for line in zip(titles, *cells.values(), strict=True)])


def _growth(found: list[dict]) -> str:
    rows = [
        [
            entry["what"], entry["unit"], ", ".join(f"{point['size']:.4g}" for point in entry["points"]),
            ", ".join(number(1e3 * point["median"]) for point in entry["points"]),
            ", ".join("" if point["peak_bytes"] is None else number(point["peak_bytes"] / 1e6)
                      for point in entry["points"]),
            f"{entry['time exponent']:.2f}", f"{entry['memory exponent']:.2f}" if "memory exponent" in entry else "",
        ]
        for entry in found
    ]  # fmt: skip
    head = ["", "grows with", "sizes", "ms", "peak, MB", "exponent of time", "exponent of memory"]
    return f"With {FAST}; evaluations are of the small net, in tiles of the default `memory`.\n\n{table(head, rows)}"
