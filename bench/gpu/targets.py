"""What the library promises on a GPU, beside what the run found."""

from bench.gpu.run import FAST, STOCK, Run


def table(run: Run) -> list[dict]:
    """Print every target, and give them for the results: name, the least allowed, found, met.

    found and met are None where the row was not timed, met is False where its check failed.
    """
    last = max((row.get("images", 1) for row in run.rows if row["section"] == "packed"), default=1)
    targets = []
    for images in dict.fromkeys((last, 1)):
        targets += [
            (f"six scales at once, batch {images}: share of the product's rate", 0.7 if images > 1 else None,
             _packed(run, images, FAST, "of_gemm")),
            (f"six scales at once, batch {images}: times as fast as one call a scale", 1.5 if images == 1 else None,
             _over(run, images, f"{FAST}, one call a scale")),
            (f"six scales at once, batch {images}: times as fast as stock torch", 1.3, _over(run, images, STOCK)),
            (f"six scales at once, batch {images}: times as fast as torch.compile", 1.1,
             _over(run, images, "torch.compile")),
            (f"classification with mirror images, batch {images}: images a second", 300 if images > 1 else None,
             _value(run.find(section="classification", op="classification", images=images, backend=FAST),
                    "images_per_s")),
        ]  # fmt: skip
    lines = []
    kind = next((row["dtype"] for row in run.rows if row["section"] == "packed"), "")
    print(f"\n{kind:70} {'target':>8} {'found':>8}")
    for name, least, found in targets:
        value, correct = found
        met = None if least is None or value is None else value >= least and correct
        lines.append({"name": name, "least": least, "found": value, "met": met})
        verdict = {True: "met", False: "not met", None: ""}[met] + ("" if correct else ", and a check failed")
        shown = "-" if value is None else f"{value:.2f}"
        print(f"{name:70} {'-' if least is None else least:>8} {shown:>8}  {verdict}")
    return lines


def _packed(run: Run, images: int, backend: str, key: str) -> tuple[float | None, bool]:
    return _value(_row(run, images, backend), key)


def _row(run: Run, images: int, backend: str) -> dict | None:
    return run.find(section="packed", images=images, flip=False, backend=backend)


def _over(run: Run, images: int, other: str) -> tuple[float | None, bool]:
    """How many times as fast as `other` the library is."""
    own, others = _row(run, images, FAST), _row(run, images, other)
    if own is None or others is None:
        return None, True
    return others["median"] / own["median"], own["check"] and others["check"]


def _value(row: dict | None, key: str) -> tuple[float | None, bool]:
    return (None, True) if row is None else (row.get(key), row["check"])
