"""`DensifiedNet`: a converted module as a net that dense evaluation runs."""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from torch.fx import Node

from overfeat import ops
from overfeat.densify.boxes import ConvertedRegressor
from overfeat.densify.cost import Cost, Meter, measure
from overfeat.densify.export import Program, label, submodule
from overfeat.densify.fully_connected import kernel_of
from overfeat.densify.head import HeadInput, find_head, head_input
from overfeat.densify.interpreter import Interpreter
from overfeat.densify.layer import ConvertedLayer
from overfeat.densify.outputs import Outputs
from overfeat.densify.table import cost_table
from overfeat.densify.values import Axis, WindowGrid, windows_of
from overfeat.errors import InputError, check_choice, in_one_line
from overfeat.models.geometry import Geometry, Size, Stride
from overfeat.models.net import InputSpan, Net, Shape, as_batch
from overfeat.ops.backends import eager
from overfeat.ops.layout import concat, evaluation_format
from overfeat.regions import region

Activation = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True)
class Preparation:
    """From images in 0..255 to what the module takes."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    reverse: bool  # the order of the channels


@dataclass
class TileFeatures:
    """What the head needs of a tile: maps for it, or all outputs already.

    Attributes:
        shape: (n, rows, columns) of its windows.
        input: What the head's first layer runs on; None where the outputs are computed.
        outputs: The module's, [windows, ...] each; of maps once they have passed the head.
    """

    shape: Shape
    input: HeadInput | None = None
    outputs: Sequence[Tensor] = ()


class DensifiedNet(Net):
    """A converted module: the module's own outputs at every window of an image. Evaluation only.

    Made by `densify`. Its weights are the module's: the net follows changes that torch notices (`load_state_dict`, an
    optimizer), and moving the net moves the module. After a change through `.data`, convert the module again.
    """

    def __init__(
        self, program: Program, geometry: Geometry, preparation: Preparation, outputs: Outputs, *,
        class_names: Sequence[str], borders: str, activation: Activation, flip: bool, box_coder: str = "xyxy",
    ):  # fmt: skip
        super().__init__()
        self.program, self.geometry, self.preparation, self.outputs = program, geometry, preparation, outputs
        self.activation = activation
        self.weights = program.weights
        self.class_names, self.flip, self.in_channels = list(class_names), flip, program.channels
        self.default_stride = "coarse"
        self.borders, self.box_coder = borders, box_coder
        self.interpreter = Interpreter(program, borders)
        self._bytes: dict[Any, tuple[int, int]] = {}
        # A run with neighbours shares all maps, so it visits every view, and every pixel that windows depend on.
        neighbours = Interpreter(program, "neighbours")
        shared = measure(neighbours, WindowGrid(1, (1, 1), 1), program.window)
        self.halo = _halo(shared)
        if borders == "refuse":
            measure(self.interpreter, WindowGrid(1, (1, 1), 1), program.window)
        self.head = find_head(program, neighbours.constants, neighbours.context.indices)
        self.regressor: ConvertedRegressor | None = None
        if outputs.boxes is not None:
            self.regressor = ConvertedRegressor(outputs.boxes, outputs.num_boxes, box_coder)
        self.eval()

    def with_borders(self, borders: str) -> "DensifiedNet":
        """The same net, with the same weights, and another treatment of the windows' borders."""
        check_borders(borders)
        return self._rebuilt(self.program, borders)

    def __deepcopy__(self, memo: dict[int, Any]) -> "DensifiedNet":
        """The same net with copies of the weights."""
        return self._rebuilt(replace(self.program, weights=copy.deepcopy(self.program.weights, memo)), self.borders)

    def __getstate__(self) -> NoReturn:
        raise InputError("a converted net cannot be pickled; save the module's state_dict, and convert it again")

    def _rebuilt(self, program: Program, borders: str) -> "DensifiedNet":
        net = DensifiedNet(
            program, self.geometry, self.preparation, self.outputs, class_names=self.class_names,
            borders=borders, activation=self.activation, flip=self.flip, box_coder=self.box_coder,
        )  # fmt: skip
        net.background, net.scale_factors = self.background, self.scale_factors
        net.default_stride, net.reach, net.thresholds = self.default_stride, self.reach, self.thresholds
        return net

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensors = itertools.chain(self.weights.parameters(), self.weights.buffers())
        return next((t.device for t in tensors), torch.device("cpu"))

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """See `Net.pixel_std`."""
        return self.preparation.std

    @property
    def mean_color(self) -> tuple[float, ...]:
        """See `Net.mean_color`."""
        return self.preparation.mean[::-1] if self.preparation.reverse else self.preparation.mean

    @property
    def num_classes(self) -> int:
        """Number of the module's scores."""
        return self.outputs.num_classes

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.weights.dtype or self.program.dtype

    def __str__(self) -> str:
        return cost_table(self)

    def __repr__(self) -> str:
        (height, width), name = self.geometry.window, self.geometry.name
        return f"DensifiedNet({name}, window {height}x{width}, {self.num_classes} classes, borders={self.borders!r})"

    # Images

    def normalise(self, images: Tensor) -> Tensor:
        """(x - mean) / std in the module's order of channels and the dtype of the weights, channels last."""
        dtype, preparation = self.dtype, self.preparation
        # In at least float32: bfloat16 would round the pixels before the mean is subtracted.
        with region("normalise"):
            images = images.to(torch.promote_types(dtype, torch.float32), memory_format=evaluation_format())
            images = images.flip(1) if preparation.reverse else images
            if any(preparation.mean):
                images = images - images.new_tensor(preparation.mean).view(-1, 1, 1)
            if set(preparation.std) != {1.0}:
                images = images / images.new_tensor(preparation.std).view(-1, 1, 1)
            return images.to(dtype)

    @torch.no_grad()
    def forward(self, images: Tensor, stride: Stride = "coarse") -> Tensor | tuple[Tensor, ...]:
        """The module's outputs for every window.

        Args:
            images: Float or uint8 [N, C, H, W] or [C, H, W] in 0..255, at least the window; else ValueError. See
                `as_batch`.
            stride: "coarse", "fine" or pixels.

        Returns:
            [N, numbers, h, w], for scores [N, classes, h, w]; a tuple where the module gives several outputs. Output
            (i, j) sees the window that starts at pixel geometry.stride(stride) * (i, j).
        """
        images = as_batch(images, self.in_channels)
        grid = self._whole_grid(images, stride)
        rows, columns = self.image_spans((images.shape[2], images.shape[3]), stride)
        features = self.tile_features(images, rows, columns, stride)
        self.forward_head_flat([features], stride)
        maps = tuple(self._as_maps(output, grid) for output in features.outputs)
        return maps[0] if len(maps) == 1 else maps

    @torch.no_grad()
    def layer_output(self, images: Tensor, name: str, stride: Stride = "coarse") -> Tensor:
        """The output of a node or a submodule for every window: [N, numbers of a window, h, w].

        Args:
            images: As in `forward`.
            name: Of a submodule, such as "features.3", or of a node of the graph; InputError for any other.
        """
        images = as_batch(images, self.in_channels)
        layer = ConvertedLayer(self, name, stride)
        self._whole_grid(images, stride)
        return layer.run(images, *self.image_spans((images.shape[2], images.shape[3]), stride))

    def node(self, name: str) -> Node:
        """The last node of the submodule of this name, or the node of this name."""
        nodes = [node for node in self.program.nodes if isinstance(node.meta["val"], Tensor)]
        for node in reversed(nodes):
            path = submodule(node)
            if isinstance(name, str) and name and (path == name or path.startswith(name + ".") or node.name == name):
                return node
        names = list(dict.fromkeys(submodule(node) for node in nodes if submodule(node)))
        problem = f"the {self.geometry.name} net has no submodule or node {in_one_line(name)}"
        raise InputError(f"{problem}; its submodules: {', '.join(names)}")

    def _whole_grid(self, images: Tensor, stride: Stride) -> WindowGrid:
        (height, width), window, pixels = images.shape[2:], self.geometry.window, self.geometry.stride(stride)
        if height < window[0] or width < window[1]:
            raise ValueError(
                f"an image of {height}x{width} is smaller than the {self.geometry.name} net's window of "
                f"{window[0]}x{window[1]}; enlarge it first"
            )
        return WindowGrid(len(images), ((height - window[0]) // pixels + 1, (width - window[1]) // pixels + 1), pixels)

    def start(
        self, interpreter: Interpreter, images: Tensor, grid: WindowGrid, offsets: Size = (0, 0)
    ) -> dict[Node, Any]:
        """The values before the first node: prepared images, without the pixels that no window sees."""
        if self.borders != "neighbours":
            (rows, columns), (height, width) = grid.counts, self.geometry.window
            images = images[:, :, : (rows - 1) * grid.stride + height, : (columns - 1) * grid.stride + width]
        return interpreter.start(self.normalise(images), grid, offsets)

    def _as_maps(self, windows: Tensor, grid: WindowGrid) -> Tensor:
        return windows.reshape(grid.images, *grid.counts, -1).permute(0, 3, 1, 2)

    # Tiles

    def input_span(self, axis: int, length: int, outputs: slice, stride: Stride) -> InputSpan:
        """See `Net.input_span`: the windows' pixels, with neighbours as many more as their outputs depend on."""
        pixels, count = self.geometry.stride(stride), outputs.stop - outputs.start
        start = outputs.start * pixels
        stop = (outputs.stop - 1) * pixels + self.geometry.window[axis]
        if self.borders != "neighbours":
            return InputSpan(start, stop, count)
        before, after = self.halo[axis]
        first = max(0, start - -(-before // pixels) * pixels)
        return InputSpan(first, min(length, stop + after), count, offset=start - first)

    @torch.no_grad()
    def tile_features(self, crop: Tensor, rows: InputSpan, columns: InputSpan, stride: Stride) -> TileFeatures:
        """See `Net.tile_features`."""
        grid = WindowGrid(len(crop), (rows.outputs, columns.outputs), self.geometry.stride(stride))
        shape, head = (len(crop), rows.outputs, columns.outputs), self.head
        values = self.start(self.interpreter, crop, grid, (rows.offset, columns.offset))
        if head is None:
            return TileFeatures(shape, None, self._outputs(values, self.program.nodes, grid.num_windows, crop.device))
        self.interpreter.run(values, head.body, grid.num_windows, crop.device, keep=[head.source])
        maps = head_input(values[head.source], head.pool, borders=self.borders)
        if maps is None and head.pool is not None:  # the pooling on its own
            self.interpreter.run(values, [head.pool], grid.num_windows, crop.device)
            maps = head_input(values[head.pool], None, borders=self.borders)
        if maps is not None:
            return TileFeatures(shape, maps)
        rest = [*head.layout, head.linear, *head.tail]
        return TileFeatures(shape, None, self._outputs(values, rest, grid.num_windows, crop.device))

    @torch.no_grad()
    def forward_head_flat(
        self, features: Sequence[TileFeatures], stride: Stride, context: Sequence[Any] = ()
    ) -> tuple[Tensor, list[Shape]]:
        """See `Net.forward_head_flat`; the boxes of a module that gives them stay in the features."""
        by_form: dict[tuple[int, int], list[TileFeatures]] = {}
        for f in features:
            if not f.outputs and f.input is not None:
                by_form.setdefault((f.input.size, f.input.tap), []).append(f)
        for (size, tap), same in by_form.items():
            self._run_head(same, size, tap)
        flat = [f.outputs[self.outputs.scores].reshape(-1, self.outputs.num_classes) for f in features]
        return concat(flat), [f.shape for f in features]

    def _run_head(self, features: Sequence[TileFeatures], size: int, tap: int) -> None:
        """The outputs of tiles from their maps, in one pass over the weights."""
        head, interpreter = self.head, self.interpreter
        assert head is not None
        maps = [f.input.maps for f in features if f.input is not None]
        weight, bias = self._head_weights(maps[0].device)
        with region(label(head.linear)):
            first = ops.skip_classifier_flat(
                maps, weight, bias, size, relu=head.linear in interpreter.context.relu, tap=tap
            )
        values = self._outputs({head.linear: first}, head.tail, len(first), first.device)
        split = [value.split([math.prod(f.shape) for f in features]) for value in values]
        for number, f in enumerate(features):
            f.outputs = [chunks[number] for chunks in split]

    def _head_weights(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The kernel [O, C, h, w] and the bias of the head's first layer."""
        assert self.head is not None
        linear = self.head.linear
        inputs = [self.interpreter.constant(a, device) for a in linear.args[1:] if isinstance(a, Node)]
        weight, bias = inputs[0], inputs[1] if len(inputs) > 1 else None
        kernel = kernel_of(self.weights, linear, weight, self.head.index)
        assert kernel is not None
        return kernel, bias

    def _outputs(
        self, values: dict[Node, Any], nodes: Sequence[Node], num_windows: int, device: torch.device
    ) -> list[Tensor]:
        """Run nodes up to the module's outputs, each [windows, ...]."""
        outputs = self.program.outputs
        self.interpreter.run(values, nodes, num_windows, device, keep=outputs)
        return [windows_of(values[node]) for node in outputs]  # type: ignore[misc]

    # Costs

    def tile_bytes(self, images: int, rows: InputSpan, columns: InputSpan, stride: Stride) -> tuple[int, int]:
        """See `Net.tile_bytes`: from a run on the meta device."""
        pixels = self.geometry.stride(stride)
        height, width = (span.stop - span.start for span in (rows, columns))
        key = (height, width, rows.outputs, columns.outputs, rows.offset, columns.offset, pixels, self.dtype)
        if key not in self._bytes:
            crop = torch.empty(1, self.in_channels, height, width, device="meta")
            with Meter() as body:
                features = self.tile_features(crop, rows, columns, pixels)
            held = 0
            if features.input is not None:  # the op pools one axis after the other, and may gather windows
                assert self.head is not None
                maps, positions = features.input.maps, math.prod(features.shape)
                gathers = positions < eager.GATHER_MAX_POSITIONS
                window = self.head.index.elements.numel() if gathers else 4 * maps.shape[1]
                held = (3 * maps.numel() + positions * window) * maps.element_size()
            with Meter() as head:
                self.forward_head_flat([features], pixels)
            self._bytes[key] = body.peak, held + head.peak + sum(o.nbytes for o in features.outputs)
        of_body, of_head = self._bytes[key]
        return images * of_body, images * of_head

    def tile_bytes_bound(self, images: int, rows: InputSpan, columns: InputSpan, stride: Stride) -> tuple[int, int]:
        """See `Net.tile_bytes_bound`: windows share only where each on its own would need more."""
        if self.borders == "neighbours":  # between windows far apart there are cells too
            return self.tile_bytes(images, rows, columns, stride)
        height, width = self.geometry.window
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        count = images * max(rows.outputs * columns.outputs, -(-area // (height * width)))
        body, head = self.tile_bytes(count, InputSpan(0, height, 1), InputSpan(0, width, 1), stride)
        return body, max(body, head)

    def region_macs(self, size: Size, stride: Stride) -> tuple[dict[str, int], int]:
        """See `Net.region_macs`."""
        rows, columns = self.image_spans(size, stride)
        grid = WindowGrid(1, (rows.outputs, columns.outputs), self.geometry.stride(stride))
        seen = (rows.stop - rows.start, columns.stop - columns.start)
        macs: dict[str, int] = {}
        for node, count in measure(self.interpreter, grid, seen).macs.items():
            if count:
                name = label(node)
                macs[name] = macs.get(name, 0) + count
        return macs, grid.num_windows


def _halo(cost: Cost) -> tuple[tuple[int, int], tuple[int, int]]:
    """For rows and columns: the pixels before and after a window that its outputs depend on with neighbours."""
    axes = [*cost.axes.values(), (Axis(1), Axis(1))]
    down, across = ((max(a[i].before for a in axes), max(a[i].after for a in axes)) for i in range(2))
    return down, across


def check_borders(borders: str) -> None:
    """ArgumentError for a treatment of borders that there is not."""
    check_choice("borders", borders, ("exact", "neighbours", "refuse"))
