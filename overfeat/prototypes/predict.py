"""`Prototypes`: classes learned from a picture or a few, beside a net that was trained on other classes."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overfeat.data.arrays import ImageLike, ValueRange
from overfeat.dense.config import MEMORY_LIMIT, DenseConfig, Scales
from overfeat.dense.evaluate import max_scores, score_maps
from overfeat.dense.grid import grids
from overfeat.dense.inputs import one_image
from overfeat.dense.maps import ScoreMaps
from overfeat.errors import ArgumentError, InputError, check_count, check_flag, check_fraction, in_one_line, reason_of
from overfeat.models.checkpoint import check_path, consistent, read_safetensors, read_tensors, write_tensors
from overfeat.models.geometry import Size, Stride
from overfeat.models.metadata import MAX_NAME, entries, items, parse, real, whole
from overfeat.models.net import InputSpan, Net, Shape, eval_mode
from overfeat.models.overfeat import OverFeat
from overfeat.models.wrappers import as_net
from overfeat.prototypes.embedding import features_of
from overfeat.prototypes.views import views

CELLS = 3  # along a side of a window, over which maps are averaged
THRESHOLD = 0.4
MAX_CELLS = 100
MIN_NORM = 1e-12  # of a sum of directions
SAME_NET = 0.99  # a net is that of a file if the cosine of their features of one window is at least this


class Prototypes(Net):
    """A net whose classes are learned from a picture or a few: each the mean direction of its pictures' features.

    A class's score in a window is the cosine of its prototype and the window's features, 0..1: one 1x1 convolution more
    on the features, in place of the net's classifier. `score_maps`, `classify` and all of dense evaluation take it as
    any other net.

    Args:
        net: Of `load`, `densify`, `squeezenet`, ...; its weights are shared, and must not change afterwards.
        layer: Whose outputs are the features. Of a converted net a submodule's path or a node; None: what its
            classifier is given. Of a built-in net the number of a hidden fully connected layer; None: the last.
        cells: Maps of a converted net are averaged over cells x cells parts of a window: 1 forgets what lies where.
        threshold: The score, 0..1, from which `classify` accepts a class.

    Attributes:
        class_names: In the order in which they were added.
        threshold: See above; it may be changed.
    """

    def __init__(
        self, net: Net, *, layer: str | int | None = None, cells: int = CELLS, threshold: float = THRESHOLD
    ):  # fmt: skip
        super().__init__()
        check_count("cells", cells)
        if cells > MAX_CELLS:
            raise ArgumentError("cells", f"must be at most {MAX_CELLS}, not {cells}")
        if not (layer is None or isinstance(layer, (str, int))) or isinstance(layer, bool):
            raise ArgumentError("layer", f"must be a layer's name or number, not {in_one_line(layer)}")
        net = as_net(net)
        self.embedding = features_of(net, layer, cells)
        self.layer, self.cells, self.threshold = layer, int(cells), threshold
        self.class_names: list[str] = []
        self.counts: list[int] = []  # pictures of each class
        self.sums = torch.zeros(0, self.embedding.num_classes, device=net.device)  # of its pictures' directions
        self.geometry, self.in_channels, self.activation = net.geometry, net.in_channels, "none"
        self.default_stride, self.reach, self.scale_factors = net.default_stride, net.reach, net.scale_factors
        self.context = self.embedding.context
        self.eval()

    @property
    def threshold(self) -> float:
        """See the class. Setting it raises ArgumentError for what is not between 0 and 1."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        check_fraction("threshold", value)
        self._threshold = float(value)

    # Classes

    def add(
        self, name: str, image: ImageLike, *, box: Sequence[float] | None = None, flip: bool = True,
        value_range: ValueRange | None = None,
    ) -> None:  # fmt: skip
        """Learn a class from a picture; for a name that there is already, from one more.

        The picture's features are those of a few windows: shifted, a little smaller and larger, and mirrored.

        Args:
            image, value_range: See `dense.inputs`.
            box: (x1, y1, x2, y2) of the object in pixels; None: the middle of the image, as large as a window can be.
            flip: Whether its mirror image shows the class too; False for letters and digits.

        Raises:
            ArgumentError: For a name that is no text and a box that is not in the image.
            InputError: As `classify`.
        """
        check_name(name)
        direction = self.direction(image, box=box, flip=flip, value_range=value_range)
        if not direction.isfinite().all():
            raise InputError("the net gives NaN features; its weights are broken")
        if not direction.any():
            problem = f"{name}: the net's features of this picture are all zero"
            raise InputError(f"{problem}; choose another layer or picture")
        if name not in self.class_names:
            self.class_names.append(name)
            self.counts.append(0)
            self.sums = torch.cat([self.sums, self.sums.new_zeros(1, self.sums.shape[1])])
        label = self.class_names.index(name)
        self.sums[label] += direction
        self.counts[label] += 1

    def remove(self, name: str) -> None:
        """Forget a class; ArgumentError for one that there is not."""
        if not isinstance(name, str) or name not in self.class_names:
            names = ", ".join(self.class_names) or "none yet"
            raise ArgumentError("name", f"must be one of the classes ({names}), not {in_one_line(name)}")
        label = self.class_names.index(name)
        self.class_names = [other for other in self.class_names if other != name]  # results keep the earlier list
        del self.counts[label]
        self.sums = torch.cat([self.sums[:label], self.sums[label + 1 :]])

    def direction(
        self, image: ImageLike, *, box: Sequence[float] | None = None, flip: bool = True,
        value_range: ValueRange | None = None,
    ) -> Tensor:  # fmt: skip
        """What `add` learns of a picture: the mean direction of its windows' features, float32 [features], length 1."""
        check_flag("flip", flip)
        pixels = one_image(self, image, value_range)
        windows = views(pixels, box, self.geometry.window, self.mean_color, bool(flip))
        return F.normalize(F.normalize(self.window_features(windows), dim=1).mean(dim=0), dim=0)

    @torch.no_grad()
    def window_features(self, windows: Tensor) -> Tensor:
        """The features of windows [n, C, *window] in 0..255, float32 [n, features]."""
        with eval_mode(self.embedding):
            spans = self.embedding.image_spans(self.geometry.window, "coarse")
            features = self.embedding.tile_features(windows.to(self.device), *spans, "coarse")
            return self._features_flat([features], "coarse")[0].float()

    @property
    def prototypes(self) -> Tensor:
        """The direction of each class, float32 [classes, features]; InputError before the first."""
        if not self.class_names:
            raise InputError("there are no classes yet; add one with add(name, image)")
        return F.normalize(self.sums, dim=1)

    def classify(
        self, image: ImageLike, *, scales: Scales = None, flip: bool | None = None, stride: Stride | None = None,
        memory_limit: int = MEMORY_LIMIT, value_range: ValueRange | None = None,
    ) -> list[tuple[str, float]]:  # fmt: skip
        """The classes whose scores reach the threshold in an image, with these, the highest first.

        A class's score is that of its best window of all scales; `overfeat.classify` gives the scores of all classes.

        Args:
            image, value_range: See `dense.inputs`.
            scales, flip, stride, memory_limit: See `DenseConfig`.

        Raises:
            InputError: Before the first class, and as `overfeat.classify`.
        """
        pixels = one_image(self, image, value_range)
        own = grids(self, (pixels.shape[1], pixels.shape[2]), DenseConfig(scales, flip, stride, memory_limit))
        scores = max_scores(self, pixels[None], own, memory_limit).amax(dim=(0, 1)).tolist()
        accepted = [pair for pair in zip(self.class_names, scores, strict=True) if pair[1] >= self.threshold]
        return sorted(accepted, key=lambda pair: -pair[1])

    def score_maps(
        self, image: ImageLike, *, scales: Scales = None, flip: bool | None = None, stride: Stride | None = None,
        memory_limit: int = MEMORY_LIMIT, value_range: ValueRange | None = None,
    ) -> ScoreMaps:  # fmt: skip
        """The score of every class in every window of an image: `overfeat.score_maps` of this net."""
        return score_maps(
            self, image, scales=scales, flip=flip, stride=stride, memory_limit=memory_limit, value_range=value_range
        )

    # Files

    def save(self, path: str | os.PathLike) -> None:
        """Write the classes to a safetensors file, atomically; without the net, which `load` is given.

        Raises InputError where the file cannot be written, or is one that holds no prototypes.
        """
        check_path(path)
        if Path(path).is_file() and os.path.getsize(path) and not _holds_prototypes(path):
            raise InputError(f"{path}: exists and holds no prototypes; name another file")
        classes = [{"name": name, "count": n} for name, n in zip(self.class_names, self.counts, strict=True)]
        settings = {"layer": self.layer, "cells": self.cells, "threshold": self.threshold, "classes": classes}
        tensors = {"sums": self.sums, "probe": self._probe()}
        write_tensors(path, tensors, {"overfeat": "1", "prototypes": json.dumps(settings)}, torch.float32)

    @staticmethod
    def load(path: str | os.PathLike, *, net: Net) -> "Prototypes":
        """What `save` wrote, with the net that it was made with.

        Raises InputError for a file that is none of `save`, and for another net.
        """
        metadata, tensors = read_tensors(path, lambda name: True)
        if "prototypes" not in metadata:
            raise InputError(f"{path}: holds no prototypes; `overfeat teach` makes them")
        with consistent(path, "its prototypes"):
            settings = entries(parse(metadata["prototypes"]), "prototypes", ("layer", "cells", "threshold", "classes"))
            cells = whole(settings["cells"], "cells", maximum=MAX_CELLS)
            threshold, layer = real(settings["threshold"], "threshold", 0, 1), settings["layer"]
            classes = [entries(c, "a class", ("name", "count")) for c in items(settings["classes"], "classes")]
            names = [c["name"] for c in classes]
            for name in names:
                check_name(name)
            counts = [whole(c["count"], "count") for c in classes]
            sums, probe = tensors["sums"].float(), tensors["probe"].float()
            if len(set(names)) < len(names) or sums.dim() != 2 or len(sums) != len(names):
                raise ValueError("the classes are not those of the tensors")
            norms = sums.norm(dim=1)  # of sums of directions: at most their number
            if not ((norms > MIN_NORM) & (norms <= 1.01 * torch.tensor(counts))).all() or not probe.isfinite().all():
                raise ValueError("NaN, infinite, zero or too large values")
        prototypes = _empty(path, net, layer, cells)
        prototypes.threshold = threshold
        actual = prototypes._probe()
        if actual.shape != probe.shape or sums.shape[1] != len(actual) or _cosine(actual.cpu(), probe) < SAME_NET:
            raise InputError(f"{path}: made with another net, whose features are others; load it with that net")
        prototypes.class_names, prototypes.counts, prototypes.sums = names, counts, sums.to(prototypes.sums)
        return prototypes

    def _probe(self) -> Tensor:
        """The features of a fixed window, which tell one net from another."""
        rows, columns = self.geometry.window
        steps = torch.arange(rows)[:, None] * 13 + torch.arange(columns) * 7
        pattern = torch.stack([(steps + 29 * c) % 256 for c in range(self.in_channels)]).float()
        return self.window_features(pattern[None])[0]

    # As a net

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.embedding.dtype

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """See `Net.pixel_std`."""
        return self.embedding.pixel_std

    @property
    def mean_color(self) -> tuple[float, ...]:
        """See `Net.mean_color`."""
        return self.embedding.mean_color

    def input_span(self, axis: int, length: int, outputs: slice, stride: Stride) -> InputSpan:
        """See `Net.input_span`."""
        return self.embedding.input_span(axis, length, outputs, stride)

    def tile_features(self, crop: Tensor, rows: InputSpan, columns: InputSpan, stride: Stride) -> Any:
        """See `Net.tile_features`."""
        return self.embedding.tile_features(crop, rows, columns, stride)

    def forward_head_flat(
        self, features: Sequence[Any], stride: Stride, context: Sequence[Any] = ()
    ) -> tuple[Tensor, list[Shape]]:
        """See `Net.forward_head_flat`: cosines, 0 where they are negative."""
        prototypes = self.prototypes
        flat, shapes = self._features_flat(features, stride, context)
        cosines = F.linear(flat, prototypes.to(flat)).float() / flat.float().norm(dim=1, keepdim=True).clamp_min(1e-12)
        return cosines.clamp_(0, 1), shapes

    def tile_bytes(self, images: int, rows: InputSpan, columns: InputSpan, stride: Stride) -> tuple[int, int]:
        """See `Net.tile_bytes`."""
        body, head = self.embedding.tile_bytes(images, rows, columns, stride)
        numbers = self.embedding.num_classes + 2 * self.num_classes
        return body, head + 4 * images * rows.outputs * columns.outputs * numbers

    def region_macs(self, size: Size, stride: Stride) -> tuple[dict[str, int], int]:
        """See `Net.region_macs`."""
        macs, windows = self.embedding.region_macs(size, stride)
        return {**macs, "prototypes": windows * self.embedding.num_classes * self.num_classes}, windows

    def _apply(self, fn: Any, recurse: bool = True) -> "Prototypes":
        super()._apply(fn, recurse)
        self.sums = self.sums.to(self.device)
        return self

    def _features_flat(
        self, features: Sequence[Any], stride: Stride, context: Sequence[Any] = ()
    ) -> tuple[Tensor, list[Shape]]:
        flat, shapes = self.embedding.forward_head_flat(features, stride, context)
        return (flat.relu() if isinstance(self.embedding, OverFeat) else flat), shapes


def _holds_prototypes(path: str | os.PathLike) -> bool:
    try:
        return "prototypes" in read_safetensors(path, lambda name: False)[0]
    except InputError:
        return False


def _empty(path: str | os.PathLike, net: Net, layer: Any, cells: int) -> Prototypes:
    """Prototypes with the settings of a file. Raises InputError that names it for a layer that the net lacks."""
    try:
        return Prototypes(net, layer=layer, cells=cells)
    except InputError as error:
        if isinstance(error, ArgumentError) and error.argument == "net":
            raise
        raise InputError(f"{path}: made with another net, or damaged: {reason_of(error)}") from error


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def check_name(name: object) -> None:
    """Raises ArgumentError unless this can be the name of a class."""
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME:
        raise ArgumentError("name", f"must be a text of 1 to {MAX_NAME} characters, not {in_one_line(name)[:100]}")
