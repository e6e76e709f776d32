"""Write BENCHMARKS.md, its pictures and README's table from bench/results: python -m bench.report

Every number there comes from those files, or is computed, or is from the paper, and the last two say so.
`tests/test_report.py` fails when the files and what is written differ.
"""

import json
from pathlib import Path

from bench.accuracy.page import classification, detection, localization
from bench.common import RESULTS, ROOT
from bench.pages import suite as suite_page
from bench.pages.gpu import page as gpu_page
from bench.pages.multibox import multibox
from bench.pages.tables import table, where
from bench.suite import charts as pictures
from bench.suite.cases import EAGER, FAST
from overfeat.files import atomic_write
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.flops import work
from overfeat.models.receptive_field import output_size
from overfeat.profiling.table import table as profile_table

PAGE, README = ROOT / "BENCHMARKS.md", ROOT / "README.md"
MARKS = "<!-- headline: written by python -m bench.report -->\n", "<!-- end of headline -->\n"

HOW = """## How to run it

In a clone with the extra `bench` (`make .venv/bench`), `overfeat bench` runs the suite on the machine it finds, and
`overfeat bench --quick` a part of it in two minutes; `-o FILE` has the rows, also of a run that was interrupted.
`overfeat bench --against REF` compares this checkout with another commit, in turns on one machine. `pytest bench/
--benchmark-autosave` runs the quick cases in pytest-benchmark, with its storage and comparison. `overfeat profile
IMAGE` tells where the time of one image goes.

`make bench` repeats what stands here of speed (forty minutes on two cores), `make gpu` checks and measures on a GPU
(ten minutes; it needs that machine's own torch and no network), `make scenes crowds committee regressors detectors
multiboxes` makes the scenes and trains the nets and the boxes (five hours), `make accuracy` evaluates them (an hour and
a half), and `make report` writes this page. Ratios are of times from one run on one machine; times from different
machines are never divided by each other.
"""


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def kernels(results: dict) -> str:
    """What the compiler makes of the kernels, by chip, kernel and dtype."""
    chips = list(dict.fromkeys(row["chip"] for row in results["kernels"]))
    groups: dict[str, dict[str, list[dict]]] = {}
    for row in results["kernels"]:
        name = row["kernel"]
        if any(other["matrix"] for other in results["kernels"] if other["kernel"] == name):
            name += {"float16": ", 16 bit", "bfloat16": ", 16 bit"}.get(row["kind"], f", {row['kind']}")
        groups.setdefault(name, {}).setdefault(row["chip"], []).append(row)
    rows = [[name, *(compiled(of_chips.get(chip, [])) for chip in chips)] for name, of_chips in sorted(groups.items())]
    return f"""## What the compiler makes of the kernels

{where(results).replace("Measured", "Compiled")} Triton {results["triton"]}.

Compiled for chips that were not there, through the functions that launch the kernels:
{len(results["kernels"])} kernels, one for every launch configuration and dtype. Each cell has the most over them:
registers a thread, bytes spilled a thread, KB of shared memory a program; and the matrix instructions found. Nothing
here says how fast a kernel is.
Tiles of fewer than 64 rows run on HMMA everywhere; full float32 ("ieee") uses no matrix unit by intent. sm_86, sm_120
and gfx942 take the configurations of sm_80; gfx942 compiles, fits its 64 KB, and was not disassembled.

{table(["registers / spilled / shared", *chips], rows)}
"""


def compiled(rows: list[dict]) -> str:
    """One cell: the most registers, bytes spilled and KB of shared memory; the instructions."""
    registers, spills, shared = (
        max((row[key] for row in rows), default=0) for key in ("registers", "spills", "shared")
    )
    matrix = sorted({word for row in rows for word in row["matrix"].split() if not word.startswith("x")})
    return " ".join([f"{registers} / {spills} / {shared / 1024:.0f}", *matrix])


def roofline() -> str:
    """The least time of the first full layer on an H200, computed from the vendor's figures."""
    net = ARCHITECTURES["accurate"]
    rows, flops_rate, byte_rate = [], 989e12, 4.8e12
    cases = [(f"scale {i}", [size], 1) for i, size in enumerate(net.scales, 1)]
    cases += [("all six, batch 1", net.scales, 1), ("all six with flip, batch 8", net.scales, 16)]
    for name, sizes, images in cases:
        counts = [work(net, *size, 1000, "fine") for size in sizes]
        places = images * sum(c["places"] for c in counts)
        flops = 2 * images * sum(c["first"] for c in counts)
        channels, outputs, taps = net.convs[-1].channels, net.hidden[0], net.kernel**2
        cells = images * sum(
            output_size(net.feature_steps, height) * output_size(net.feature_steps, width) for height, width in sizes
        )
        moved = 2 * (cells * channels + outputs * channels * taps + places * outputs)
        computing, moving = flops / flops_rate, moved / byte_rate
        rows.append([
            name, str(places), f"{flops / 1e9:.0f}", f"{moved / 1e6:.0f}", f"{flops / moved:.0f}",
            f"{max(computing, moving) * 1e6:.0f}", "memory" if moving > computing else "matrix units",
        ])  # fmt: skip
    head = ["computed, not measured", "places", "GFLOP", "MB at least", "FLOP/byte", "least time, us", "bound by"]
    return f"""## First full layer on a GPU: the least time

Computed, not measured: the least time that the accurate net's first full layer in bfloat16 can take on an H200 by its
vendor's figures (989 TFLOP/s dense, 4.8 TB/s), each input read and each output written once. Scale by scale at batch
1, three of the six are bound by reading the 210 MB of weights; all six in one launch read them once.

{table(head, rows)}
"""


def on_gpus() -> list[str]:
    """A section for every GPU that was measured."""
    runs = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("gpu/*.json"))]
    runs = [run for run in runs if not run["dry run"]]
    if not runs:
        return ["## The kernels on a GPU: not yet measured\n\n`make gpu` checks and measures them in ten minutes.\n"]
    return [gpu_page(run) for run in runs]


def detecting(results: dict) -> str:
    """Time from the file to the boxes, where it goes, and the memory."""
    rate = max(results["ceilings"]["product"], results["ceilings"]["convolution"]) / 1e9
    rows, shares = [], []
    for name, found in (
        ("a scene", results["scenes"]),
        (f"one image of {results['large']['side']}²", results["large"]),
    ):
        fast, stock = found["seconds"]["fast"], found["seconds"]["torch"]
        rows.append([
            name, f"{found['places']:,.0f}", suite_page.milliseconds(fast), f"{1 / fast['median']:.3g}",
            suite_page.milliseconds(stock),
            f"{stock['median'] / fast['median']:.2f}", f"{found['gflops']:.0f}", f"{found['gflops'] / rate:.2f}",
        ])  # fmt: skip
        shares.append([name, *(f"{100 * share:.1f}" for share in found["shares"].values())])
    used = results["memory"]
    memory = [
        [f"{side} x {side}", f"{found['image']:.0f}", f"{found['megabytes']:.0f}", f"{found['seconds']:.1f}",
         f"{found['objects']:,}"]
        for side, found in used.items() if side != "limit"
    ]  # fmt: skip
    head = ["", "windows", "ms, fast", "images/s", "ms, stock torch", "stock / fast", "GFLOP/s", "of the ceiling"]
    return f"""## Detection

{where(results)}

From the file to the merged boxes, with the shipped detector (small net with context, {len(results["scale_factors"])} sizes,
fine stride): {results["scenes"]["images"]} test scenes, one by one, and one large image of test scenes side by side
with {results["large"]["digits"]} digits. GFLOP/s count the net without its context and the boxes (computed); the
ceiling is {rate:.0f} GFLOP/s. A net this small has too few weights for `overfeat.fast` to prepare much.

{table(head, rows)}

Where the time goes, in percent (with `overfeat.fast`; `other` is choosing and decoding boxes, and Python):

{table(["", *results["scenes"]["shares"]], shares)}

Peak memory with `--memory {used["limit"]}`, beyond the net and the image as it was read, in a process of its own. Tiles
keep to the limit; what grows with the image is the image at the size that is searched and at half of it, as bytes,
and what resizing takes:

{table(["image", "the image itself, MiB", "peak beyond, MiB", "s", "objects"], memory)}
"""


def suites() -> dict[str, dict]:
    """Runs of the suite by the name of their file, that of a CPU first."""
    files = sorted(RESULTS.glob("suite/*.json"), key=lambda file: (file.stem != "cpu", file.stem))
    return {file.stem: json.loads(file.read_text()) for file in files}


def drawings() -> dict[Path, tuple]:
    """Every picture that is drawn here: where it lies, the function that draws it, and of what."""
    found = {}
    for name, results in suites().items():
        if suite_page.has_headline(results):
            found[RESULTS / "suite" / f"{name}-headline.svg"] = pictures.headline, results
        if results["growth"]:
            found[RESULTS / "suite" / f"{name}-growth.svg"] = pictures.growth, results
    return found


def first() -> str:
    """The headline: one picture and one table a machine, and what was promised."""
    parts = []
    for name, results in suites().items():
        if not suite_page.has_headline(results):
            continue
        parts.append(f"""{where(results)}

![Seconds an image by every way, and the first full layer's rate](bench/results/suite/{name}-headline.svg)

{suite_page.headline(results)}
""")
        if name == "cpu" and results["complete"]:
            parts.append(f"{suite_page.targets(results)}\n")
    return "\n".join(parts)


def profiles() -> str:
    """Where the time of one evaluation goes."""
    parts = ["## Where the time goes\n"]
    for file in sorted(RESULTS.glob("profile/*.json")):
        results = json.loads(file.read_text())
        parts.append(f"{where(results)}\n\n```\n{profile_table(results)}\n```\n")
    return "\n".join(parts)


def not_measured() -> str:
    """What is missing above."""
    missing = [
        "ImageNet, which was not at hand: the paper's own error rates are not repeated; they stand beside ours to "
        "compare the order of the rows.",
        "float16, and training in bfloat16: the kernels' tests run them, no time is told.",
        *(f"{entry['what']}, {name}: {entry['why']}" for name, run in suites().items() for entry in run["left out"]),
    ]
    if all(run["device"] == "cpu" for run in suites().values()):
        missing.append("Anything on a GPU: none was at hand.")
    lines = "\n".join(f"- {line}" for line in missing)
    return f"## Not measured\n\n{lines}\n"


def sources() -> str:
    """Every file of results, the command that made it, where and when."""
    rows = []
    for file in sorted(RESULTS.rglob("*.json")):
        results = json.loads(file.read_text())
        m = results["machine"]
        on_cpu = m["gpu"] == "none" or results.get("device") == "cpu"
        device = f"{m['cpu']}, {m['threads']} threads" if on_cpu else m["gpu"]
        rows.append(
            [str(file.relative_to(ROOT)), f"`{results['command']}`", m["date"], device, m["torch"], m["commit"]]
        )
    head = ["file", "command", "date", "device", "torch", "commit"]
    return f"## What was measured where and when\n\n{table(head, rows)}\n"


def page() -> str:
    return "\n".join(
        [
            "# Benchmarks\n\n<!-- Written by python -m bench.report from bench/results; do not edit. -->\n",
            first(),
            *(
                suite_page.section(results, f"bench/results/suite/{name}-growth.svg")
                for name, results in suites().items()
            ),
            profiles(),
            detecting(read("speed-detect")),
            *on_gpus(),
            roofline(),
            kernels(read("kernel-report")),
            classification(read("accuracy-classification")),
            localization(read("accuracy-localization")),
            detection(read("accuracy-detection")),
            multibox(read("accuracy-multibox")),
            HOW,
            sources(),
            not_measured(),
        ]
    )


def readme() -> str:
    """README with its table as the results give it."""
    before, rest = README.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n{suite_page.headline(suites()['cpu'])}\n\n{MARKS[1]}{after}"


def claims() -> list[str]:
    """What README says in numbers, besides its table."""
    suite = suites()["cpu"]
    six = {
        row["dtype"]: row["times"][EAGER]
        for row in suite["rows"] if row["suite"] == "end-to-end" and row["backend"] == FAST
    }  # fmt: skip
    boxes = read("accuracy-multibox")
    found = [100 * boxes["rate"]["crowds"][way][9] for way in ("long, both", "long, centre")]
    precision = [100 * boxes["precision"][way]["map"]["voc"] for way in ("long, both, classified, 10", "OverFeat")]
    faster, slower = (boxes["time"][f"DeepMultiBox, {crops}"]["ratio"] for crops in ("centre", "both"))
    return [
        f"Six scales of the accurate net run {six['float32']:.1f} times as fast as in stock torch in float32, "
        f"{six['bfloat16']:.1f} times in bfloat16",
        f"the ten surest boxes find {found[0]:.0f} % of the objects ({found[1]:.0f} % with one crop)",
        f"less accurate ({precision[0]:.0f} against {precision[1]:.0f} % average precision), {faster:.1f} times as "
        f"fast with one crop and {slower:.2f} times with ten",
    ]


def main() -> None:
    for path, (draw, results) in drawings().items():
        if not path.exists() or pictures.drawn_from(path) != pictures.digest(results):
            draw(results, path)
    for path, text in ((PAGE, page()), (README, readme())):
        with atomic_write(path) as part:
            part.write_text(text)
        print(f"written to {path.name}")


if __name__ == "__main__":
    main()
