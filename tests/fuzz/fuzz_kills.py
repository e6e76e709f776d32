"""Commands with results, and training, killed at random moments or run twice: no half file, and a run completes."""

import faulthandler
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from PIL import Image

from overfeat.files import ASSETS

CASES = 0  # test_fuzz.py runs some in processes of their own
SECONDS = 600  # the first process imports everything
PRELOADED = (
    "torch", "torch._dynamo", "numba", "scipy.sparse", "PIL.Image", "safetensors.torch", "overfeat.cli.main",
    "overfeat.detection.predict", "overfeat.detection.evaluate", "overfeat.localization.evaluate",
    "overfeat.classification.evaluate", "overfeat.classification.train", "overfeat.visualize",
)  # fmt: skip
SMALL, DETECTOR = f"--weights {ASSETS}/small.safetensors", f"--weights {ASSETS}/detector.safetensors"
TRAINING = "--batch-size 2 --num-workers 0 --checkpoint-steps 1 --device cpu --lr 0.0001 --epochs"
# Arguments, in a folder with data/ (images), data.json (their boxes) and classes/; OUT is a folder or file.
COMMANDS = {
    "classify": f"classify data {SMALL} --scales 1.0 --heat-map -o OUT",
    "features": f"features data {SMALL} -o OUT",
    "features as text": f"features data {SMALL} -L 19 --format text -o OUT",
    "features of one": f"features data/0.png {SMALL} --format safetensors -o OUT",
    "localize": f"localize data {SMALL} --scales 1.0 -o OUT",
    "detect": f"detect data {DETECTOR} -o OUT",
    "evaluate localization": f"evaluate localization --data data.json --images data {SMALL} --scales 1.0 -o OUT",
    "evaluate detector": f"evaluate detector --data data.json --images data {DETECTOR} -o OUT",
    "convert": f"convert {ASSETS}/small.safetensors OUT.safetensors --half",
    "scenes": "scenes OUT --split test --count 4 --objects 0 2",
    "train classifier": f"train classifier --data classes --net small {TRAINING} 2 --out OUT",
    "train regressor": f"train regressor --data data.json --images data --init {ASSETS}/small.safetensors {TRAINING} 1 "
    "--hidden 8,8 --out OUT",
}
NETS = (".safetensors",)
REFUSED = ("another process", "holds a run already", "resume it")  # a second writer may be, in these words


def check(rng: random.Random, folder: Path) -> str:
    """An undisturbed run, a disturbed one, and one that completes it: the results are equal, and none is ever half."""
    command, how = (
        rng.choice(list(COMMANDS)),
        rng.choice(("killed", "killed twice", "two writers", "one of two killed")),
    )
    _make_data(folder, rng)
    _ended(_process(int))  # starts the process that imports everything
    start = time.monotonic()
    assert _ended(_start(folder, command, "expected")) == 0, _log(folder)
    seconds = time.monotonic() - start
    for _ in range(2 if how == "killed twice" else 1):
        writers = [_start(folder, command, "out") for _ in range(1 if how.startswith("killed") else 2)]
        if how != "two writers":
            time.sleep(rng.uniform(0, seconds))
            number = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            if writers[0].is_alive():
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(writers[0].pid or 0, number)
        statuses = [_ended(writer) for writer in writers]
        _check_files(folder, command, whole=False)
    if how == "two writers":
        assert 0 in statuses and set(statuses) <= {0, 1}, (statuses, _log(folder))
        assert statuses == [0, 0] or any(words in _log(folder) for words in REFUSED), _log(folder)
    else:
        resume = " --resume" if (folder / "out" / "checkpoint.pt").exists() else ""
        assert _ended(_start(folder, command, "out", resume)) == 0, _log(folder)
    _check_files(folder, command, whole=True)
    assert "Traceback" not in _log(folder), _log(folder)
    return how


def _make_data(folder: Path, rng: random.Random) -> None:
    scenes = rng.sample(sorted((ASSETS / "scenes").glob("*.png")), 4)
    (folder / "data").mkdir()
    for i, scene in enumerate(scenes):
        target = folder / "data" / f"{i}.png"
        shutil.copy(scene, target)
        of_class = folder / "classes" / "ab"[i % 2] / target.name
        of_class.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scene, of_class)
    boxes = [{"id": i, "image_id": i, "category_id": i, "bbox": [5, 6, 50, 60], "iscrowd": 0} for i in range(4)]
    images = []
    for i in range(4):
        with Image.open(folder / "data" / f"{i}.png") as image:
            images.append({"id": i, "file_name": f"{i}.png", "width": image.width, "height": image.height})
    categories = [{"id": digit, "name": str(digit)} for digit in range(10)]
    coco = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "data.json").write_text(json.dumps(coco))


def _start(folder: Path, command: str, out: str, more: str = "") -> BaseProcess:
    """A process that runs a command."""
    return _process(_run, folder, (COMMANDS[command] + more).replace("OUT", out).split())


def _process(function: Callable, *args: object) -> BaseProcess:
    """A process for a function, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=function, args=args)
    with patch.dict(sys.modules, {"__main__": ModuleType("__main__")}):  # each would run that of pytest
        process.start()
    return process


def _run(folder: Path, arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.dump_traceback_later(SECONDS / 2 - 5, file=sys.__stderr__)  # says where it hangs
    status = 130
    try:
        import torch

        from overfeat.cli.main import main

        torch.set_num_threads(1)
        sys.modules["matplotlib.figure"] = None  # type: ignore[assignment]  # pictures take long
        status = main(arguments)
    except KeyboardInterrupt:  # before the command runs
        pass
    finally:
        os._exit(status)


def _ended(process: BaseProcess) -> int | None:
    process.join(SECONDS / 2)
    if process.exitcode is None:
        process.kill()
    return process.exitcode


def _log(folder: Path) -> str:
    return (folder / "log").read_text() if (folder / "log").exists() else ""


def _check_files(folder: Path, command: str, whole: bool) -> None:
    """Results are those of the undisturbed run, all of them if `whole`; then no temporary file is left."""
    expected, actual = _results(folder, "expected"), _results(folder, "out")
    if command.startswith("train"):  # its other files hold the seconds that an epoch took
        expected, actual = ({k: v for k, v in files.items() if k.endswith(NETS)} for files in (expected, actual))
    if whole:
        assert set(actual) == set(expected), set(actual) ^ set(expected)
        left = [str(path) for path in folder.rglob(".*")]
        assert not left, left
    elif command.startswith("train"):
        return  # nets of the first epoch
    wrong = [name for name, data in actual.items() if expected.get(name) != data]
    assert not wrong, f"{wrong} differ"


def _results(folder: Path, out: str) -> dict[str, bytes]:
    """The visible files of a run, by their names without `out`."""
    files = [path for path in folder.rglob("*") if path.is_file() and str(path.relative_to(folder)).startswith(out)]
    names = {path.relative_to(folder).as_posix().removeprefix(out): path for path in files}
    return {name: _content(path) for name, path in names.items() if "/." not in f"/{name.lstrip('/')}"}


def _content(path: Path) -> bytes:
    """A file's bytes; of .safetensors with a sorted header, whose order is random."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    start = 8 + int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8:start]), sort_keys=True).encode() + data[start:]
