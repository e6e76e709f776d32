"""A profile as a table of text."""

from collections.abc import Sequence

OTHER = "other"  # what no stage is named for
KINDS = ("resize", "features", "first full layer", "other full layers", "scores", "boxes", "merge", OTHER)


def groups(entry: dict) -> dict[str, float]:
    """Seconds of an entry by what a reader compares: resizing, features, first full layer, rest, merging, other."""
    found = dict.fromkeys(KINDS, 0.0)
    for name, stage in entry["stages"].items():
        found[name if name in KINDS else "features"] += stage["seconds"]
    return {name: spent for name, spent in found.items() if spent or name == OTHER}


def title_of(entry: dict) -> str:
    """What an entry of `profile` is of."""
    if "scaled" not in entry:
        return "all of it"
    return f"{entry['scaled'][0]}x{entry['scaled'][1]}{' mirrored' if entry['flipped'] else ''}"


def table(results: dict) -> str:
    """The times as aligned lines of text, in milliseconds."""
    names = list(dict.fromkeys(name for entry in (*results["grids"], results["whole"]) for name in groups(entry)))
    head = ["", "windows", *names, "ms", "windows/s", "GFLOP/s", "fraction"]
    rows = []
    for entry in (*results["grids"], results["whole"]):
        spent = groups(entry)
        rows.append([
            title_of(entry), f"{entry['windows']:,}", *(f"{1000 * spent[n]:.2f}" if n in spent else "" for n in names),
            f"{1000 * entry['seconds']:.1f}", f"{entry['windows'] / entry['seconds']:,.0f}",
            f"{entry['gflops']:.1f}", f"{entry['fraction']:.2f}",
        ])  # fmt: skip
    layers = [["all of it, by stage", "ms", "GFLOP", "GFLOP/s", "fraction"]]
    for name, stage in results["whole"]["stages"].items():
        rates = [f"{stage[key]:.2f}" for key in ("gflop", "gflops", "fraction") if key in stage]
        layers.append([name, f"{1000 * stage['seconds']:.2f}", *rates, *[""] * (3 - len(rates))])
    ceiling, copy = results["ceilings"]["gflops"], results["ceilings"]["copy_gbs"]
    told = (
        f"{results['net']} net, {results['dtype']}, {results['stride']} stride, {1 / results['whole']['seconds']:.2f} "
        f"images/s; ceilings measured here: matrix product {ceiling['product']:.0f} GFLOP/s, convolution "
        f"{ceiling['convolution']:.0f} GFLOP/s, copy {copy:.1f} GB/s"
    )
    return "\n".join([*aligned([head, *rows]), "", *aligned(layers), "", told])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return lines
