"""Images on many machines: --dask, workers that do what the command does with an image, and --part of a job array."""

import argparse
import io
import os
import socket
import sys
import time
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from overfeat.cli.large import block_folder, blocks_of_part, finish_blocks
from overfeat.cli.module_source import ModuleSource
from overfeat.cluster.connect import check_address
from overfeat.cluster.lock import read_owner
from overfeat.cluster.part import parse_part
from overfeat.errors import ArgumentError, InputError, WriteError

if TYPE_CHECKING:
    from overfeat.cli.images import ImageWork
    from overfeat.large.blocks import Block, Job

SHARED = 10.0  # seconds in which a network file system shows a new file on another machine


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """--dask and --part."""
    group = parser.add_argument_group("many machines (both with -o FOLDER, which all of them share)")
    help = "process the images on Dask's workers: the address of a scheduler, or local:N, N workers on this machine "
    help += "(needs the extra cluster)"
    group.add_argument("--dask", type=_parser(check_address), metavar="ADDRESS|local:N", help=help)
    help = "process part I of N of the images, as one job of an array; the other jobs have the same command and "
    group.add_argument("--part", type=_parser(parse_part), metavar="I/N", help=help + "folder, and another I")


def _parser(parse: Any) -> Any:
    def parser(text: str) -> Any:
        try:
            return parse(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parser


def check_cluster(args: Namespace, *, folder: bool) -> None:
    """Raises ArgumentError where --dask or --part is given without a folder of results."""
    for name in ("dask", "part"):
        if getattr(args, name) is not None and not folder:
            raise ArgumentError(name, "needs a folder that all machines share; give -o FOLDER")
    if args.dask is not None:
        from overfeat.cluster.connect import dask

        dask()  # a missing package is reported before anything is written


@dataclass
class Answer:
    """What a worker did with an image: the entry to print, its lines on stderr, and its warnings."""

    entry: Any = None
    notes: str = ""
    warnings: list[tuple[Warning | str, type[Warning], str, int]] = field(default_factory=list)


Item = tuple[str, str, str, Any]  # path as given, absolute path, name, and the block, or None


def processed_by_workers(paths: Collection[Path], work: "ImageWork") -> "Iterator[tuple[Path, Future[Any]]]":
    """Each image with what `work.process` returned or raised on a worker, as they are done.

    Images in blocks are planned here, evaluated there, a block at a time, and finished here.
    """
    from tqdm import tqdm

    from overfeat.cluster.dispatch import run

    results = work.results
    assert results is not None and results.lock is not None
    folder, lock = results.folder.absolute(), results.lock
    prepare = partial(_prepare, type(work), _portable(work.given), folder, results.suffix, (lock.path.name, lock.run))
    images, items = _Images(work), list[Item]()
    for path in paths:
        planned = attempt(images.plan, path)
        if planned.exception():
            yield path, planned
        elif (blocks := planned.result()) == []:
            yield path, attempt(images.finish, path)
        else:
            items += [(str(path), str(path.absolute()), results.names[path], block) for block in blocks or [None]]
    hidden = None if images.jobs else True
    answers = run(prepare, items, dask=work.args.dask)
    for item, answer in tqdm(answers, total=len(items), unit="block", disable=hidden, leave=False):
        if (result := images.add(Path(item[0]), answer)) is not None:
            yield Path(item[0]), result


class _Images:
    """Images in blocks, and how many of these are to be done."""

    def __init__(self, work: "ImageWork"):
        self.work, self.jobs, self.left = work, dict[Path, "Job"](), Counter[Path]()
        self.notes: set[str] = set()

    def plan(self, path: Path) -> "list[Block] | None":
        """The blocks of an image that are to be done; None for an image in one piece."""
        from overfeat.large.blocks import pending_blocks

        work = self.work
        if not work.in_blocks(path):
            return None
        assert work.results is not None
        job = work.large_job(path, work.read(path), block_folder(work.results.folder, work.results.names[path]))
        pending = pending_blocks(blocks_of_part(work, path, job.plan), job.folder)
        self.jobs[path], self.left[path] = job, len(pending)
        return pending

    def finish(self, path: Path) -> Any:
        return finish_blocks(self.work, path, self.jobs[path])

    def add(self, path: Path, answer: "Future[Answer]") -> "Future[Any] | None":
        """The result of an image, if an answer completes it."""
        shown = attempt(lambda: self._shown(answer.result()))
        if path not in self.jobs:
            return shown
        self.left[path] -= 1
        if self.left[path] < 0:  # an earlier block failed
            return None
        if shown.exception():
            self.left[path] = 0
            return shown
        return None if self.left[path] else attempt(self.finish, path)

    def _shown(self, answer: Answer) -> Any:
        """The entry; what the worker reported is reported here, once."""
        from tqdm import tqdm

        for message, category, file, line in answer.warnings:
            warnings.warn_explicit(message, category, file, line)
        if answer.notes and answer.notes not in self.notes:
            self.notes.add(answer.notes)
            tqdm.write(answer.notes, file=sys.stderr, end="")
        return answer.entry


def attempt(function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
    """What a function returns or raises."""
    result: Future[Any] = Future()
    try:
        result.set_result(function(*arguments))
    except Exception as error:
        result.set_exception(error)
    return result


def _portable(given: dict[str, Any]) -> dict[str, Any]:
    """The values of the options, with absolute paths: a worker has another current folder."""
    return {name: _absolute(value) for name, value in given.items() if name not in ("parser", "run", "images")}


def _absolute(value: Any) -> Any:
    if isinstance(value, ModuleSource) and os.path.exists(value.file):
        return replace(value, file=os.path.abspath(value.file))
    return value.absolute() if isinstance(value, Path) else value


# On a worker


class _Worker:
    """What a worker does with an image, or a block of one."""

    def __init__(self, work: "ImageWork"):
        self.work, self.job = work, (Path(), cast("Job | None", None))

    def __call__(self, item: Item) -> Answer:
        given, absolute, name, block = item
        path, results = Path(given), self.work.results
        assert results is not None
        results.names = {path: name}
        if not os.path.exists(absolute):
            remedy = "all workers must see the images under the same path"
            raise InputError(f"{given}: no such file on the worker's machine, {socket.gethostname()}; {remedy}")
        try:
            with _captured() as answer:
                if block is not None:
                    self._evaluate(path, Path(absolute), block)
                elif results(path).exists():  # by a worker that died since
                    answer.entry = self.work.load(path)
                else:
                    answer.entry = self.work.process(path, self.work.read(Path(absolute)))
        except InputError as error:
            if given == absolute or absolute not in str(error) or isinstance(error, ArgumentError):
                raise
            kind = WriteError if isinstance(error, WriteError) else InputError
            raise kind(str(error).replace(absolute, given)) from error
        return answer

    def _evaluate(self, path: Path, absolute: Path, block: "Block") -> None:
        from overfeat.large.blocks import block_path

        results = self.work.results
        assert results is not None
        of, job = self.job
        if job is None or of != path:
            with _captured():  # the command has planned the same
                folder = block_folder(results.folder, results.names[path])
                job = self.work.large_job(path, self.work.read(absolute), folder)
            self.job = (path, job)
        if not block_path(job.folder, block).exists():  # by a worker that died since
            job.evaluate(block)


def _prepare(
    kind: "type[ImageWork]", values: dict[str, Any], folder: Path, suffix: str, lock: tuple[str, str]
) -> _Worker:
    """The work of a command on this worker. Raises InputError if it does not see the run's folder."""
    from overfeat.cli.main import parser_of
    from overfeat.cli.results import Results

    _check_shared(folder, *lock)
    if values.get("fast"):
        import overfeat.fast  # noqa: F401
    with _captured():  # the command itself has reported the same
        work = kind(Namespace(**values, parser=parser_of(values["command"])))
    work.results = Results(folder, suffix)
    return _Worker(work)


def _check_shared(folder: Path, name: str, run: str) -> None:
    deadline = time.monotonic() + SHARED
    while read_owner(folder / name).get("run") != run:
        if time.monotonic() > deadline:
            remedy = "workers write the results, so -o must name a folder that all machines share"
            raise InputError(f"{folder}: the run's files are not there on this machine; {remedy}")
        time.sleep(0.1)


@contextmanager
def _captured() -> Iterator[Answer]:
    """Collect what is printed on stderr, and warnings."""
    answer, text = Answer(), io.StringIO()
    with warnings.catch_warnings(record=True) as caught, redirect_stderr(text):
        warnings.simplefilter("always")
        try:
            yield answer
        finally:
            answer.notes = text.getvalue()
            answer.warnings = [(entry.message, entry.category, entry.filename, entry.lineno) for entry in caught]
