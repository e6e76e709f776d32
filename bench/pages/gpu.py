"""What a run on a GPU found, for BENCHMARKS.md."""

from bench.pages.tables import table


def page(results: dict) -> str:
    """A section for one result file of `make gpu`; a dry run says that it is one."""
    machine, checks, rows = results["machine"], results["checks"], results["rows"]
    failed = [check for check in checks if check["result"] == "failed"]
    parts = [f"## {results['device']}\n"]
    if results["dry run"]:
        parts.append("A dry run on a CPU: these times mean nothing.\n")
    told = ", ".join(f"{key} {machine[key]}" for key in ("torch", "triton", "cuda", "python") if key in machine)
    parts.append(f"Measured with `{results['command']}` on {machine['date']}: {told}, commit {machine['commit']}.")
    parts.append(f"{sum(check['result'] == 'passed' for check in checks)} checks passed, {len(failed)} failed.")
    parts += [f"Failed: {check['name']}: {check['message'].splitlines()[0]}" for check in failed]
    stopped = {
        name: section["state"] for name, section in results["sections"].items() if section["state"] != "complete"
    }
    parts += [f"Not complete: {name}, {state}." for name, state in stopped.items()]
    ceilings = [
        f"{kind} {found['tflops']:.0f} TFLOP/s" for kind, found in results["ceilings"].items() if kind != "copy"
    ]
    if "copy" in results["ceilings"]:
        ceilings.append(f"copy {results['ceilings']['copy']['gbs']:.0f} GB/s")
    parts.append(f"Ceilings of the same run: {', '.join(ceilings) or 'none'}.\n")
    targets = [
        [target["name"], number(target["least"]), number(target["found"]), MET[target["met"]]]
        for target in results.get("targets", [])
    ]
    if targets:
        parts.append(
            table(
                [next((row["dtype"] for row in rows if row["section"] == "packed"), ""), "target", "found", ""], targets
            )
            + "\n"
        )
    for section in dict.fromkeys(row["section"] for row in rows if row["section"] != "tuning"):
        parts.append(table([f"{section}: op, shape", *HEAD], [line(row) for row in rows if row["section"] == section]))
        parts.append("")
    for name, order in results.get("tiles, best first", {}).items():
        best = [[found["tile"], f"{found['ms']:.3f}", f"{found['tflops']:.1f}"] for found in order[:5]]
        parts.append(table([f"tiles, {name}", "ms", "TFLOP/s"], best) + "\n")
    return "\n".join(parts)


HEAD = ["dtype", "backend", "ms", "p20 to p80", "TFLOP/s", "of the product", "GB/s", "times stock", "right"]
MET = {True: "met", False: "missed", None: ""}


def line(row: dict) -> list[str]:
    """A row of a table; a backend whose result was not right gets no speed."""
    batch = ", with mirror images" if row.get("flip") else ""
    name = f"{row['op']}, {row['shape']}, batch {row.get('images', 1)}{batch}, {row.get('pass', 'forward')}"
    if not row["check"]:
        return [name, row["dtype"], row["backend"], *[""] * 6, "no"]
    rates = [number(row.get(key)) for key in ("tflops", "of_gemm", "gbs", "times_stock")]
    return [name, row["dtype"], row["backend"], f"{row['median']:.3f}", f"{row['p20']:.3f} to {row['p80']:.3f}",
            *rates, "yes"]  # fmt: skip


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
