"""A profile as a table of text."""

from collections.abc import Mapping, Sequence

from overfeat.regions import FIRST_FC, REMAINING_FC

OTHER = "other"  # time outside of all regions
STAGES = ("resize", "features", FIRST_FC, REMAINING_FC, "scores", "boxes", "merge", OTHER)


def stage_seconds(entry: dict) -> dict[str, float]:
    """Seconds of an entry by stage: resizing, features, first fully connected layer, rest, merging, other."""
    return by_stage({name: timed["seconds"] for name, timed in entry["regions"].items()})


def by_stage(seconds: Mapping[str, float], total: float | None = None) -> dict[str, float]:
    """Seconds of regions by stage; with the total time of the evaluation, what is outside of all regions as "other"."""
    totals = dict.fromkeys(STAGES, 0.0)
    for name, elapsed in seconds.items():
        totals[name if name in STAGES else "features"] += elapsed
    if total is not None:
        totals[OTHER] = max(0.0, total - sum(seconds.values()))
    return {name: elapsed for name, elapsed in totals.items() if elapsed or name == OTHER}


def title_of(entry: dict) -> str:
    """The scale of an entry of `profile`."""
    if "scaled" not in entry:
        return "all scales"
    return f"{entry['scaled'][0]}x{entry['scaled'][1]}{' mirrored' if entry['flipped'] else ''}"


def table(results: dict) -> str:
    """The times as aligned lines of text, in milliseconds."""
    entries = [*results["grids"], results["whole"]]
    stages = list(dict.fromkeys(name for entry in entries for name in stage_seconds(entry)))
    scales = [["", "windows", *stages, "ms", "windows/s", "GFLOP/s", "fraction"]]
    for entry in entries:
        elapsed = stage_seconds(entry)
        scales.append([
            title_of(entry), f"{entry['windows']:,}",
            *(f"{1000 * elapsed[name]:.2f}" if name in elapsed else "" for name in stages),
            f"{1000 * entry['seconds']:.1f}", f"{entry['windows'] / entry['seconds']:,.0f}",
            f"{entry['gflops']:.1f}", f"{entry['fraction']:.2f}",
        ])  # fmt: skip
    layers = [["all scales, by region", "ms", "GFLOP", "GFLOP/s", "fraction"]]
    for name, timed in results["whole"]["regions"].items():
        rates = [f"{timed[key]:.2f}" for key in ("gflop", "gflops", "fraction") if key in timed]
        layers.append([name, f"{1000 * timed['seconds']:.2f}", *rates, *[""] * (3 - len(rates))])
    return "\n".join([*aligned(scales), "", *aligned(layers), "", _summary(results)])


def _summary(results: dict) -> str:
    gflops, copy = results["measured_peaks"]["gflops"], results["measured_peaks"]["copy_gbs"]
    peaks = f"GEMM {gflops['gemm']:.0f} GFLOP/s, convolution {gflops['convolution']:.0f} GFLOP/s, copy {copy:.1f} GB/s"
    return (
        f"{results['net']} net, {results['dtype']}, stride {results['stride']} px, "
        f"{1 / results['whole']['seconds']:.2f} images/s; measured peaks: {peaks}"
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return lines
