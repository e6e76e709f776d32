"""Where results go: a folder with a file for each image, or one file of figures."""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from overfeat.cli.messages import with_flags
from overfeat.cluster.lock import RunLock
from overfeat.errors import InputError, printable
from overfeat.files import Journal, atomic_write, check_result, ensure_dir, remove_leftovers, write_json

if TYPE_CHECKING:
    from overfeat.data.annotated import Annotated

SETTINGS = "settings.json"


def add_out(parser: argparse.ArgumentParser, help: str, metavar: str = "FOLDER", default: Path | None = None) -> None:
    """-o, --out."""
    parser.add_argument("-o", "--out", type=Path, metavar=metavar, default=default, help=help)


def can_draw() -> bool:
    """Whether matplotlib is there to draw pictures beside the results; a note on stderr if not."""
    from overfeat.visualize import figure_class

    try:
        figure_class()
    except InputError as error:
        print(f"results without pictures: {error}", file=sys.stderr)
        return False
    return True


@dataclass
class Results:
    """The files of results in a folder, named after the images: `results(path)` is that of an image.

    Attributes:
        suffix: Of an image's result; `results(path, suffix)` is another file of the image.
        names: The name of each image, see `find_images`.
        lock: Keeps other runs out of the folder; not on workers, which serve the run that holds it.
    """

    folder: Path
    suffix: str
    names: dict[Path, str] = field(default_factory=dict)
    lock: RunLock | None = None

    def __call__(self, path: Path, suffix: str | None = None) -> Path:
        return self.folder / f"{self.names[path]}{self.suffix if suffix is None else suffix}"


def result_folder(
    args: argparse.Namespace,
    images: Mapping[Path, str],
    settings: dict,
    suffix: str,
    beside: Sequence[str] = (),
    shared: Sequence[str] = (),
) -> Results:
    """Prepare the folder of -o for one result an image; returns the files' paths.

    A result is named after the image, with a suffix; files with the suffixes `beside` are written for each image too,
    and `shared` for all. settings.json records what the results depend on: a folder of other settings is refused.

    Args:
        images: The name of each image, see `find_images`.
    """
    folder, names = args.out, dict[str, Path]()
    for path, name in images.items():
        if f"{name}{suffix}" in (SETTINGS, *shared):
            raise InputError(f"{path}: its result would be called {name}{suffix}, as another file is; rename it")
        other = names.setdefault(name, path)
        if other != path:
            raise InputError(f"{other} and {path} would both write {name}{suffix}; run them into two folders")
    if beside and folder.resolve() in {path.resolve().parent for path in images}:
        raise InputError(f"{folder}: holds the images themselves; choose another folder for the results")
    results = [*shared, *(f"{name}{end}" for name in names for end in (suffix, *beside))]
    lock = RunLock(ensure_dir(folder), args.part, args.line)
    _check_settings(folder, settings | {"folders": _folders(images)}, results)
    for parent in {ensure_dir((folder / name).parent) for name in names}:
        if args.part is None:  # else other machines may be writing there
            remove_leftovers(parent)
    return Results(folder, suffix, dict(images), lock)


def _check_settings(folder: Path, settings: dict, results: Sequence[str]) -> None:
    """Write the settings of a new folder; refuse one whose settings differ or that holds other people's files."""
    file = folder / SETTINGS
    text = json.dumps(settings, indent=1, sort_keys=True)
    if not file.exists():
        foreign = [name for name in results if (folder / name).exists()]
        if foreign and not file.exists():  # another part may just have started
            raise InputError(f"{folder}: holds {foreign[0]} of something else; choose another folder")
        with atomic_write(file) as part:
            part.write_text(text)
    elif file.read_bytes() != text.encode():
        raise InputError(f"{folder}: holds results of other settings (see {SETTINGS}); choose another folder")


def _folders(images: Iterable[Path]) -> list[str]:
    return sorted({str(path.resolve().parent) for path in images})


def digest(path: Path) -> str:
    """A file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Figures of an evaluation


def check_outputs(args: argparse.Namespace, keys: Sequence[str]) -> None:
    """Before the evaluation: check that -o, for results with these keys, and --plot can be written."""
    if args.out:
        check_result(args.out, keys)
    if getattr(args, "plot", None):
        from overfeat.visualize import check_picture, figure_class

        figure_class()
        check_picture(args.plot)
        if args.out and args.out.resolve() == args.plot.resolve():
            raise InputError(f"{args.plot}: named by -o and by --plot; name two files")


def open_journal(out: Path | None, settings: dict) -> Journal | None:
    """The journal beside the file of results; None without one."""
    if out is None:
        return None
    journal = Journal(out.with_name(f".images-{out.name}"), settings)
    if journal.done:
        print(f"{len(journal.done)} images are done already", file=sys.stderr)
    elif journal.dropped:
        print("the results of an earlier, unfinished run with other settings are not used", file=sys.stderr)
    return journal


def data_settings(data: "Annotated") -> dict:
    """What identifies the data in the settings of results."""
    return {"data": data.describe(), "folders": _folders([sample.path for sample in data.samples])}


def write_results(
    args: argparse.Namespace,
    results: dict,
    journal: Journal | None = None,
    draw: Callable[[dict, Path], None] | None = None,
) -> int:
    """Write the results to -o, draw them to --plot, list the images that were left out; returns the exit status."""
    if args.out:
        write_json(args.out, results)
        print(f"written to {printable(args.out)}")
    for message in results["unreadable"]:
        print(f"not counted: {with_flags(args, printable(message))}")
    if journal:
        journal.finish()
    if draw and args.plot:
        draw(results, args.plot)
        print(f"drawn to {printable(args.plot)}")
    return 1 if results["unreadable"] else 0
