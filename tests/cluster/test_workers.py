"""A scheduler and two workers as processes: results, errors, and workers that die."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from large_files import write_pyramid
from PIL import Image
from worker_functions import missing, square

import overfeat
from overfeat.cli import cluster as on_workers
from overfeat.cli.assets import SHIPPED_WEIGHTS
from overfeat.cli.images import ImageWork
from overfeat.cli.main import main
from overfeat.cli.results import Results
from overfeat.cluster import connect
from overfeat.cluster.lock import RunLock
from overfeat.errors import InputError
from overfeat.files import ASSETS

distributed = pytest.importorskip("distributed", reason="the extra cluster is not installed")


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """The address of a scheduler with two workers of one thread, each a process; one that dies is started again."""
    folder = tmp_path_factory.mktemp("dask")
    environment = {**os.environ, "DASK_LOGGING__DISTRIBUTED": "critical"}
    environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "0"
    # Workers import worker_functions.
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    start = partial(subprocess.Popen, cwd=folder, env=environment)
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    processes = [start([*command, "--no-dashboard", "--scheduler-file", "address.json"])]
    while not (folder / "address.json").exists() or not (text := (folder / "address.json").read_text()).endswith("}"):
        time.sleep(0.05)
    address = json.loads(text)["address"]
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nworkers", "2", "--nthreads", "1"]
    processes.append(start([*command, "--no-dashboard", "--memory-limit", "0"]))
    with distributed.Client(address) as client:
        client.wait_for_workers(2, timeout=120)
    yield address
    for process in reversed(processes):
        process.terminate()
        process.wait()


def test_an_item_that_kills_workers_is_an_error_of_its_own(scheduler):
    results = dict(overfeat.cluster.run(square, range(12), dask=scheduler))
    assert sorted(results) == list(range(12))
    for number, result in results.items():
        if number == 5:
            assert str(result.exception()) == "five is not allowed" and type(result.exception()) is InputError
        elif number == 7:
            assert str(result.exception()).startswith("the workers that process it die; its memory may not suffice")
        else:
            assert result.result() == number * number


def test_what_a_worker_lacks_is_named(scheduler, tmp_path):
    gone = tmp_path / "gone.safetensors"
    with pytest.raises(InputError, match=rf"worker tcp://.* on .*: {gone}"):
        list(overfeat.cluster.run(partial(missing, gone), [1], dask=scheduler))
    with pytest.raises(InputError, match="must load what it needs on the worker; it takes 2 MiB when pickled"):
        list(overfeat.cluster.run(partial(missing, bytes(2 << 20)), [1], dask=scheduler))
    with pytest.raises(InputError, match="prepare must be a function without arguments, not 3"):
        list(overfeat.cluster.run(3, [1], dask=scheduler))


def test_a_client_that_is_given_stays_open(scheduler):
    with distributed.Client(scheduler) as client:
        assert [result.result() for _, result in overfeat.cluster.run(square, [3], dask=client)] == [9]
        assert client.submit(abs, -1).result() == 1
    assert list(overfeat.cluster.run(square, [], dask="nowhere:1")) == []


def worker_processes(address):
    with distributed.Client(address) as client:
        return list(client.run(os.getpid).values())


@pytest.fixture(scope="module")
def pictures():
    return [Image.open(path).convert("RGB") for path in sorted((ASSETS / "scenes").glob("*.png"))]


@pytest.fixture(scope="module")
def slide(pictures, tmp_path_factory):
    """A pyramid of 96 x 6000 px, three blocks at the scales 0.7 and 1."""
    folder = tmp_path_factory.mktemp("slide")
    row = [np.asarray(pictures[i % 8].resize((125, 96))) for i in range(48)]
    write_pyramid(folder / "slide.tif", np.concatenate(row, axis=1), levels=2)
    return folder / "slide.tif"


@pytest.fixture(scope="module")
def photos(pictures, slide, tmp_path_factory):
    """Twelve images of digits, two files that are none, and the slide."""
    folder = tmp_path_factory.mktemp("images") / "photos"
    folder.mkdir()
    for i in range(12):
        pictures[i % 8].resize((130 + i, 150 - i)).save(folder / f"{i:02}.png")
    (folder / "07.jpg").write_bytes(b"")
    (folder / "10.jpg").write_text("no picture")
    shutil.copy(slide, folder / "01-slide.tif")
    return folder


def run(command, folder, capsys, *options):
    """Exit status, standard output and the errors of images."""
    status = main([*map(str, command), "-o", str(folder), *map(str, options)])
    printed = capsys.readouterr()
    return status, printed.out, [line for line in printed.err.splitlines() if "failed" in line or line.startswith("  ")]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix != ".png" and path.is_file()}


def test_a_killed_worker_loses_nothing(scheduler, photos, tmp_path, capsys, monkeypatch):
    """Results, output and errors are those of one machine; paths are relative, and workers have another folder."""
    monkeypatch.chdir(photos.parent)
    command = ["classify", "--weights", SHIPPED_WEIGHTS, "--scales", "1.0", "--no-flip", "photos"]
    expected = run(command, tmp_path / "single", capsys)
    assert expected[0] == 1 and expected[2][0] == "2 of 15 images failed:"

    folder, killed, processes = tmp_path / "several", [], worker_processes(scheduler)

    def kill():
        while not list((folder / ".blocks" / "01-slide.tif").glob("0*.safetensors")):
            time.sleep(0.002)
        killed.append(len(list(folder.glob("*.json"))))
        os.kill(processes[0], signal.SIGKILL)

    killer = Thread(target=kill)
    killer.start()
    actual = run(command, folder, capsys, "--dask", scheduler)
    killer.join()
    assert killed[0] < 12
    assert actual == expected and contents(folder) == contents(tmp_path / "single")

    for name in ("03.png", "11.png"):  # a second run adds what is missing
        (folder / f"{name}.json").unlink()
    before = (folder / "04.png.json").stat().st_mtime_ns
    assert main([*map(str, command), "-o", str(folder), "--dask", scheduler]) == 1
    printed = capsys.readouterr()
    assert "11 of 15 images are done already" in printed.err and "03.png" in printed.out and "04.png" not in printed.out
    assert contents(folder) == contents(tmp_path / "single")
    assert (folder / "04.png.json").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def detection(slide):
    """The folder of the slide, the command that detects in it there, and its results on this machine."""
    command = ["detect", "slide.tif", "--scales", "0.7", "--no-flip"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(slide.parent)
        assert main([*command, "-o", "single"]) == 0
    return slide.parent, command


def test_blocks_of_a_command_that_ended(scheduler, detection, capsys, monkeypatch):
    """No block is evaluated again, and the result is that of one machine."""
    folder, command = detection
    monkeypatch.chdir(folder)
    blocks = folder / "several" / ".blocks" / "slide.tif"
    with monkeypatch.context() as patch:
        patch.setattr("overfeat.cli.cluster.finish_blocks", interrupted)
        assert main([*command, "-o", "several", "--dask", scheduler]) == 130
    written = {path: path.stat().st_mtime_ns for path in blocks.glob("0*.safetensors")}
    assert len(written) == 3 and not (folder / "several" / "slide.tif.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("overfeat.cli.large.remove_blocks", lambda *arguments: None)
        assert main([*command, "-o", "several", "--dask", scheduler]) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    shutil.rmtree(folder / "several" / ".blocks")
    assert contents(folder / "several") == contents(folder / "single") and len(contents(folder / "single")) == 5


def interrupted(*arguments):
    raise KeyboardInterrupt


def test_parts_of_a_large_image(detection, capsys, monkeypatch):
    folder, command = detection
    monkeypatch.chdir(folder)
    for part in ("3/3", "1/3", "2/3"):
        assert main([*command, "-o", "parts", "--part", part]) == 0
        done = (folder / "parts" / "slide.tif.json").exists()
        assert done == (part == "2/3") and bool(capsys.readouterr().out) == done
    assert contents(folder / "parts") == contents(folder / "single")


def test_a_worker_that_does_not_share_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(on_workers, "SHARED", 0.05)
    out = tmp_path / "out"
    out.mkdir()
    with RunLock(out) as held:
        on_workers._check_shared(out, ".run", held.run)
        with pytest.raises(
            InputError, match=f"{out}: the run's files are not there on this machine; workers write the"
        ):
            on_workers._check_shared(out, ".run", "another")
        with pytest.raises(InputError, match="-o must name a folder that all machines share"):
            on_workers._check_shared(tmp_path / "other", ".run", held.run)


def test_an_image_that_the_worker_lacks(tmp_path):
    work = ImageWork(Namespace())
    work.results = Results(tmp_path, ".json")
    with pytest.raises(InputError) as refused:
        on_workers._Worker(work)(("photos/a.png", str(tmp_path / "photos" / "a.png"), "a.png", None))
    host = f"photos/a.png: no such file on the worker's machine, {socket.gethostname()}; "
    assert str(refused.value) == host + "all workers must see the images under the same path"


def test_parts_write_what_one_run_writes(photos, tmp_path, capsys):
    few = tmp_path / "few"
    few.mkdir()
    for i in range(2):
        shutil.copy(photos / f"{i:02}.png", few)
    command = ["detect", few, "--scales", "0.7", "--no-flip"]
    run(command, tmp_path / "single", capsys)
    for part in ("2/2", "1/2"):
        assert run(command, tmp_path / "parts", capsys, "--part", part)[0] == 0
    assert contents(tmp_path / "parts") == contents(tmp_path / "single")
    with RunLock(tmp_path / "parts"):
        assert main([*map(str, command), "-o", str(tmp_path / "parts"), "--part", "1/2"]) == 1
    assert "another run (host" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["classify", "detect", "localize", "features"])
def test_many_machines_need_a_folder(command, photos, capsys):
    weights = ["--weights", str(SHIPPED_WEIGHTS)] if command in ("classify", "features") else []  # the smallest net
    for option in (["--dask", "local:2"], ["--part", "1/2"]):
        assert main([command, str(photos / "00.png"), *weights, *option]) == 1
        printed = capsys.readouterr().err.splitlines()[-1]
        assert f"{option[0]} needs a folder that all machines share; give -o FOLDER" in printed


def test_addresses(capsys, monkeypatch):
    for text in ("local:0", "local", "8786", "local:two"):
        with pytest.raises(SystemExit):
            main(["detect", "a.png", "--dask", text])
        assert (
            f"{text!r} is not local:N, N workers on this machine, or a scheduler's address" in capsys.readouterr().err
        )
    monkeypatch.setattr(connect, "TIMEOUT", 0.3)
    with pytest.raises(
        InputError, match=r"tcp://127.0.0.1:1: no Dask scheduler answers there; start one with `dask sche"
    ):
        list(overfeat.cluster.run(square, [1], dask="tcp://127.0.0.1:1"))
    with pytest.raises(InputError, match=r"dask must be an address or a distributed.Client, not 5"):
        list(overfeat.cluster.run(square, [1], dask=5))
