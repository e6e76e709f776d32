"""The page of one run of `make gpu`."""

from bench.pages.tables import table

HEAD = ["dtype", "backend", "ms", "p20 to p80", "TFLOP/s", "of GEMM peak", "GB/s", "speed-up over eager", "correct"]
MET = {True: "met", False: "missed", None: ""}


def page(results: dict) -> str:
    """Checks, measured peaks, targets, and every row; a dry run is labelled as one."""
    sections = [f"# {results['device']}\n", *_head(results)]
    rows = results["rows"]
    if results.get("targets"):
        lines = [
            [target["name"], _number(target["bound"]), _number(target["measured"]), MET[target["met"]]]
            for target in results["targets"]
        ]
        dtype = next((row["dtype"] for row in rows if row["section"] == "packed"), "")
        sections.append(table([dtype, "target", "measured", ""], lines) + "\n")
    for section in dict.fromkeys(row["section"] for row in rows if row["section"] != "tuning"):
        lines = [_line(row) for row in rows if row["section"] == section]
        sections.append(table([f"{section}: op, shape", *HEAD], lines) + "\n")
    for name, order in results.get("tiles, fastest first", {}).items():
        fastest = [[row["tile"], f"{row['ms']:.3f}", f"{row['tflops']:.1f}"] for row in order[:5]]
        sections.append(table([f"tiles, {name}", "ms", "TFLOP/s"], fastest) + "\n")
    return "\n".join(sections)


def _head(results: dict) -> list[str]:
    """Machine, check results, incomplete sections and measured peaks."""
    machine, checks = results["machine"], results["checks"]
    failed = [check for check in checks if check["result"] == "failed"]
    versions = ", ".join(f"{key} {machine[key]}" for key in ("torch", "triton", "cuda", "python") if key in machine)
    incomplete = {name: s["state"] for name, s in results["sections"].items() if s["state"] != "complete"}
    peaks = [f"{kind} {peak['tflops']:.0f} TFLOP/s" for kind, peak in results["peaks"].items() if kind != "copy"]
    if "copy" in results["peaks"]:
        peaks.append(f"copy {results['peaks']['copy']['gbs']:.0f} GB/s")
    return [
        *(["A dry run on a CPU: its times have no meaning.\n"] if results["dry run"] else []),
        f"Measured with `{results['command']}` on {machine['date']}: {versions}, commit {machine['commit']}.",
        f"{sum(check['result'] == 'passed' for check in checks)} checks passed, {len(failed)} failed.",
        *(f"Failed: {check['name']}: {check['message'].splitlines()[0]}" for check in failed),
        *(f"Not complete: {name}, {state}." for name, state in incomplete.items()),
        f"Peaks measured in the same run: {', '.join(peaks) or 'none'}.\n",
    ]


def _line(row: dict) -> list[str]:
    """A row of a table; an incorrect result has no speed."""
    flip = ", with horizontal flips" if row.get("flip") else ""
    name = f"{row['op']}, {row['shape']}, batch {row.get('images', 1)}{flip}, {row.get('pass', 'forward')}"
    if not row["check"]:
        return [name, row["dtype"], row["backend"], *[""] * 6, "no"]
    rates = [_number(row.get(key)) for key in ("tflops", "fraction_of_gemm", "gbs", "speedup_over_eager")]
    return [name, row["dtype"], row["backend"], f"{row['median']:.3f}", f"{row['p20']:.3f} to {row['p80']:.3f}",
            *rates, "yes"]  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
