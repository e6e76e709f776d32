"""The figures of a run of `make gpu` that have targets."""

from bench.suite.names import COMPILED, DIRECT, FAST, GRAPH, VARIANTS

FILTERING = [name for name in VARIANTS if "filter" in name]
FLIPS = "six scales with horizontal flips, batch {}"


def figures(suite: dict) -> list[tuple[str, float | None, float, bool]]:
    """(name, measured or None, target, whether the target is a minimum) of each figure of a run of the suite."""
    by_name = {(row["suite"], row["shape"], row["backend"]): row for row in reversed(suite.get("rows", []))}

    def fastest(suite: str, shape: str, *names: str) -> dict | None:
        rows = [by_name[suite, shape, name] for name in names if (suite, shape, name) in by_name]
        return min(rows, key=lambda row: row["median"], default=None)

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


def _ratio(slower: dict | None, faster: dict | None) -> float | None:
    return slower["median"] / faster["median"] if slower and faster else None
