"""Feature layers as a graph of operations: what the maps of a backbone are computed by, as data. Imports no torch."""

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from overfeat.models.metadata import MAX_SIZE, MAX_STEP, entries, items, string, whole
from overfeat.models.receptive_field import SlidingWindow, input_span

# Names of ATen operators. A pointwise one may have a weight (prelu); a join has several maps, or one and a number.
# "flip" reverses the order of the channels.
SLIDING = ("conv2d", "max_pool2d", "avg_pool2d")
POINTWISE = (
    "relu", "hardtanh", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "silu", "gelu", "mish", "softplus",
    "sigmoid", "tanh", "hardswish", "hardsigmoid",
)  # fmt: skip
JOINS = ("add", "sub", "mul", "div", "maximum", "minimum", "cat")
MAX_OPS = 10_000  # that a file may ask for
Pair = tuple[int, int]  # (along rows, along columns)
MapShape = tuple[int, int, int]  # (channels, height, width)


@dataclass(frozen=True)
class Op:
    """One operation on maps.

    Attributes:
        name: Of the ATen operator, among SLIDING, POINTWISE and JOINS, or flip.
        inputs: The maps that it sees: 0 is the image, n the output of the graph's n-th operation, from 1.
        weights: Numbers of the graph's weights that follow the maps in the operator's arguments.
        args: The arguments after those.
    """

    name: str
    inputs: tuple[int, ...]
    weights: tuple[int, ...] = ()
    args: tuple = ()


@dataclass(frozen=True)
class Field:
    """The receptive field of the cells of a map along an axis, in pixels of the image."""

    stride: int = 1  # from one cell to the next
    before: int = 0  # pixels of the first cell's field before the image
    after: int = 1  # its other pixels

    def slide(self, kernel: int, stride: int, pad: int, dilation: int) -> "Field":
        """That of the outputs of an operation that slides."""
        after = self.after + ((kernel - 1) * dilation - pad) * self.stride
        return Field(self.stride * stride, self.before + pad * self.stride, after)


@dataclass(frozen=True)
class FeatureGraph:
    """The layers of a network from the image to one of its maps.

    Attributes:
        in_channels: Of the image.
        ops: In order; the last gives the maps.
        weights: Shape of each weight.
    """

    in_channels: int
    ops: tuple[Op, ...]
    weights: tuple[tuple[int, ...], ...]

    @cached_property
    def step(self) -> SlidingWindow:
        """The whole graph as one sliding window: its stride, and the pixels that a cell can depend on.

        ValueError where no square window gives the maps, windows that meet do not lie in the same grid, or cells are
        more than MAX_SIZE pixels apart.
        """
        fields = [(Field(), Field())]
        for op in self.ops:
            inputs = [fields[i] for i in op.inputs]
            if op.name in SLIDING:
                pairs = zip(*self.sliding(op)[:4], strict=True)
                rows, columns = (f.slide(*numbers) for f, numbers in zip(inputs[0], pairs, strict=True))
            else:
                rows, columns = (_joined(of_axis) for of_axis in zip(*inputs, strict=True))
            if max(rows.stride, columns.stride) > MAX_SIZE:
                raise ValueError(f"cells of a map are more than {MAX_SIZE:,} pixels apart")
            fields.append((rows, columns))
        field = _joined(fields[-1])
        return SlidingWindow(field.before + field.after, field.stride, field.before)

    def span(self, length: int, start: int, stop: int) -> tuple[Pair, Pair]:
        """The pixels of an axis of `length` that the cells start:stop depend on, from a whole stride on.

        Returns:
            (start, stop) of the pixels, and of these cells in the maps of those pixels alone, which equal the cells of
            the whole axis: padding adds zeros only where the whole axis has them.
        """
        (first, last), _ = input_span([self.step], length, start, stop)
        skipped = first // self.step.stride
        return (skipped * self.step.stride, last), (start - skipped, stop - skipped)

    def sliding(self, op: Op) -> tuple[Pair, Pair, Pair, Pair, bool]:
        """Kernel, stride, padding and dilation of an operation that slides, and whether it rounds its size up."""
        if op.name == "conv2d":
            kernel = self.weights[op.weights[0]][2:]
            return (kernel[0], kernel[1]), *op.args[:3], False
        if op.name == "max_pool2d":
            return op.args
        kernel, stride, pad, ceil = op.args[:4]
        return kernel, stride, pad, (1, 1), ceil

    def shapes(self, height: int, width: int) -> list[MapShape]:
        """Shapes of the image and of every operation's output, for an image of height x width."""
        shapes: list[MapShape] = [(self.in_channels, height, width)]
        for op in self.ops:
            sides, widths = shapes[op.inputs[0]][1:], [shapes[i][0] for i in op.inputs]
            channels = sum(widths) if op.name == "cat" else max(widths)
            if op.name == "conv2d":
                channels = self.weights[op.weights[0]][0]
            if op.name in SLIDING:
                *pairs, ceil = self.sliding(op)
                height, width = (_output_size(numbers, ceil) for numbers in zip(sides, *pairs, strict=True))
                sides = (height, width)
            shapes.append((channels, sides[0], sides[1]))
        return shapes

    @cached_property
    def channels(self) -> int:
        """Number of channels of the maps."""
        return self.shapes(0, 0)[-1][0]

    @cached_property
    def last_uses(self) -> list[list[int]]:
        """For every operation the maps that none after it sees."""
        last = {i: number for number, op in enumerate(self.ops) for i in op.inputs}
        uses: list[list[int]] = [[] for _ in self.ops]
        for i, number in last.items():
            uses[number].append(i)
        return uses

    def macs(self, height: int, width: int) -> list[int]:
        """Multiply-accumulates of every convolution for an image of height x width."""
        shapes = self.shapes(height, width)[1:]
        pairs = zip(self.ops, shapes, strict=True)
        return [math.prod(s) * math.prod(self.weights[o.weights[0]][1:]) for o, s in pairs if o.name == "conv2d"]

    def peak_numbers(self, height: int, width: int) -> int:
        """How many numbers all maps that are in memory together hold at most."""
        sizes = [math.prod(shape) for shape in self.shapes(height, width)]
        held = peak = sizes[0]
        for number, uses in enumerate(self.last_uses):
            held += sizes[number + 1]
            peak = max(peak, held)
            held -= sum(sizes[i] for i in uses)
        return peak

    def then(self, name: str, *args: float) -> "FeatureGraph":
        """The graph with one more operation, on its maps and numbers."""
        return replace(self, ops=(*self.ops, Op(name, (len(self.ops),), (), args)))

    @staticmethod
    def from_dict(data: object) -> "FeatureGraph":
        """What `dataclasses.asdict` made, by way of JSON. Raises ValueError for other data."""
        data = entries(data, "a backbone", ("in_channels", "ops", "weights"))
        weights = tuple(
            tuple(whole(number, "a weight's size") for number in items(shape, "a weight's shape", 8))
            for shape in items(data["weights"], "weights", MAX_OPS)
        )
        ops = tuple(_read_op(op, number, weights) for number, op in enumerate(items(data["ops"], "ops", MAX_OPS)))
        if not ops:
            raise ValueError("a backbone without operations")
        return FeatureGraph(whole(data["in_channels"], "in_channels"), ops, weights)


def _joined(fields: Sequence[Field]) -> Field:
    """The field that covers those of maps of equal size whose cells belong together."""
    first = fields[0]
    for field in fields:
        if (field.stride, field.after - field.before) != (first.stride, first.after - first.before):
            raise ValueError("maps that meet, or the two axes of one, differ in stride or size")
    return Field(first.stride, max(f.before for f in fields), max(f.after for f in fields))


def _output_size(numbers: Sequence[int], ceil: bool) -> int:
    """The output size of a size, kernel, stride, padding and dilation, as torch has it."""
    size, kernel, stride, pad, dilation = numbers
    room = size + 2 * pad - dilation * (kernel - 1) - 1
    if not ceil:
        return max(0, room // stride + 1)
    count = -(-room // stride) + 1
    return max(0, count - ((count - 1) * stride >= size + pad))  # no window lies beyond the image altogether


def _read_op(value: object, number: int, weights: Sequence[tuple[int, ...]]) -> Op:
    """An operation from a file."""
    data = entries(value, "an operation", ("name", "inputs", "weights", "args"))
    inputs, own = (items(data[key], key, MAX_OPS) for key in ("inputs", "weights"))
    args = tuple(tuple(arg) if isinstance(arg, list) else arg for arg in items(data["args"], "args", 8))
    op = Op(string(data["name"], "name"), tuple(inputs), tuple(own), args)
    _check(op, number, weights)
    return op


def _pair(value: object, minimum: int = 1) -> bool:
    return (
        isinstance(value, tuple) and len(value) == 2 and all(type(n) is int and minimum <= n <= MAX_STEP for n in value)
    )


def _pool(args: tuple, flags: int) -> bool:
    return len(args) == flags and all(map(_pair, args[:2])) and _pair(args[2], 0)


_ARGUMENTS: dict[str, Callable[[tuple], bool]] = {
    "conv2d": lambda args: (
        len(args) == 4 and _pair(args[0]) and _pair(args[1], 0) and _pair(args[2])
        and type(args[3]) is int and args[3] > 0
    ),
    "max_pool2d": lambda args: _pool(args, 5) and _pair(args[3]) and type(args[4]) is bool,
    "avg_pool2d": lambda args: _pool(args, 6) and type(args[3]) is bool,
    "flip": lambda args: args == ((1,),),
    "cat": lambda args: args == (1,),
}  # fmt: skip


def _convolves(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether they are those of a convolution's weight, and its bias if it has one."""
    return bool(shapes) and len(shapes[0]) == 4 and shapes[1:] in ([], [(shapes[0][0],)])


def _check(op: Op, number: int, weights: Sequence[tuple[int, ...]]) -> None:
    """Raises ValueError for an operation that files must not hold."""
    known = op.name in (*SLIDING, *POINTWISE, *JOINS, "flip")
    numbers = _ARGUMENTS.get(op.name, lambda args: all(isinstance(value, int | float) for value in args))
    earlier = bool(op.inputs) and all(type(i) is int and 0 <= i <= number for i in op.inputs)
    own = all(type(i) is int and 0 <= i < len(weights) for i in op.weights)
    shaped = op.name != "conv2d" or (own and _convolves([weights[i] for i in op.weights]))
    if not (known and earlier and own and shaped and numbers(op.args)):
        shown = f"{reprlib.repr(op.name)} with {reprlib.repr(op.args)}"
        raise ValueError(f"operation {number + 1} of a backbone is none that this version has: {shown}")
