"""The speed targets on a GPU, beside the measured values."""

from bench.gpu.run import EAGER, FAST, Run


def table(run: Run) -> list[dict]:
    """Print every target; {"name", "bound" (a minimum), "measured", "met"} of each.

    measured and met are None if the row was not timed; met is False if its check failed.
    """
    last = max((row.get("images", 1) for row in run.rows if row["section"] == "packed"), default=1)
    targets = []
    for images in dict.fromkeys((last, 1)):
        targets += [
            (f"six scales at once, batch {images}: fraction of the GEMM peak", 0.7 if images > 1 else None,
             _packed(run, images, FAST, "fraction_of_gemm")),
            (f"six scales at once, batch {images}: speed-up over one call per scale", 1.5 if images == 1 else None,
             _over(run, images, f"{FAST}, one call per scale")),
            (f"six scales at once, batch {images}: speed-up over eager PyTorch", 1.3, _over(run, images, EAGER)),
            (f"six scales at once, batch {images}: speed-up over torch.compile", 1.1,
             _over(run, images, "torch.compile")),
            (f"classification with horizontal flips, batch {images}: images/s", 300 if images > 1 else None,
             _value(run.find(section="classification", op="classification", images=images, backend=FAST),
                    "images_per_s")),
        ]  # fmt: skip
    lines = []
    kind = next((row["dtype"] for row in run.rows if row["section"] == "packed"), "")
    print(f"\n{kind:70} {'target':>8} {'measured':>8}")
    for name, bound, (value, correct) in targets:
        met = None if bound is None or value is None else value >= bound and correct
        lines.append({"name": name, "bound": bound, "measured": value, "met": met})
        verdict = {True: "met", False: "not met", None: ""}[met] + ("" if correct else ", and a check failed")
        shown = "-" if value is None else f"{value:.2f}"
        print(f"{name:70} {'-' if bound is None else bound:>8} {shown:>8}  {verdict}")
    return lines


def _packed(run: Run, images: int, backend: str, key: str) -> tuple[float | None, bool]:
    return _value(_row(run, images, backend), key)


def _row(run: Run, images: int, backend: str) -> dict | None:
    return run.find(section="packed", images=images, flip=False, backend=backend)


def _over(run: Run, images: int, other: str) -> tuple[float | None, bool]:
    """The speed-up of the library over `other`."""
    own, others = _row(run, images, FAST), _row(run, images, other)
    if own is None or others is None:
        return None, True
    return others["median"] / own["median"], own["check"] and others["check"]


def _value(row: dict | None, key: str) -> tuple[float | None, bool]:
    return (None, True) if row is None else (row.get(key), row["check"])
