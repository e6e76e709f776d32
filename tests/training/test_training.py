"""The training loop, run as its users run it: `overfeat train` in processes of its own."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from overfeat.cli.main import main
from overfeat.errors import InputError
from overfeat.models import checkpoint
from overfeat.training.config import TrainConfig
from overfeat.training.sampler import ResumableBatchSampler

ROOT = Path(__file__).parents[2]
NAMES = ("checks", "noise", "stripes")


def textures(root, count, seed):
    """`count` images of each of three textures, in folders."""
    random = np.random.default_rng(seed)
    for name in NAMES:
        (root / name).mkdir(parents=True)
        for i in range(count):
            height, width = random.integers(56, 80, 2)
            y, x = np.mgrid[:height, :width]
            cell = random.integers(4, 8)
            grey = {
                "checks": (y // cell + x // cell) % 2,
                "noise": random.random((height, width)),
                "stripes": (x // cell) % 2,
            }[name]
            image = grey[..., None] * random.integers(100, 255, 3)
            Image.fromarray(image.astype(np.uint8)).save(root / name / f"{i:02}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """42 training and 15 validation images."""
    root = tmp_path_factory.mktemp("data")
    textures(root / "train", 14, seed=0)
    textures(root / "val", 5, seed=1)
    return root


def flags(data, out, *more):
    common = "--net small --batch-size 32 --num-workers 0 --crops 1 --device cpu"
    return ["train", "classifier", "--data", data, "--out", out, *common.split(), *more]


def command(data, out, *more, launcher=()):
    return [str(part) for part in (sys.executable, *launcher, "-m", "overfeat", *flags(data, out, *more))]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(data, out, *more, launcher=()):
    """Run the command in a process of its own."""
    done = subprocess.run(
        command(data, out, *more, launcher=launcher), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def run_here(capsys, data, out, *more):
    """Run the command in this process; gives (status, stdout, stderr)."""
    status = main([str(part) for part in flags(data, out, *more)])
    return status, *capsys.readouterr()


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def tensors(out, name="net.safetensors"):
    return checkpoint.load(out / name).state_dict()


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of 12 epochs over data with a broken file."""
    root = tmp_path_factory.mktemp("trained")
    out, broken = root / "out", data / "train" / "noise" / "broken.png"
    broken.write_bytes(b"broken")
    try:
        return (
            out,
            run(
                data,
                out,
                "--epochs",
                "12",
                "--batch-size",
                "64",
                "--crops",
                "5",
                "--lr",
                "0.04",
                "--lr-milestones",
                "4,8",
            ),
            broken,
        )
    finally:
        broken.unlink()


def test_the_error_falls_and_is_logged(trained):
    out, done, _ = trained
    records = log(out)
    assert [record["epoch"] for record in records] == list(range(1, 13))
    assert records[-1]["train_loss"] < 0.7 * records[0]["train_loss"]
    assert records[-1]["validation_top1_error"] <= 0.2
    assert records[-1]["samples"] == 43 * 10 // 64 * 64 and records[-1]["samples_per_second"] > 0
    rates = [record["lr"] for record in records]
    assert rates == [0.04] * 4 + [0.02] * 4 + [0.01] * 4
    assert done.stdout.count("validation top1 error") == 12
    assert json.loads((out / "log.jsonl").read_text().splitlines()[0]) == records[0]


def test_an_unreadable_image_is_skipped_and_listed(trained):
    out, done, broken = trained
    assert done.stderr.count("left out:") == 1 and str(broken) in done.stderr
    assert log(out)[-1]["unreadable"] == [str(broken)]


def test_written_nets_have_their_class_names(trained):
    out, _, _ = trained
    net = checkpoint.load(out / "net.safetensors")
    assert net.class_names == list(NAMES) and net.flip and net.architecture.name == "small"
    errors = [record["validation_top1_error"] for record in log(out)]
    assert (out / "best.safetensors").exists() and min(errors) == torch.load(out / "checkpoint.pt")["best"]


def test_a_killed_run_resumes_to_the_same_weights(data, tmp_path):
    options = ("--epochs", "2", "--batch-size", "4", "--crops", "2", "--lr", "0.01", "--checkpoint-steps", "1")
    run(data, tmp_path / "uninterrupted", *options)
    out, checkpoint = tmp_path / "killed", tmp_path / "killed" / "checkpoint.pt"
    victim = subprocess.Popen(
        command(data, out, *options), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seen = set()
    while len(seen) < 4 and victim.poll() is None:
        if checkpoint.exists():
            seen.add(checkpoint.stat().st_mtime_ns)
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    state = torch.load(checkpoint, weights_only=True)
    assert (state["epoch"], state["step"]) < (2, 0) and state["step"] > 0
    # What a killed run may leave: a log line after the checkpoint, and one cut short.
    with open(out / "log.jsonl", "a") as file:
        file.write('{"epoch": 1, "train_loss": 9}\n{"epo')
    # The number of workers may differ: randomness does not depend on the process that reads an image.
    run(data, out, *options, "--num-workers", "1", "--resume")
    assert_same(tensors(out), tensors(tmp_path / "uninterrupted"))
    timeless = [
        [{k: v for k, v in record.items() if "second" not in k} for record in log(path)]
        for path in (out, tmp_path / "uninterrupted")
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 2


def test_two_processes_equal_one(data, tmp_path):
    options = ("--epochs", "2", "--lr", "0.01", "--dropout", "0")
    run(data, tmp_path / "one", *options)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = run(data, tmp_path / "two", *options, launcher=launcher)
    assert done.stdout.count("epoch ") == 2
    torch.testing.assert_close(tensors(tmp_path / "two"), tensors(tmp_path / "one"))
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        for key in ("train_loss", "train_top1_error", "validation_loss", "validation_top5_error"):
            assert two[key] == pytest.approx(one[key], rel=1e-4)


def test_resume_continues_to_more_epochs_and_refuses_other_options(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_here(capsys, data, out, "--epochs", "1")[0] == 0
    before = (out / "checkpoint.pt").read_bytes()
    status, _, errors = run_here(capsys, data, out, "--epochs", "2")
    assert status == 1 and "resume it" in errors
    status, _, errors = run_here(capsys, data, out, "--epochs", "2", "--lr", "0.1", "--seed", "3", "--resume")
    assert status == 1 and "lr was 0.05 and is now 0.1; seed was 0 and is now 3" in errors
    status, _, errors = run_here(capsys, data / "train", out, "--epochs", "2", "--resume")
    assert status == 1 and "validation was 15 images of 3 classes" in errors
    assert (out / "checkpoint.pt").read_bytes() == before and len(log(out)) == 1
    assert run_here(capsys, data, out, "--epochs", "2", "--resume")[0] == 0
    assert len(log(out)) == 2
    assert run_here(capsys, data, tmp_path / "uninterrupted", "--epochs", "2")[0] == 0
    assert_same(tensors(out), tensors(tmp_path / "uninterrupted"))
    status, _, errors = run_here(capsys, data, out, "--epochs", "1", "--resume")
    assert status == 1 and "epochs 1 are fewer than the 2" in errors
    (out / "checkpoint.pt").write_bytes(before[:1000])
    status, _, errors = run_here(capsys, data, out, "--epochs", "2", "--resume")
    assert status == 1 and "damaged" in errors
    status, _, errors = run_here(capsys, data, tmp_path / "new", "--resume")
    assert status == 1 and "no run to resume" in errors


def test_fine_tuning_keeps_matching_layers(trained, data, tmp_path, capsys):
    source = trained[0] / "net.safetensors"
    options = ("--init", source, "--epochs", "1", "--lr", "0")
    status, printed, _ = run_here(capsys, data, tmp_path / "same", *options)
    assert status == 0 and "new last layer" not in printed
    assert_same(tensors(tmp_path / "same"), checkpoint.load(source).state_dict())
    other = tmp_path / "other"
    other.mkdir()
    for name in NAMES[:2]:
        (other / f"my {name}").symlink_to(data / "train" / name)
    status, printed, errors = run_here(capsys, other, tmp_path / "new", *options, "--batch-size", "100", "--no-flip")
    assert status == 0 and "new last layer" in printed and "batch size shrinks to 28" in errors
    net = checkpoint.load(tmp_path / "new" / "net.safetensors")
    assert net.class_names == ["my checks", "my noise"] and not net.flip
    kept = [key for key in net.state_dict() if not key.startswith(f"fc_layers.{len(net.fc_layers) - 1}.")]
    assert_same({key: tensors(trained[0])[key] for key in kept}, {key: net.state_dict()[key] for key in kept})
    status, _, errors = run_here(capsys, data, tmp_path / "fast", *options, "--net", "fast")
    assert status == 1 and "not fast; leave the name out" in errors


def test_a_diverging_run_stops_and_keeps_its_checkpoint(data, tmp_path, capsys):
    out = tmp_path / "out"
    status, _, errors = run_here(capsys, data, out, "--lr", "1e20", "--epochs", "9")
    assert status == 1 and "lower the learning rate" in errors
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert all(weight.isfinite().all() for weight in state["module"].values())
    assert not (out / "net.safetensors").exists()


def test_bfloat16_trains(data, tmp_path, capsys):
    options = ("--epochs", "1", "--precision", "bfloat16", "--resize", "56,80")
    assert run_here(capsys, data, tmp_path / "out", *options)[0] == 0
    assert {tensor.dtype for tensor in tensors(tmp_path / "out").values()} == {torch.float32}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--epochs 0", "epochs must be at least 1"),
        ("--lr -1", "lr must be at least 0"),
        ("--dropout 1", "dropout must be at least 0 and less than 1"),
        ("--resize 40", "must be at least the net's window"),
        ("--resize 56,60,70", "resize must be one size or two"),
        ("--device nowhere", "no such device"),
        ("--crops 0", "crops must be at least 1"),
        ("--net big", "no net is called 'big'"),
        ("--precision float16", "float16 needs a GPU"),
        ("--data nowhere", "no such folder"),
        ("--validation nowhere", "no such folder"),
        ("--init nowhere", "no such file"),
    ],
)
def test_bad_options_are_explained(data, tmp_path, capsys, option, words):
    status, _, errors = run_here(capsys, data, tmp_path / "out", *option.split())
    assert status == 1 and words in errors and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--lr-milestones 3,x", "--crops x", "--optimizer x"])
def test_bad_flags_are_refused(data, tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        run_here(capsys, data, tmp_path / "out", *option.split())
    assert option.split()[0] in capsys.readouterr().err


def test_batches_are_sharded_and_can_start_late():
    sampler = ResumableBatchSampler(samples=50, batch_size=8, seed=1)
    sampler.epoch = 3
    steps = list(sampler)
    assert len(steps) == len(sampler) == 6 and len({key for step in steps for key in step}) == 48
    assert {epoch for step in steps for epoch, _ in step} == {3}
    halves = [ResumableBatchSampler(50, 8, 1, rank, 2) for rank in (0, 1)]
    for half in halves:
        half.epoch, half.start = 3, 2
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(step) for step in steps[2:]]
    sampler.epoch = 4
    assert next(iter(sampler)) != steps[0]


def test_the_learning_rate_is_halved_at_the_paper_s_milestones():
    config = TrainConfig()
    rates = [config.lr_at(epoch) for epoch in range(90)]
    assert rates[29] == 0.05 and rates[30] == 0.025 and rates[50] == 0.0125 and rates[89] == 0.05 / 32
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        TrainConfig(batch_size=0)


def test_the_cosine_schedule_rises_and_falls_to_0():
    config = TrainConfig(lr=0.1, epochs=4, lr_schedule="cosine", warmup=0.25)
    rates = [config.lr_at(epoch, step, 10) for epoch in range(4) for step in range(10)]
    assert rates[:10] == pytest.approx([0.01 * step for step in range(1, 11)]) and rates[10] == 0.1
    assert rates[25] == pytest.approx(0.05) and rates[9:] == sorted(rates[9:], reverse=True) and 0 < rates[-1] < 0.001
    halved = TrainConfig(lr=0.1, epochs=4, lr_milestones=(2,), warmup=0.25)
    rates = [halved.lr_at(epoch, step, 10) for epoch in range(4) for step in range(10)]
    assert rates[4] == pytest.approx(0.05) and rates[9:20] == [0.1] * 11 and rates[20:] == [0.05] * 20


def test_a_run_with_the_cosine_schedule_keeps_its_length(data, tmp_path, capsys):
    out, options = tmp_path / "out", ("--lr-schedule", "cosine", "--batch-size", "14")
    assert run_here(capsys, data, out, *options, "--epochs", "2")[0] == 0
    assert log(out)[-1]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * 11 / 12)) / 2)  # of the last of 12 steps
    status, _, errors = run_here(capsys, data, out, *options, "--epochs", "3", "--resume")
    assert status == 1 and "epochs was 2 and is now 3" in errors
    status, _, errors = run_here(capsys, data, tmp_path / "new", *options, "--lr-milestones", "3")
    assert status == 1 and "lr-milestones does not apply to the cosine schedule" in errors


def test_a_full_disk_keeps_the_last_checkpoint(data, tmp_path):
    """A limit on the size of files simulates the full disk: the run ends with a message and can be resumed."""
    out = tmp_path / "run"
    run(data, out, "--epochs", "1")
    before = (out / "checkpoint.pt").read_bytes()
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)); "
        "from overfeat.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    more = [str(part) for part in flags(data, out, "--epochs", "2", "--resume")]
    done = subprocess.run([sys.executable, "-c", code, *more], env=environment(), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert (out / "checkpoint.pt").read_bytes() == before and not list(out.glob(".part-*"))
    run(data, out, "--epochs", "2", "--resume")
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
