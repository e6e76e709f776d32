"""ILSVRC's lists of what is not to count."""

import re
from pathlib import Path

from overfeat.data.checks import FilePath, short, text_lines
from overfeat.files import InputError


def read_blacklist(path: FilePath) -> set[int]:
    """The numbers of ILSVRC's blacklisted validation images: one a line. InputError names a bad line."""
    lines = text_lines(Path(path), "give the development kit's list of blacklisted images")
    for number, line in enumerate(lines, 1):
        if not re.fullmatch("([0-9]{1,9})?", line):
            raise InputError(f"{path}, line {number}: the number of an image is needed, not {short.repr(line)}")
    return {int(line) for line in lines if line}


def read_pairs(path: FilePath) -> set[tuple[int, str]]:
    """ILSVRC detection's blacklist: (number of an image from 1, class), one a line. InputError names a bad line."""
    pairs = set()
    for number, line in enumerate(text_lines(Path(path), "give the development kit's list"), 1):
        image, _, name = line.partition(" ")
        if not line:
            continue
        if not re.fullmatch("[0-9]{1,9}", image) or not name.strip():
            raise InputError(
                f"{path}, line {number}: the number of an image and a class are needed, not {short.repr(line)}"
            )
        pairs.add((int(image), name.strip()))
    return pairs
