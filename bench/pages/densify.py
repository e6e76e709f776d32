"""The densify suite's results: exact evaluation and neighbours beside cropping, and built-in nets converted."""

from bench.pages.tables import number, table
from bench.suite.machine import EAGER, EXACT, FAST, FRAGMENTS, MONAI, NAIVE, NAIVE_LAST, NEIGHBOURS, OURS
from bench.suite.patch_nets import PATCH_NETS

HEAD = [
    "net, window", "stride", "windows", "cropping, s", "channels-last, s", "exact, ms", "times as fast", "fewer MACs",
    "neighbours, ms", "times as fast", "fewer MACs",
]  # fmt: skip
MAX_RATIO = 1.1  # of the time of a built-in net that is converted to its own

METHOD = f"""\
Nets have random weights. Cropping evaluates every window on its own, in batches that fit the caches: `{NAIVE}` in
PyTorch's default memory format, `{NAIVE_LAST}` in the one that suits a CPU; where a row says so, its time is that of
the image's last windows, scaled to all. "Times as fast" is relative to the two in this order. Exact evaluation gives
the scores of cropped windows and is compared on these windows before anything is timed. `{NEIGHBOURS}`, whose padding
sees the window's neighbours, gives others; at the strides that have it, it is compared with the net as convolutions
over the whole image (`{EAGER}`). `{FRAGMENTS}` are max-pooling fragments, for nets without padding; `{MONAI}` is
MONAI's PatchInferer. `onnxruntime` and `openvino` crop windows for exact scores, and run the net as convolutions for
neighbours. MACs are an implementation's own, counted on tensors without data.
"""


def rows_of(results: dict) -> list[tuple[str, str, dict[str, dict]]]:
    """(net, shape, rows by implementation) of every case of the suite."""
    cases: dict[tuple[str, str], dict[str, dict]] = {}
    for row in results["rows"]:
        if row["suite"] == "densify":
            cases.setdefault((row["op"], row["shape"]), {})[row["backend"]] = row
    return [(*case, rows) for case, rows in cases.items()]


def summary(results: dict, every_stride: bool = False) -> str:
    """Cropping beside exact evaluation and neighbours with overfeat.fast, at the stride of each net's target or all."""
    shown = {(net.name, stride) for net in PATCH_NETS for stride in net.targets or [min(net.sides)]}
    lines = []
    for net, shape, rows in rows_of(results):
        if NAIVE not in rows:
            continue
        size, stride, windows = shape.split(", ")
        stride = int(stride.removeprefix("stride "))
        if not every_stride and (net, stride) not in shown:
            continue
        count, window = windows.split(" windows of ")
        cropping = [number(rows[name]["median"]) if name in rows else "" for name in (NAIVE, NAIVE_LAST)]
        lines.append([
            f"{net}, {window}", str(stride), f"{int(count):,} in {size}", *cropping,
            *_gains(rows, f"{FAST}-{EXACT}"), *_gains(rows, f"{FAST}-{NEIGHBOURS}"),
        ])  # fmt: skip
    return table(HEAD, lines)


def built_in(results: dict) -> str:
    """Built-in nets natively and converted."""
    lines = [
        [f"{net}, {borders}", name, number(1e3 * native), number(1e3 * converted), f"{converted / native:.2f}"]
        for net, borders, name, native, converted in _converted(results)
    ]
    return table(["built-in net, borders", "backend", "natively, ms", "converted, ms", "ratio"], lines)


def targets(results: dict) -> list[tuple[str, float, float, bool]]:
    """As `suite.targets`."""
    cases = {(net, shape.split(" windows")[0].rsplit(", ", 1)[0]): rows for net, shape, rows in rows_of(results)}
    bounds = []
    for net in PATCH_NETS:
        for stride, bound in net.targets.items():  # of the full run's image
            rows = cases.get((net.name, f"{net.sides[stride]}x{net.sides[stride]}, stride {stride}"), {})
            if f"{FAST}-{EXACT}" in rows and NAIVE in rows:
                speedup = rows[f"{FAST}-{EXACT}"]["speedups"][NAIVE]
                bounds.append((f"{net.name}, stride {stride}, exact: speed-up over cropping", speedup, bound, True))
    return bounds + [
        (f"{net}, converted, {name}: time relative to natively", converted / native, MAX_RATIO, False)
        for net, _, name, native, converted in _converted(results)
    ]


def section(results: dict) -> str:
    """The suite's part of a page, without its rows."""
    return f"""{METHOD}
{summary(results, every_stride=True)}

{built_in(results)}
"""


def _gains(rows: dict[str, dict], name: str) -> list[str]:
    """Milliseconds, times as fast as cropping in either memory format, and times fewer MACs."""
    if name not in rows:
        return [""] * 3
    row = rows[name]
    times = [number(row["speedups"][other]) for other in (NAIVE, NAIVE_LAST) if other in row["speedups"]]
    return [number(1e3 * row["median"]), ", ".join(times), number(rows[NAIVE]["flop"] / row["flop"])]


def _converted(results: dict) -> list[tuple[str, str, str, float, float]]:
    """(net, borders, backend, native seconds, converted seconds)."""
    return [
        (net, borders, name, rows[name]["median"], rows[f"{name}-{borders}"]["median"])
        for net, _, rows in rows_of(results)
        for borders in (EXACT, NEIGHBOURS)
        for name in (OURS, FAST)
        if name in rows and f"{name}-{borders}" in rows
    ]
