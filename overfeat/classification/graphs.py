"""A whole classification as one CUDA graph for each shape of images: small batches are limited by launches."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from overfeat.classification.predict import mean_over_nets, scale_scores
from overfeat.data.arrays import ValueRange
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.grid import grids
from overfeat.dense.inputs import Images
from overfeat.errors import InputError
from overfeat.models.geometry import Stride
from overfeat.models.net import Net, as_batch
from overfeat.models.overfeat import OverFeat
from overfeat.models.wrappers import Nets, as_nets

WARM_UPS = 3  # runs before a capture: they compile kernels, pack weights, make tables and choose algorithms


@dataclass(frozen=True)
class _Graph:
    """A captured run of one net on images of one shape: `replay` turns what `images` holds into `scores`."""

    images: Tensor
    scores: Tensor
    replay: Callable[[], None]


class CapturedClassifier:
    """`classify` with fixed nets and options: `captured(images)`; see `capture`.

    Attributes:
        shapes: The shapes [N, C, H, W] that are replayed; empty where the nets are not on a GPU.
    """

    def __init__(self, nets: list[Net], config: DenseConfig):
        self.shapes: list[tuple[int, ...]] = []
        self._nets, self._config = nets, config
        self._graphs: dict[tuple[int, tuple[int, ...], torch.dtype], _Graph] = {}
        self._lock = threading.Lock()

    def __call__(self, images: Images, *, value_range: ValueRange | None = None) -> Tensor:
        """The scores of `classify`, float32 [N, classes], for the same kinds of images."""
        with self._lock:  # the graphs' inputs and outputs are shared
            return mean_over_nets(self._nets, images, self._score, value_range)

    def _score(self, net: Net, batch: Tensor) -> Tensor:
        graph = self._graphs.get((id(net), tuple(batch.shape), batch.dtype))
        if graph is None:
            return self._eager(net, batch.to(net.device))
        graph.images.copy_(batch)
        graph.replay()
        return graph.scores.clone()

    @torch.no_grad()
    def _eager(self, net: Net, batch: Tensor) -> Tensor:
        return scale_scores(net, batch, self._config).mean(dim=0)

    def _add(self, shape: tuple[int, ...], dtype: torch.dtype, pool: Any) -> None:
        """Capture the graphs of all nets on a GPU for one shape."""
        for net in filter(_on_gpu, self._nets):
            images = torch.zeros(shape, dtype=dtype, device=net.device)
            scores, replay = _record(partial(self._eager, net, images), net.device, pool)
            self._graphs[id(net), shape, dtype] = _Graph(images, scores, replay)
            if shape not in self.shapes:
                self.shapes.append(shape)


def capture(
    nets: Nets, shapes: Sequence[Sequence[int]], *, dtype: torch.dtype = torch.uint8, scales: Scales = None,
    flip: bool | None = None, stride: Stride | None = None, memory_limit: int = MEMORY_LIMIT,
) -> CapturedClassifier:  # fmt: skip
    """A classifier that replays CUDA graphs for batches of these shapes, and does as `classify` for all others.

    A graph holds every kernel of the evaluation, from resizing to the scores, and is one launch for the host. The
    scores are those of `classify` for images on the net's device. On a CPU nothing is captured: `classify` runs.

    The nets' weights and the backend in force are those of the capture: capture again after changing them. Calls from
    several threads wait for each other; they must be on one CUDA stream. The graphs share the memory of the largest
    evaluation, which is free again when the classifier is deleted.

    Args:
        nets: As for `classify`; built-in nets, on a backbone too, without context and margin (`reach`).
        shapes: [N, C, H, W] or [C, H, W] each. A list of images is a batch for each of its sizes.
        dtype: Of the images, uint8 or floating point.
        scales, flip, stride, memory_limit: See `DenseConfig`.

    Raises:
        ValueError: For shapes and dtypes that are not those of images.
        InputError: For nets that cannot be captured, sizes below the window, or too little memory.
    """
    nets = as_nets(nets)
    config = DenseConfig(scales, flip, stride, memory_limit)
    for net in nets:
        _check_capturable(net)
        for shape in shapes:
            batch = as_batch(torch.empty(tuple(shape), dtype=dtype, device="meta"), net.in_channels)
            grids(net, (batch.shape[2], batch.shape[3]), config)
    captured = CapturedClassifier(nets, config)
    pool = torch.cuda.graph_pool_handle() if any(map(_on_gpu, nets)) else None
    for shape in shapes:
        captured._add((1,) * (4 - len(shape)) + tuple(shape), dtype, pool)
    return captured


def _on_gpu(net: Net) -> bool:
    return net.device.type == "cuda"


def _check_capturable(net: Net) -> None:
    """Raises InputError for a net whose evaluation copies from the host, which a graph cannot hold."""
    reasons = {
        "it is a converted module": not isinstance(net, OverFeat),
        "it has context": net.context is not None,
        "it has a margin (reach)": net.margin != (0, 0),
    }
    for reason, applies in reasons.items():
        if applies:
            raise InputError(f"the {net.geometry.name} net cannot be captured: {reason}; use classify")


def _record(run: Callable[[], Tensor], device: torch.device, pool: Any) -> tuple[Tensor, Callable[[], None]]:
    """Capture `run`: its result, which every replay overwrites, and the replay."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            result = run()
    return result, graph.replay
