"""What a converted net costs, for people: MACs per window cropped and here, where sharing ends, which strides pay."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.fx import Node

from overfeat.densify.cost import Cost, measure
from overfeat.densify.export import Program, label
from overfeat.densify.interpreter import Interpreter
from overfeat.densify.values import WindowGrid

if TYPE_CHECKING:
    from overfeat.densify.net import DensifiedNet

WINDOWS = 16  # down and across, in the image that the table is about
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def cost_table(net: "DensifiedNet") -> str:
    """The table that `print(net)` shows."""
    program, geometry, stride = net.program, net.geometry, net.geometry.stride(net.default_stride)
    cropped = run_cost(Interpreter(program, "exact"), 1, stride)
    here = run_cost(net.interpreter, WINDOWS, stride)
    height, width = geometry.window
    image = f"{(WINDOWS - 1) * stride + height}x{(WINDOWS - 1) * stride + width}"
    lines = [
        f"{geometry.name}: windows of {height}x{width} px, {net.num_classes} classes, borders {net.borders}",
        f"MACs per window, {WINDOWS}x{WINDOWS} windows {stride} px apart in an image of {image}:",
        *_rows(_by_label(program, cropped, 1), _by_label(program, here, WINDOWS**2)),
        *_sharing(net, cropped, here),
        *_strides(net, sum(cropped.macs.values())),
    ]
    return "\n".join(lines)


def run_cost(interpreter: Interpreter, count: int, stride: int) -> Cost:
    """The cost of count x count windows."""
    height, width = interpreter.program.window
    size = ((count - 1) * stride + height, (count - 1) * stride + width)
    return measure(interpreter, WindowGrid(1, (count, count), stride), size)


def _by_label(program: Program, cost: Cost, windows: int) -> dict[str, float]:
    """MACs per window of every op that has any."""
    macs: dict[str, float] = {}
    for node in program.nodes:
        if cost.macs.get(node):
            macs[label(node)] = macs.get(label(node), 0.0) + cost.macs[node] / windows
    return macs


def _rows(cropped: dict[str, float], here: dict[str, float]) -> list[str]:
    """A line for each op, and the total."""
    names = list(dict.fromkeys((*cropped, *here)))
    lines = [(name, cropped.get(name, 0.0), here.get(name, 0.0)) for name in names]
    lines.append(("total", sum(cropped.values()), sum(here.values())))
    wide = max(len(name) for name, _, _ in lines)
    head = f"  {'':{wide}} {'cropped':>9} {'here':>9} {'fewer':>9}"
    return [head, *(f"  {name:{wide}} {_si(a):>9} {_si(b):>9} {_times(a, b):>9}" for name, a, b in lines)]


def _sharing(net: "DensifiedNet", cropped: Cost, here: Cost) -> list[str]:
    """Where windows stop sharing before the end, why, and what other borders would save."""
    total, lines = sum(cropped.macs.values()), []
    if here.ends:
        node, reason = next(iter(here.ends.items()))
        nodes, position = net.program.nodes, net.program.nodes.index(node)
        before, after = (_saved(cropped, here, part) for part in (nodes[:position], nodes[position:]))
        lines.append(f"before {label(node)}, windows share work: {before}")
        lines.append(f"from {label(node)} on, each window is computed on its own, since {reason}: {after}")
    if net.borders == "exact" and max(max(pair) for pair in net.halo):
        stride = net.geometry.stride(net.default_stride)
        neighbours = run_cost(Interpreter(net.program, "neighbours"), WINDOWS, stride)
        factors = [_times(total, sum(cost.macs.values()) / WINDOWS**2) for cost in (here, neighbours)]
        lines.append(
            f"padding sees the window's border: exact borders need {factors[0]} fewer MACs than cropping, "
            f'borders="neighbours" {factors[1]} (other scores, see compare_borders)'
        )
    return lines


def _saved(cropped: Cost, here: Cost, nodes: Sequence[Node]) -> str:
    """The MACs of these nodes against cropping."""
    a = sum(cropped.macs.get(node, 0) for node in nodes)
    b = sum(here.macs.get(node, 0) for node in nodes) / WINDOWS**2
    if not a or abs(a - b) < 0.005 * a:
        return "as many MACs as cropping"
    return f"{_times(a, b)} fewer MACs than cropping" if a > b else f"{_times(b, a)} more MACs than cropping"


def _strides(net: "DensifiedNet", cropped: int) -> list[str]:
    """How many times fewer MACs than cropping at several strides."""
    coarse = net.geometry.stride("coarse")
    strides = sorted({1, 2, 4, 8, 16, net.geometry.fine_stride, coarse, 2 * coarse})
    texts = []
    for stride in strides:
        macs = sum(run_cost(net.interpreter, WINDOWS, stride).macs.values()) / WINDOWS**2
        texts.append(f"{stride} px {_times(cropped, macs)}")
    cheap = f"; a multiple of {coarse} keeps all of the net's strides" if coarse > 1 else ""
    return [f"fewer MACs than cropping at a stride of {', '.join(texts)}{cheap}"]


def _si(number: float) -> str:
    """A number with three digits and its unit."""
    size, unit = next(((size, unit) for size, unit in UNITS if number >= size), UNITS[-1])
    return f"{number / size:.3g}{unit}"


def _times(a: float, b: float) -> str:
    return f"{a / b:.3g}x" if a and b else "-"
