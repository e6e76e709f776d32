"""`DensifiedNet`: a converted module as a net that dense evaluation runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from overfeat.densify.cost import Cost, measure
from overfeat.densify.export import Program, submodule
from overfeat.densify.interpreter import Interpreter
from overfeat.densify.values import WindowGrid, windows_of
from overfeat.errors import ArgumentError, InputError
from overfeat.models.geometry import Geometry, Size, Stride
from overfeat.models.net import InputSpan, Net, Shape


@dataclass(frozen=True)
class Preparation:
    """From images in 0..255 to what the module takes."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    reverse: bool  # the order of the channels


@dataclass(frozen=True)
class Outputs:
    """Which of a module's outputs is what."""

    scores: int = 0
    boxes: int | None = None
    logits: bool = True


@dataclass(frozen=True)
class TileOutputs:
    """The module's outputs for the windows of a tile, [windows, ...] each."""

    shape: Shape
    values: list[Tensor]


class DensifiedNet(Net):
    """A converted module: the module's own outputs at every window of an image. Evaluation only.

    Made by `densify`. Its weights are the module's.
    """

    def __init__(
        self, program: Program, geometry: Geometry, preparation: Preparation, outputs: Outputs, *,
        class_names: Sequence[str], borders: str, flip: bool, box_coder: str = "xyxy",
    ):  # fmt: skip
        super().__init__()
        self.program, self.geometry, self.preparation, self.outputs = program, geometry, preparation, outputs
        self.weights = program.weights
        self.class_names, self.flip, self.in_channels = list(class_names), flip, program.channels
        self.default_stride = "coarse"
        if not outputs.logits:
            self.activation = "none"
        elif len(self.class_names) == 1:
            self.activation = "sigmoid"
        self.borders, self.box_coder = borders, box_coder
        self.interpreter = Interpreter(program, borders)
        self._costs: dict[Any, Cost] = {}
        self._reach: tuple[tuple[int, int], ...] | None = None
        self.regressor: Any = None
        self.eval()

    def with_borders(self, borders: str) -> "DensifiedNet":
        """The same net, with the same weights, and another treatment of the windows' borders."""
        check_borders(borders)
        net = DensifiedNet(
            self.program, self.geometry, self.preparation, self.outputs, class_names=self.class_names,
            borders=borders, flip=self.flip, box_coder=self.box_coder,
        )  # fmt: skip
        net.background, net.scale_factors = self.background, self.scale_factors
        net.default_stride = self.default_stride
        return net

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((t.device for t in (*self.weights.parameters(), *self.weights.buffers())), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        tensors = (*self.weights.parameters(), *self.weights.buffers())
        return next((t.dtype for t in tensors if t.is_floating_point()), self.program.dtype)

    # Images

    def normalise(self, images: Tensor) -> Tensor:
        """(x - mean) / std in the module's order of channels and the dtype of the weights, channels last."""
        dtype, preparation = self.dtype, self.preparation
        # In at least float32: bfloat16 would round the pixels before the mean is subtracted.
        images = images.to(torch.promote_types(dtype, torch.float32), memory_format=torch.channels_last)
        images = images.flip(1) if preparation.reverse else images
        mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (preparation.mean, preparation.std))
        return ((images - mean) / std).to(dtype)

    @torch.no_grad()
    def forward(self, images: Tensor, stride: Stride = "coarse") -> Tensor | tuple[Tensor, ...]:
        """The module's outputs for every window.

        Args:
            images: Float or uint8 [N, C, H, W] in 0..255, at least the window; else ValueError.
            stride: "coarse", "fine" or pixels.

        Returns:
            [N, numbers, h, w], for scores [N, classes, h, w]; a tuple where the module gives several outputs. Output
            (i, j) sees the window that starts at pixel geometry.stride(stride) * (i, j).
        """
        grid = self._whole_grid(images, stride)
        results = self._run(self.interpreter, images, grid, (0, 0), self.program.nodes, self.program.outputs)
        maps = tuple(self._as_maps(result, grid) for result in results)
        return maps[0] if len(maps) == 1 else maps

    @torch.no_grad()
    def layer_output(self, images: Tensor, name: str, stride: Stride = "coarse") -> Tensor:
        """The output of a node or a submodule for every window: [N, numbers of a window, h, w].

        Args:
            images: As in `forward`.
            name: Of a submodule, such as "features.3", or of a node of the graph; InputError for any other.
        """
        node, grid = self.node(name), self._whole_grid(images, stride)
        nodes = self.program.nodes[: self.program.nodes.index(node) + 1]
        interpreter = Interpreter(self.program, self.borders, fuse=False)
        (result,) = self._run(interpreter, images, grid, (0, 0), nodes, [node])
        return self._as_maps(result, grid)

    def node(self, name: str) -> Node:
        """The last node of the submodule of this name, or the node of this name."""
        nodes = [node for node in self.program.nodes if isinstance(node.meta["val"], Tensor)]
        for node in reversed(nodes):
            path = submodule(node)
            if name and (path == name or path.startswith(name + ".") or node.name == name):
                return node
        names = list(dict.fromkeys(submodule(node) for node in nodes if submodule(node)))
        raise InputError(
            f"the {self.geometry.name} net has no submodule or node {name!r}; its submodules: {', '.join(names)}"
        )

    def _whole_grid(self, images: Tensor, stride: Stride) -> WindowGrid:
        if images.dim() != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"images must be [N, {self.in_channels}, H, W]; these have shape {tuple(images.shape)}")
        (height, width), window, pixels = images.shape[2:], self.geometry.window, self.geometry.stride(stride)
        if height < window[0] or width < window[1]:
            raise ValueError(
                f"an image of {height}x{width} is smaller than the {self.geometry.name} net's window of "
                f"{window[0]}x{window[1]}; enlarge it first"
            )
        return WindowGrid(len(images), ((height - window[0]) // pixels + 1, (width - window[1]) // pixels + 1), pixels)

    def _run(
        self, interpreter: Interpreter, images: Tensor, grid: WindowGrid, offsets: Size, nodes: Sequence[Node],
        outputs: Sequence[Node],
    ) -> list[Tensor]:  # fmt: skip
        """Nodes as windows one by one, [windows, ...] each."""
        images = self.normalise(images)
        if self.borders != "neighbours":
            used = [
                (count - 1) * grid.stride + side for count, side in zip(grid.counts, self.geometry.window, strict=True)
            ]
            images = images[:, :, : used[0], : used[1]]
        values = interpreter.start(images, grid, offsets)
        interpreter.run(values, nodes, grid.num_windows, images.device, keep=outputs)
        return [windows_of(values[node]) for node in outputs]  # type: ignore[misc]

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
        before, after = self.reach[axis]
        first = max(0, start - -(-before // pixels) * pixels)
        return InputSpan(first, min(length, stop + after), count, offset=start - first)

    @property
    def reach(self) -> tuple[tuple[int, int], ...]:
        """For rows and columns: the pixels before and after a window that its outputs depend on with neighbours."""
        if self._reach is None:
            interpreter = Interpreter(self.program, "neighbours")
            cost = measure(interpreter, self.program.nodes, WindowGrid(1, (1, 1), 1), self.geometry.window)
            axes = list(cost.axes.values())
            self._reach = tuple(
                (max((a[i].before for a in axes), default=0), max((a[i].after for a in axes), default=0))
                for i in range(2)
            )
        return self._reach

    @torch.no_grad()
    def tile_features(self, crop: Tensor, rows: InputSpan, columns: InputSpan, stride: Stride) -> TileOutputs:
        """See `Net.tile_features`: the outputs of its windows."""
        grid = WindowGrid(len(crop), (rows.outputs, columns.outputs), self.geometry.stride(stride))
        offsets = (rows.offset, columns.offset)
        values = self._run(self.interpreter, crop, grid, offsets, self.program.nodes, self.program.outputs)
        return TileOutputs((len(crop), rows.outputs, columns.outputs), values)

    def forward_head_flat(
        self, features: Sequence[TileOutputs], stride: Stride, context: Sequence[Any] = ()
    ) -> tuple[Tensor, list[Shape]]:
        """See `Net.forward_head_flat`."""
        flat = [f.values[self.outputs.scores].flatten(1) for f in features]
        return flat[0] if len(flat) == 1 else torch.cat(flat), [f.shape for f in features]

    # Costs

    def tile_cost(self, images: int, rows: InputSpan, columns: InputSpan, stride: Stride) -> Cost:
        """The cost of a tile's features."""
        size = (rows.stop - rows.start, columns.stop - columns.start)
        grid = WindowGrid(images, (rows.outputs, columns.outputs), self.geometry.stride(stride))
        key = (grid, size, rows.offset, columns.offset, self.dtype)
        if key not in self._costs:
            self._costs[key] = measure(
                self.interpreter, self.program.nodes, grid, size, (rows.offset, columns.offset), prepare=self.normalise
            )
        return self._costs[key]

    def tile_bytes(self, images: int, rows: InputSpan, columns: InputSpan, stride: Stride) -> tuple[int, int]:
        """See `Net.tile_bytes`."""
        numbers = sum(int(node.meta["val"][0].numel()) for node in self.program.outputs)
        peak = self.tile_cost(1, rows, columns, stride).peak * images
        return peak, 4 * images * rows.outputs * columns.outputs * 3 * numbers

    def region_macs(self, size: Size, stride: Stride) -> tuple[dict[str, int], int]:
        """See `Net.region_macs`."""
        from overfeat.densify.export import label

        pixels = self.geometry.stride(stride)
        counts = [(side - window) // pixels + 1 for side, window in zip(size, self.geometry.window, strict=True)]
        spans = [self.input_span(i, size[i], slice(0, counts[i]), stride) for i in range(2)]
        macs: dict[str, int] = {}
        for node, count in self.tile_cost(1, spans[0], spans[1], stride).macs.items():
            if count:
                macs[label(node)] = macs.get(label(node), 0) + count
        return macs, counts[0] * counts[1]


def check_borders(borders: str) -> None:
    """ArgumentError for a treatment of borders that there is not."""
    if borders not in ("exact", "neighbours", "refuse"):
        raise ArgumentError("borders", f"must be 'exact', 'neighbours' or 'refuse', not {borders!r}")
