"""What a call of the kernels costs the host: launches, and microseconds of Python, with a driver that launches nothing.

Meta tensors stand in for real ones: nothing is computed, and torch's own kernels cost what they cost on a GPU only
roughly. Host time does not contain torch's dispatch of the op (tens of microseconds), nor the driver's launches.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import overfeat
from bench.kernel_report.absent_gpu import CHIPS, Driver, compiling
from bench.kernel_report.compiled import meta
from bench.kernel_report.rooflines import problem_of
from overfeat.kernels import box_merge, class_scores, launch, skip_classifier, skip_classifier_backward
from overfeat.kernels.cost_model import VARIANTS, unsupported_reason
from overfeat.kernels.plan import Variant
from overfeat.kernels.problem import Problem, num_positions
from overfeat.models.architecture import ARCHITECTURES
from overfeat.ops.backends import triton as backend

CHIP, KIND, DTYPE = "sm_90", "bfloat16", torch.bfloat16
NET = ARCHITECTURES["accurate"]
GROUPS, BOXES = 640, 1575  # of the merging
WARM_UP = 3  # calls: they compile, fill caches, and transform weights that are used again
REPEATS = 30
# Of torch's ops those that launch no kernel, besides views.
WITHOUT_KERNEL = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "lift_fresh")


@dataclass(frozen=True)
class Call:
    """A call, and what it costs once caches are filled."""

    name: str
    variant: str  # how the first full layer is computed
    kernels: int  # launches of ours
    torch_kernels: int  # ops of torch that launch at least one
    microseconds: float | None  # of host time, the minimum of REPEATS; None where mostly torch's


class Counter(TorchDispatchMode):
    """Counts torch's ops that launch kernels; overfeat's ops run on the kernels, which torch would not do for meta."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        namespace, name = op._schema.name.split("::")
        if namespace == "overfeat":
            with self:
                return backend.BACKEND.functions[name](*arguments, **(options or {}))
        self.count += not (op.is_view or name in WITHOUT_KERNEL)
        return op(*arguments, **(options or {}))


def maps_of(problem: Problem) -> list[Tensor]:
    return [meta(DTYPE, n, problem.channels, height, width) for n, height, width in problem.shapes]


def calls() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Name, variant and function of each call whose host time is ours."""
    one, eight = (problem_of(list(NET.scales or ()), images) for images in (1, 16))
    weight, bias, pool = (
        meta(DTYPE, one.outputs, one.channels, *one.kernel),
        meta(DTYPE, one.outputs),
        one.size,
    )
    for name, problem in (("batch 1", one), ("batch 8 with flips", eight)):
        maps = maps_of(problem)
        for variant in (None, *VARIANTS["forward"]):
            if variant is None or unsupported_reason(variant, "forward", problem) is None:
                run = partial(skip_classifier.forward, maps, weight, bias, pool, True, pool)
                yield f"first full layer, {name}", variant or "as chosen", partial(_forced, variant, run)
    maps, grad = maps_of(one), meta(DTYPE, one.positions, one.outputs)
    backward = partial(skip_classifier_backward.backward, grad, maps, weight, grad, pool, pool, True, True)
    yield "its gradients, batch 1", "as chosen", backward
    counts = [num_positions([shape], one.reach) for shape in one.pooled]
    yield "class scores, batch 1", "", partial(class_scores.forward, meta(DTYPE, len(grad), 1000), counts)
    boxes = torch.empty(GROUPS * BOXES, 4, device="meta")
    rule = {"match_threshold": 0.5, "match_metric": "normalised", "box_average": "pairwise", "min_iou": 0.5}
    merge = partial(box_merge.merge, boxes, boxes[:, 0], [BOXES] * GROUPS, **rule)
    yield f"merging {GROUPS} groups of {BOXES:,} boxes", "", merge


def _forced(variant: Variant | None, run: Callable[[], object]) -> None:
    with launch.override(variant=variant) if variant else nullcontext():
        run()


def classification(flip: bool) -> Callable[[], object]:
    """A whole classification of one image at six scales by the accurate net."""
    with torch.device("meta"):
        net = overfeat.build("accurate").to(DTYPE).eval()
    size = max(NET.scales or ())
    image = torch.empty(1, 3, *size, dtype=torch.uint8, device="meta")
    return lambda: overfeat.classify(net, image, flip=flip)


def measure() -> list[Call]:
    """Measure every call."""
    rows = []
    with compiling(CHIPS[CHIP], KIND) as driver:
        for name, variant, run in calls():
            for _ in range(WARM_UP):
                run()
            rows.append(Call(name, variant, *_count(driver, run), _host_time(run)))
        for flip in (False, True):
            run = classification(flip)
            for _ in range(WARM_UP):
                with Counter():
                    run()
            name = f"classification at six scales{' with flips' if flip else ''}, batch 1"
            rows.append(Call(name, "as chosen", *_count(driver, run), None))
    return rows


def _count(driver: Driver, run: Callable[[], object]) -> tuple[int, int]:
    before = driver.launched
    with Counter() as counter:
        run()
    return driver.launched - before, counter.count


def _host_time(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e6 * min(times)
