"""Random cases, each repeated by its target and seed.

A target is a file fuzz_NAME.py beside this one; its docstring's first line says what is tried and what holds. It has

    CASES = 300  # that `make test` runs: seeds 0, 1, ...
    SECONDS = 180  # of a case in a long run, at most; may be left out

    def check(rng: random.Random, folder: Path) -> str:
        ...  # one case: random numbers from rng alone, files in the empty folder

`check` returns the case's outcome in a word or two, which is counted. Any exception is a failure; where InputError is
right, `check` catches it and returns `refused(error, path)`.
"""

import importlib
import random
import re
import tempfile
import traceback
import warnings
from pathlib import Path
from types import ModuleType

from overfeat.errors import printable

HERE = Path(__file__).resolve().parent
MAX_MESSAGE = 1000  # characters of an error message or warning
# Control characters, separators of lines, and changes of the direction of writing.
STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# Numbers that break readers where they stand in a file.
NUMBERS = (0, 1, 2, 3, 4, 8, 16, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def names() -> list[str]:
    """All targets."""
    return sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py"))


def target(name: str) -> ModuleType:
    """The module of a target."""
    return importlib.import_module(f"fuzz_{name}")


def run_case(name: str, seed: int) -> str:
    """The outcome of one case, in a new folder; raises what `check` raises. Warnings must be readable, too."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = target(name).check(random.Random(f"{name} {seed}"), Path(folder))
    for warning in caught:
        if Path(warning.filename).is_relative_to(HERE.parents[1] / "overfeat"):
            check_message(str(warning.message))
    return outcome


def check_message(message: str) -> None:
    """A message is one line, not too long, and cannot steer a terminal."""
    assert message, "an empty message"
    assert len(message) <= MAX_MESSAGE, f"a message of {len(message)} characters: {message[:200]!r}..."
    steering = STEERING.findall(message)
    assert not steering, f"a message with {steering}: {message!r}"


def refused(error: Exception, name: object = "") -> str:
    """The outcome "refused", once the message of an InputError is readable and contains the name, if any."""
    message = str(error)
    check_message(message)
    assert printable(name) in message, f"{name} is not named: {message!r}"
    return "refused"


def signature(error: BaseException) -> str:
    """What tells failures apart: the kind of the error and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{type(error).__name__} at {Path(own[-1].filename).name}:{own[-1].lineno}"


def mutate(content: bytes, rng: random.Random, most: int = 8) -> bytes:
    """The content after one random change, or up to `most`: bits, bytes, numbers, cuts, copies, parts left out."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, most))):
        rng.choice(MUTATIONS)(changed, rng)
    return bytes(changed)


def _position(content: bytearray, rng: random.Random) -> int:
    """Half of the time in the first 100 bytes, where headers are."""
    return rng.randrange(max(1, min(len(content), 100 if rng.random() < 0.5 else len(content))))


def _flip(content: bytearray, rng: random.Random) -> None:
    if content:
        content[_position(content, rng)] ^= 1 << rng.randrange(8)


def _overwrite(content: bytearray, rng: random.Random) -> None:
    at, size = _position(content, rng), rng.choice((1, 2, 4, 16))
    content[at : at + size] = rng.randbytes(size)


def _number(content: bytearray, rng: random.Random) -> None:
    at, size, order = _position(content, rng), rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    content[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, order)


def _cut(content: bytearray, rng: random.Random) -> None:
    del content[_position(content, rng) :]


def _leave_out(content: bytearray, rng: random.Random) -> None:
    at = _position(content, rng)
    del content[at : at + rng.choice((1, 2, 4, 100, 1000))]


def _insert(content: bytearray, rng: random.Random) -> None:
    at = _position(content, rng)
    content[at:at] = rng.randbytes(rng.choice((1, 2, 4, 100)))


def _copy(content: bytearray, rng: random.Random) -> None:
    start, at = _position(content, rng), _position(content, rng)
    content[at:at] = content[start : start + rng.choice((1, 4, 16, 100, 1000))]


MUTATIONS = (_flip, _flip, _overwrite, _number, _number, _cut, _leave_out, _insert, _copy)
