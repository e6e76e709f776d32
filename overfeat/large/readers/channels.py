"""Which channels of an image are red, green and blue, or grey."""

from collections.abc import Sequence

import numpy as np

from overfeat.errors import ArgumentError, is_whole, shorten


def check_channels(channels: object, count: int, name: str, names: Sequence[str] = ()) -> tuple[int, ...]:
    """One or three numbers of channels, from 0. Raises ArgumentError."""
    chosen = tuple(channels) if isinstance(channels, Sequence | np.ndarray) and not isinstance(channels, str) else ()
    if len(chosen) in (1, 3) and all(is_whole(number) and 0 <= number < count for number in chosen):
        return tuple(int(number) for number in chosen)
    raise ArgumentError("channels", f"must be one or three numbers from 0 to {count - 1}", _has(name, count, names))


def default_channels(count: int, name: str, names: Sequence[str] = ()) -> tuple[int, ...]:
    """The channels of an image that has one or three. Raises ArgumentError for other numbers."""
    if count in (1, 3):
        return tuple(range(count))
    requirement = "chooses one, or three as red, green and blue, such as (0, 1, 2)"
    raise ArgumentError("channels", requirement, _has(name, count, names))


def channel_note(numbers: Sequence[int], names: Sequence[str]) -> list[str]:
    """A note on three channels that were not chosen, unless their names are red, green and blue."""
    if len(numbers) != 3 or not names or [name[:1].lower() for name in names] == ["r", "g", "b"]:
        return []
    return [f"its channels {shorten(names)} are read as red, green and blue; `channels` chooses others"]


def first_note(axes: Sequence[tuple[str, int]]) -> list[str]:
    """A note on axes of an image beside rows, columns and channels: the first of each is read."""
    words = {"z": "depths", "t": "times", "i": "pages", "q": "pages"}
    listed = [f"{length} {words.get(axis.lower(), f'images along the axis {axis}')}" for axis, length in axes]
    return [f"of {' and '.join(listed)} the first is read"] if listed else []


def _has(name: str, count: int, names: Sequence[str]) -> str:
    return f"{name}: has {count} channels{f' ({shorten(names)})' if names else ''}; "
