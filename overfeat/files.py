"""Safe writing of files, journals of interrupted work, and checks of paths before the work."""

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from safetensors import SafetensorError

from overfeat.errors import InputError, WriteError

ASSETS = Path(__file__).resolve().parent / "assets"  # files that ship with the package

os.umask(_UMASK := os.umask(0o22))  # the only way to read it is to set it


class UnsupportedLockError(Exception):
    """Files cannot be locked here, as on Windows and some network file systems."""


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it to `path` when the block ends without an error.

    Readers see the old file or the complete new one, whatever interrupts the writer. Writers of one file at a time have
    temporary files of their own; the next run takes over what a killed one left. Raises WriteError.
    """
    path = Path(os.path.realpath(path))  # the target of a link is replaced, not the link
    if os.path.exists(path) and not os.path.isfile(path):
        raise WriteError(f"{path}: cannot be written (it is no regular file); name a file to write to")
    advice = "; check the folder, its permissions and the free space"
    try:
        folder, descriptor = _temporary(path)
    except OSError as error:
        raise _unwritable(path, error, advice) from error
    part = folder / path.name
    try:
        yield part
        with open(part, "rb+") as written:
            os.fsync(written.fileno())
        part.chmod(0o666 & ~_UMASK)  # some writers make files that only their owner may read
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise _unwritable(path, error, advice) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _temporary(path: Path) -> tuple[Path, int | None]:
    """An empty folder beside `path` that no other writer has, and the descriptor that holds its lock, to be closed.

    A folder, since some writers replace a file that is locked. Its name is the first of .part-NAME, .part-NAME-2, ...
    that no living process has locked, so that what killed processes left is used again. Where folders cannot be locked
    the name has the number of the process.
    """
    number = 1
    while True:
        folder = path.with_name(f".part-{path.name}" + (f"-{number}" if number > 1 else ""))
        try:
            descriptor = _lock_folder(folder)
        except UnsupportedLockError:
            with suppress(OSError):
                folder.rmdir()
            folder, descriptor = path.with_name(f".part-{path.name}-{os.getpid()}"), None
            folder.mkdir(exist_ok=True)
            break
        if descriptor is not None:
            break
        number += 1
    for left in folder.iterdir():
        _remove(left)
    return folder, descriptor


def _lock_folder(folder: Path) -> int | None:
    """`lock` of a folder that is made unless it exists; None also for what is no folder or another user's."""
    while True:
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            return None
        try:
            descriptor = lock(folder)
        except FileNotFoundError:  # another writer has just finished
            continue
        if descriptor is not None and not os.access(folder, os.W_OK):
            os.close(descriptor)
            return None
        return descriptor


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary folders in a folder that killed writers left; not those that are being written to.

    Where folders cannot be locked, none are deleted.
    """
    for part in folder.glob(".part-*"):
        with suppress(UnsupportedLockError, OSError):
            if part.is_dir() and (descriptor := lock(part)) is not None:
                shutil.rmtree(part, ignore_errors=True)
                os.close(descriptor)


def lock(path: Path, *, make: bool = False) -> int | None:
    """Lock a folder or a file until the descriptor that is returned is closed.

    None: another process, or another call in this one, has locked it. Raises UnsupportedLockError; OSError where it
    cannot be opened.

    make: It is a file, which is made unless it exists.
    """
    if fcntl is None:
        raise UnsupportedLockError
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT if make else os.O_RDONLY, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise UnsupportedLockError from error
        os.close(descriptor)  # of what was moved or deleted meanwhile


def write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """Write JSON, atomically. Raises WriteError."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(value, indent=indent))


def check_result(path: Path, keys: Collection[str] = ("errors", "unreadable")) -> None:
    """Raises WriteError unless results can be written to `path`: a file there must be JSON results with these keys.

    Called before the work starts.
    """
    if path.is_file():
        try:
            earlier = json.loads(path.read_bytes())
        except ValueError:
            earlier = None
        if not (isinstance(earlier, dict) and set(keys) <= set(earlier)):
            raise WriteError(f"{path}: exists and holds no results; name another file")
    else:
        check_writable(path)


def check_writable(path: Path) -> None:
    """Raises WriteError unless a file can be written to `path`; an existing file may be overwritten."""
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or (path.exists() and not path.is_file()):
        raise WriteError(f"{path}: cannot be written; name a file in a folder that exists and can be written to")


class Journal:
    """Results of single items, kept in a file until all are done, so that a killed run resumes.

    A file of JSON lines: first what the results depend on, then [name, result] for each. Results of an earlier run with
    the same settings are in `done`; those of other settings are discarded (`dropped`), and so is an incomplete last
    line. Raises WriteError for a file that cannot be written, or that another process is writing.
    """

    def __init__(self, path: str | os.PathLike, settings: object):
        self.path = Path(path)
        self.done: dict[str, Any] = {}
        self.file = _open_locked(self.path)
        head, valid = json.dumps(settings, sort_keys=True) + "\n", 0
        try:
            lines = self.file.readlines()
        except (OSError, UnicodeDecodeError):
            lines = []
        if lines[:1] == [head]:
            valid = len(head)
            for line in lines[1:]:
                try:
                    name, result = json.loads(line)
                    if not line.endswith("\n"):
                        break
                    self.done[name], valid = result, valid + len(line)
                except (ValueError, TypeError):
                    break
        self.dropped = bool(lines) and not valid
        try:
            self.file.truncate(self.file.seek(valid))
            if not valid:
                self.file.write(head)
                self.file.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def add(self, name: str, result: object) -> None:
        """Keep a result. Raises WriteError."""
        try:
            self.file.write(json.dumps([name, result]) + "\n")
            self.file.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.done[name] = result

    def finish(self) -> None:
        """All items are done: delete the file."""
        self.file.close()
        _remove(self.path)


def _open_locked(path: Path) -> TextIO:
    """The file, made unless it exists, for reading and writing by this process alone. Raises WriteError."""
    try:
        descriptor = lock(path, make=True)
    except UnsupportedLockError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unwritable(path, error) from error
    if descriptor is None:
        raise WriteError(
            f"{path}: another process is writing these results; wait until it has ended, or write to another file"
        )
    return os.fdopen(descriptor, "r+")


def existing_dir(path: str | os.PathLike) -> Path:
    """The path of a folder. Raises InputError if there is none."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: {'a file, not a folder' if path.exists() else 'no such folder'}")
    return path


def ensure_dir(path: str | os.PathLike) -> Path:
    """Create the folder and its parents unless it exists; returns its path. Raises WriteError."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: cannot be made a folder ({error.strerror or error})") from error
    return Path(path)


def _unwritable(path: Path, error: Exception, advice: str = "") -> WriteError:
    return WriteError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}){advice}")


def _remove(path: Path) -> None:
    with suppress(OSError):  # the folder may be missing; the first error is the one to report
        path.unlink(missing_ok=True)
