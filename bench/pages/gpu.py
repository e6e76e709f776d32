"""The page of one run of `make gpu`, and the speed targets on a GPU."""

from bench.pages.tables import measured_on, table
from bench.suite.machine import COMPILED, DIRECT, FAST, GRAPH, VARIANTS

FILTERING = [name for name in VARIANTS if "filter" in name]
FLIPS = "six scales with horizontal flips, batch {}"
Target = tuple[str, float | None, float, bool]


def page(name: str, results: dict, suite: dict) -> str:
    """Checks, parts and targets; the timings are on the suite's page."""
    checks, parts = results["checks"], results["parts"]
    skipped = "; ".join(f"{count}: {reason}" for reason, count in checks.get("skipped", {}).items())
    failed = [entry for part in parts.values() for entry in part["failed"]] + suite.get("failed", [])
    lines = [[part, state["state"], f"{state['seconds']:.0f}"] for part, state in parts.items()]
    of_targets = [
        [title, "not measured" if measured is None else f"{measured:.3g}",
         f"{'at least' if minimum else 'at most'} {bound:g}", _verdict(measured, bound, minimum)]
        for title, measured, bound, minimum in targets(suite)
    ]  # fmt: skip
    sections = [
        f"# {results['measured']['device']}\n",
        *(["A dry run on a CPU: its times have no meaning.\n"] if results["dry run"] else []),
        f"{measured_on(results)}{f' [All timings](../suite/{name}.md).' if suite else ''}\n",
        f"{checks.get('passed', 0)} checks passed, {checks.get('failed', 0)} failed, {checks.get('left', 0)} left. "
        f"Skipped: {skipped or 'none'}.\n",
        *(f"Failed: {entry['what']}: {entry['why'].splitlines()[0]}\n" for entry in failed),
        table(["part", "state", "seconds"], lines) + "\n",
        table(["", "measured", "target", ""], of_targets) + "\n",
    ]
    return "\n".join(sections)


def targets(suite: dict) -> list[Target]:
    """(name, measured or None, bound, whether the bound is a minimum) of every target of a run of the suite."""
    by_name = {(row["suite"], row["shape"], row["backend"]): row for row in reversed(suite.get("rows", []))}

    def fastest(suite: str, shape: str, *names: str) -> dict | None:
        rows = [by_name[suite, shape, name] for name in names if (suite, shape, name) in by_name]
        return min(rows, key=_seconds, default=None)

    def direct(images: int) -> float | None:
        row = fastest("first-layer", f"six scales, batch {images}", DIRECT)
        return row["gflops"] * 1e9 / suite["peaks"][row["dtype"]]["gemm"] if row else None

    layers = [fastest("first-layer", "six scales, batch 8", *names) for names in ([DIRECT], FILTERING)]
    pooling = fastest("pooling", "six scales, batch 1", FAST)
    one, eight = (fastest("classification", FLIPS.format(images), FAST, GRAPH) for images in (1, 8))
    compiled = fastest("classification", FLIPS.format(1), COMPILED)
    merging = fastest("merge-groups", "640 groups of 1575 boxes", FAST)
    return [
        ("pooling, batch 1: microseconds", pooling and 1e6 * pooling["median"], 10, False),
        ("first full layer, direct, batch 8: fraction of the measured GEMM peak", direct(8), 0.8, True),
        ("first full layer, direct, batch 1: fraction of the measured GEMM peak", direct(1), 0.7, True),
        ("first full layer, minimal filtering, batch 8: speed-up over direct", _ratio(*layers), 1.7, True),
        ("classification with flips, batch 8: images/s", eight and eight["images_per_s"], 1000, True),
        (f"classification with flips, batch 1: speed-up over {COMPILED}", _ratio(compiled, one), 3, True),
        ("merging 640 groups of 1,575 boxes: ms", merging and 1e3 * merging["median"], 25, False),
    ]


def _seconds(row: dict) -> float:
    return row["median"]


def _ratio(slower: dict | None, faster: dict | None) -> float | None:
    return slower["median"] / faster["median"] if slower and faster else None


def _verdict(measured: float | None, bound: float, minimum: bool) -> str:
    return "" if measured is None else "met" if (measured >= bound if minimum else measured <= bound) else "missed"
