"""BENCHMARKS.md: what was measured where, the headline, accuracy, and what is missed or not measured."""

from pathlib import Path

from bench.common import ROOT
from bench.pages import (
    cells,
    classification,
    densify,
    detection,
    few_shot,
    localization,
    multibox,
    runtimes,
    six_scales,
    speed_detect,
    suite,
)
from bench.pages.tables import measured_on, percent, table

NO_GPU = "The Triton kernels have not run on a GPU; none was at hand."

HEAD = """# Benchmarks

<!-- Written by python -m bench.report from bench/results; do not edit. -->

Speed was measured on two cores of a server's CPU, accuracy on {images}.
ImageNet was not at hand. The tables here are those that matter; each links to a page with all rows, thresholds and a
discussion. Times of different machines are never divided by each other. The paper's own numbers, on ImageNet, stand
beside some rows to compare their order.
"""
CELLS_RESULTS = "accuracy-cells"
DIGITS = "synthetic images: MNIST digits on photographs"
CELLS = "MNIST digits on photographs and micrographs of blood cells"

REPRODUCE = """## Reproduce

In a clone, `make .venv/bench` installs what the measurements need.

| command | measures | takes |
| --- | --- | --- |
| `python -m bench --quick` | the quick suite, on your machine | two minutes on two cores |
| `python -m bench` | the whole suite, with every baseline and growth; `-o FILE` saves the rows | 45 minutes |
| `python -m bench densify` | patch classifiers at every window, beside cropping, fragments and MONAI | ten minutes |
| `python -m bench --compare REF` | another commit's library and this clone's | three times the suite's time each |
| `pytest bench/ --benchmark-autosave` | the quick cases in pytest-benchmark, which stores and compares | minutes |
| `overfeat profile IMAGE` | where the time of one image goes | seconds |
| `make bench` | all speed results of this page | an hour |
| `make gpu` | checks and timings of the kernels on a GPU; needs that machine's own torch and no network | ten minutes |
| `bench/accuracy/all.sh` | all accuracy results: data sets, trainings, measurements | six and a half hours |
| `BCCD=FOLDER bench/accuracy/cells.sh`, `BCCD=FOLDER python -m bench.accuracy.cells` | blood cells | eight hours |
| `python -m bench.accuracy.few_shot --bccd FOLDER` | classes learned from one, three and five pictures | 20 minutes |
| `python -m bench.report` | nothing; writes this page and those in `bench/results` | seconds |

The recipes in `bench/accuracy/*.sh` skip what exists and resume what was interrupted. The commands in the next table
are those of the commit that was measured; later commits have renamed some.
"""


def page(runs: dict[str, dict], results: dict[str, dict], gpus: list[str]) -> str:
    """The whole page.

    Args:
        runs: results of the suite by the name of their file.
        results: all other results by their path below bench/results, without its ending.
        gpus: names of the results of `make gpu`.
    """
    micrographs = results.get(CELLS_RESULTS)
    return "\n".join([
        HEAD.format(images=CELLS if micrographs else DIGITS),
        *(_headline(name, run) for name, run in runs.items() if suite.has_headline(run)),
        *(_runtimes(name, run) for name, run in runs.items() if runtimes.summary(run, "float32")),
        _speed(runs["cpu"], results["speed-detect"]),
        *(_densify(name, run) for name, run in runs.items() if densify.rows_of(run)),
        _gpu(gpus),
        _classification(results["accuracy-classification"]),
        _localization(results["accuracy-localization"]),
        _six_scales(results["accuracy-six-scales"]),
        *([_few_shot(results["accuracy-few-shot"])] if "accuracy-few-shot" in results else []),
        *([_cells(micrographs)] if micrographs else []),
        _detection(results["accuracy-detection"]),
        _multibox(results["accuracy-multibox"]),
        _missed(runs, micrographs),
        REPRODUCE,
        _sources({f"suite/{name}": run for name, run in runs.items()} | results),
    ])  # fmt: skip


def _headline(name: str, run: dict) -> str:
    where = "" if run["device"] == "cpu" else f" on {run['machine']['gpu']}"
    return f"""## Speed{where}

{measured_on(run)}

![Seconds per image by implementation, and the rate of the first full layer](bench/results/suite/{name}-headline.svg)

{suite.headline(run)}

`overfeat` is the library on the eager backend, `overfeat.fast` with `import overfeat.fast` (`-direct`: without
Winograd convolutions); the others are plain PyTorch, MONAI and, where measured, the same layers in ONNX Runtime and
OpenVINO. The measured peak is the highest rate of large GEMMs and convolutions in the same run. GFLOP/s count direct
convolutions; Winograd convolutions need fewer multiplications and can exceed the peak.
[All suites, speed targets, memory and growth](bench/results/suite/{name}.md).
"""


def _runtimes(name: str, run: dict) -> str:
    return f"""### Beside ONNX Runtime and OpenVINO

{measured_on(run)}

{runtimes.summary(run, "float32")}

The same layers, exported to ONNX, on as many threads, with equal results; exact evaluation of your own network is
compared with cropped windows. [All rows, bfloat16](bench/results/suite/{name}.md).
"""


def _speed(run: dict, detect: dict) -> str:
    return f"""### Growth and memory

{suite.growth_summary(run)}

{suite.memory(run)} [Time by stage](bench/results/profile/cpu.md).

### Detection

{measured_on(detect)} [Time by stage and memory](bench/results/speed-detect.md).

{speed_detect.summary(detect)}
"""


def _densify(name: str, run: dict) -> str:
    return f"""### Your own network

{measured_on(run)}

{densify.summary(run)}

"Times as fast" is relative to cropping every window in PyTorch's default memory format, and channels-last. Exact
evaluation gives the scores of cropped windows; padding that sees a window's neighbours gives others. [All strides,
fragments, MONAI, and built-in nets converted](bench/results/suite/{name}.md).
"""


def _gpu(gpus: list[str]) -> str:
    pages = " ".join(f"[{name}](bench/results/gpu/{name}.md)." for name in gpus)
    return f"""## GPU: {"measured on" if gpus else "not measured"}

{pages or NO_GPU} They are tested under Triton's interpreter and compiled for the GPUs of [the compiler
report](bench/results/kernel-report.md), which also has computed rooflines of the first layer on an H100 and an H200.
`make gpu` checks and measures them.
"""


def _classification(results: dict) -> str:
    return f"""## Accuracy: classification

{results["nets"]} small nets with different seeds, {results["images"]} test images of one digit; ± is the standard
error. [All protocols and discussion](bench/results/accuracy-classification.md).

{classification.summary(results)}

Measured with the former six scales of the small net, in steps of 1.4, at which most digits are larger than the
window from scale 4 on; with those of [table 5](bench/results/accuracy-six-scales.md) six scales are the best choice.
"""


def _localization(results: dict) -> str:
    return f"""## Accuracy: localization

The same {results["test"]["images"]} test images, one small net and three box regressors: one box for all classes
(SCR) or one per class (PCR), L2 or IoU loss. [Merging, thresholds and
discussion](bench/results/accuracy-localization.md).

{localization.summary(results)}
"""


def _six_scales(results: dict) -> str:
    return f"""## Accuracy: the six scales

The two tables above were measured while the six scales of the small net grew in steps of 1.4; they follow table 5's
ratios to the window now.
[The shipped net on the same {results["images"]} images](bench/results/accuracy-six-scales.md):

{six_scales.summary(results)}
"""


def _detection(results: dict) -> str:
    test = results["test"]
    return f"""## Accuracy: detection

{test["images"]} test images with none to eight digits. Mean average precision in percent (VOC: IoU of 0.5; COCO: mean
over IoUs), greedy merging beside NMS; standard error {percent(test["standard error"])} points. The paper, on
ImageNet: {detection.PAPER}. [All metrics, thresholds and discussion](bench/results/accuracy-detection.md).

{detection.summary(results)}
"""


def _few_shot(results: dict) -> str:
    return f"""Learned from one and from five pictures, with SqueezeNet's features
([all rows](bench/results/accuracy-few-shot.md)): {few_shot.summary(results)}.
"""


def _cells(results: dict) -> str:
    published = ", ".join(f"{name} {value}" for name, (value, _) in cells.PUBLISHED.items())
    return f"""## Accuracy: detection of blood cells

{results["data"]["test"]["images"]} micrographs of BCCD; VOC's average precision at an IoU of 0.5. Published, on other \
splits: {published} %. [Starts, negatives, border, merging, sources](bench/results/{CELLS_RESULTS}.md).

{cells.summary(results)}
"""


def _multibox(results: dict) -> str:
    return f"""## Accuracy: DeepMultiBox

Class-agnostic recall on {results["images"]["multi"]} multi-object test images; its paper has 45 to 48 % with 10
boxes, on VOC 2007. [Other trainings, average precision, transfer and
discussion](bench/results/accuracy-multibox.md).

{multibox.summary(results, 3)}

{multibox.time_summary(results)}
"""


def _missed(runs: dict[str, dict], micrographs: dict | None) -> str:
    missed = [line for run in runs.values() if run["complete"] and run["device"] == "cpu" for line in suite.missed(run)]
    of_cells = [line for line, reached in cells.targets(micrographs).items() if not reached] if micrographs else []
    missed += [f"blood cells: {'; '.join(of_cells)}"] if of_cells else []
    skipped = [f"{entry['what']}, {name}: {entry['why']}." for name, run in runs.items() for entry in run["skipped"]]
    lines = [
        *(f"Target missed: {line}." for line in missed),
        "Not repeated with the six scales of table 5: the tables of five classifiers and of three box regressors.",
        "Not repeated since voting is the default of detect: the digits' tables, by merging and NMS as they were then.",
        "DeepMultiBox with ten crops is slower than OverFeat's detection on these small images, unlike in the paper.",
        "Not measured: ImageNet; float16; training in bfloat16 (tested, not timed); DeepMultiBox on large images.",
        *(["Not measured: anything on a GPU."] if all(run["device"] == "cpu" for run in runs.values()) else []),
        *(f"Skipped in the suite: {line}" for line in skipped),
    ]
    return "## Missed, and not measured\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def _sources(results: dict[str, dict]) -> str:
    rows = []
    for name, result in sorted(results.items()):
        m = result["machine"]
        on_cpu = m["gpu"] == "none" or result.get("device") == "cpu"
        device = f"{m['cpu']}, {m['threads']} threads" if on_cpu else m["gpu"]
        path = Path("bench/results") / f"{name}.json"
        link = f"[{path.relative_to('bench/results')}]({path.with_suffix('.md')})"
        rows.append([link, f"`{result['command']}`", m["date"], device, m["torch"], m["commit"]])
    assert all((ROOT / "bench/results" / f"{name}.json").exists() for name in results)
    return f"## Measurements\n\n{table(['results', 'command', 'date', 'device', 'torch', 'commit'], rows)}\n"
