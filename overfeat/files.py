"""What every part of overfeat that touches files shares: the error for bad input, and safe writing."""

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from overfeat.errors import WriteError

os.umask(_UMASK := os.umask(0o22))  # the only way to read it is to set it


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it to `path` when the block ends without an error.

    Readers see the old file or the whole new one, whatever interrupts the writer. The temporary
    name is always the same for one target, so what a killed run left is overwritten by the next.
    Raises WriteError.
    """
    path = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
    if os.path.exists(path) and not os.path.isfile(path):
        raise WriteError(f"{path}: cannot be written (it is no regular file); name a file to write to")
    part = path.with_name(f".part-{path.name}")
    try:
        yield part
        with open(part, "rb+") as written:
            os.fsync(written.fileno())
        part.chmod(0o666 & ~_UMASK)  # some writers make files that only their owner may read
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        _remove(part)
        reason = getattr(error, "strerror", None) or error
        raise WriteError(
            f"{path}: cannot be written ({reason}); check the folder, its permissions and the free space"
        ) from error
    except BaseException:
        _remove(part)
        raise


def check_result(path: Path, keys: Collection[str] = ("errors", "unreadable")) -> None:
    """Before the work for a file of results with these keys: raises WriteError unless it can be written and nothing
    else is there."""
    if path.is_file():
        try:
            earlier = json.loads(path.read_bytes())
        except ValueError:
            earlier = None
        if not (isinstance(earlier, dict) and set(keys) <= set(earlier)):
            raise WriteError(f"{path}: is there already, and holds no results; name another file")
    else:
        check_writable(path)


def check_writable(path: Path) -> None:
    """Raises WriteError unless a file can be written there; one that is there may be written over."""
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or (path.exists() and not path.is_file()):
        raise WriteError(f"{path}: cannot be written; name a file in a folder that is there and can be written to")


class Journal:
    """The results of single pieces of work, kept until the whole is done, so that a killed run goes on.

    A file of JSON, a line each: first what the results depend on, then [name, result]. What another run
    with the same settings left is taken over; after other settings it starts anew (`dropped`). A torn last
    line is lost.
    """

    def __init__(self, path: str | os.PathLike, settings: object):
        self.path, self.done = Path(path), {}
        head, whole = json.dumps(settings, sort_keys=True) + "\n", 0
        try:
            lines = self.path.read_text().splitlines(keepends=True) if self.path.is_file() else []
        except (OSError, UnicodeDecodeError):
            lines = []
        if lines[:1] == [head]:
            whole = len(head)
            for line in lines[1:]:
                try:
                    name, result = json.loads(line)
                except ValueError:
                    break
                if not line.endswith("\n"):
                    break
                self.done[name], whole = result, whole + len(line)
        try:
            self.dropped = bool(lines) and not whole
            self.file = open(self.path, "r+" if whole else "w")
            self.file.truncate(self.file.seek(whole))
            if not whole:
                self.file.write(head)
                self.file.flush()
        except OSError as error:
            raise WriteError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def add(self, name: str, result: object) -> None:
        """Keep a result. Raises WriteError."""
        try:
            self.file.write(json.dumps([name, result]) + "\n")
            self.file.flush()
        except OSError as error:
            raise WriteError(f"{self.path}: cannot be written ({error.strerror or error})") from error
        self.done[name] = result

    def finish(self) -> None:
        """The whole is done: the file goes."""
        self.file.close()
        _remove(self.path)


def ensure_dir(path: str | os.PathLike) -> Path:
    """The folder, made with those above it where missing. Raises WriteError."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: cannot be made a folder ({error.strerror or error})") from error
    return Path(path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # the folder may be what is missing; the first error is the one to tell
        path.unlink(missing_ok=True)
