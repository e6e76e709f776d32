"""What a task decides of its training: learning rates by group of weights, warnings, how nets are completed."""

import json
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from overfeat.errors import InputError
from overfeat.options import Options
from overfeat.training.config import TrainConfig
from overfeat.training.forecast import Forecast, format_duration, format_time
from overfeat.training.task import Task
from overfeat.training.trainer import train


class Points:
    """Four points of y = 2 x + 1."""

    cache = SimpleNamespace(check=lambda: None)

    def __len__(self):
        return 4

    def __getitem__(self, key):
        return {"x": float(key[1]), "y": 2.0 * key[1] + 1}


def read(path):
    """The numbers that LineTask saves."""
    return json.loads(path.read_text())


class LineTask(Task):
    """Fits y = w x + b; c is frozen."""

    groups = (("c", 3.0), ("w", 1.0), ("b", 0.1))

    def __init__(self, **changes):
        module = nn.Module()
        for name in "wbc":
            module.register_parameter(name, nn.Parameter(torch.zeros(1), requires_grad=name != "c"))
        options = {"epochs": 2, "batch_size": 2, "num_workers": 0, "device": "cpu", "lr": 0.01, "momentum": 0}
        super().__init__(module, Points(), None, Options(), TrainConfig(**options | changes), {})

    def collate(self, samples):
        return default_collate(samples)

    def parameter_groups(self):
        return [([getattr(self.module, name)], factor) for name, factor in self.groups]

    def loss(self, module, batch):
        if torch.is_grad_enabled():
            self.seen = [*getattr(self, "seen", []), self.progress]
        loss = ((module.w * batch["x"] + module.b - batch["y"]) ** 2).mean()
        return loss, {"samples": len(batch["x"]), "loss": loss.detach() * len(batch["x"])}

    def save(self, path):
        path.write_text(json.dumps({name: weight.item() for name, weight in self.module.named_parameters()}))


class JudgedTask(LineTask):
    """Has given validation losses, and warns where the loss rises; a net is completed by how often it was."""

    fails = False

    def __init__(self, *losses):
        super().__init__(epochs=len(losses), batch_size=4)
        self.losses = losses

    def validate(self):
        return {"validation_loss": self.losses[round(self.progress * len(self.losses))]}  # one step an epoch

    def warnings(self, record, log):
        rises = log and record["validation_loss"] > log[-1]["validation_loss"]
        return [f"the loss rises in epoch {record['epoch']}"] if rises else []

    def finish(self, path):
        if self.fails:
            raise InputError("stopped while the nets were completed")
        net = read(path)
        path.write_text(json.dumps(net | {"finished": net.get("finished", 0) + 1}))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_groups_of_weights_have_their_own_learning_rates(tmp_path, optimizer):
    """Adam's first step is the learning rate, whatever the gradient; SGD's is proportional to the gradient."""
    task = LineTask(epochs=1, batch_size=4, optimizer=optimizer, weight_decay=0)
    train(task, tmp_path / "run")
    w, b, c = (float(getattr(task.module, name).detach()) for name in "wbc")
    gradients = {"w": -17.0, "b": -8.0}  # of the mean squared error at w = b = 0
    steps = {name: 1.0 if optimizer == "adamw" else -gradient for name, gradient in gradients.items()}
    assert (w, b, c) == (pytest.approx(0.01 * steps["w"]), pytest.approx(0.001 * steps["b"]), 0)


@pytest.mark.parametrize("groups", [(("w", 1.0),), (("w", 1.0), ("b", 1.0), ("w", 0.1))], ids=["missing", "twice"])
def test_groups_hold_every_trained_weight_once(tmp_path, groups):
    task = LineTask()
    task.groups = groups
    with pytest.raises(ValueError, match="every weight that is trained once"):
        train(task, tmp_path / "run")


def test_the_number_of_epochs_is_known_when_the_training_starts(tmp_path):
    with pytest.raises(InputError, match="epochs must be a number"):
        train(LineTask(epochs=None), tmp_path / "run")


def test_progress_counts_the_steps_of_all_epochs(tmp_path):
    task = LineTask(epochs=2)
    train(task, tmp_path / "run")
    assert task.seen == [0, 0.25, 0.5, 0.75]
    resumed = LineTask(epochs=4)
    train(resumed, tmp_path / "run", resume=True)
    assert resumed.seen == [0.5, 0.625, 0.75, 0.875]


@pytest.mark.parametrize("steps", [1, 3, 4, 6])
def test_the_cosine_schedule_resumes_to_the_same_weights(tmp_path, steps):
    """Stopped in the first epoch, at its end or later; the schedule goes on at the same step."""

    class Interrupted(LineTask):
        def loss(self, module, batch):
            if len(getattr(self, "seen", [])) == steps:
                raise KeyboardInterrupt
            return super().loss(module, batch)

    options = {"epochs": 2, "batch_size": 1, "optimizer": "adamw", "lr_schedule": "cosine", "warmup": 0.3}
    complete, resumed = LineTask(**options), LineTask(**options, checkpoint_steps=1)
    expected = train(complete, tmp_path / "complete")
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(**options, checkpoint_steps=1), tmp_path / "run")
    log = train(resumed, tmp_path / "run", resume=True)
    assert resumed.seen == complete.seen[steps:]
    assert read(tmp_path / "run/net.safetensors") == read(tmp_path / "complete/net.safetensors")
    figures = [[(record["lr"], record["train_loss"]) for record in records] for records in (log, expected)]
    assert figures[0] == figures[1]


def test_nets_are_written_after_every_epoch(tmp_path):
    seen = []

    class Watched(JudgedTask):
        def warnings(self, record, log):
            seen.append({file.name: read(file)["w"] for file in sorted(tmp_path.glob("run/*.safetensors"))})
            return []

    task = Watched(3.0, 1.0, 2.0, 4.0)
    train(task, tmp_path / "run")
    assert [set(files) for files in seen] == [set(), *[{"net.safetensors", "best.safetensors"}] * 3]
    last, best = ([files[name] for files in seen[1:]] for name in ("net.safetensors", "best.safetensors"))
    assert len(set(last)) == 3 and best == [last[0], last[1], last[1]]


@pytest.mark.parametrize("losses", [(3.0, 1.0, 2.0), (3.0, 2.0, 1.0)], ids=["best is earlier", "best is last"])
def test_the_last_net_and_the_best_are_completed(tmp_path, losses, capsys):
    task, out = JudgedTask(*losses), tmp_path / "run"
    train(task, out)
    last, best = read(out / "net.safetensors"), read(out / "best.safetensors")
    assert last["w"] == float(task.module.w.detach()) and last["finished"] == best["finished"] == 1
    assert (best == last) == (losses[-1] == min(losses))
    capsys.readouterr()
    again = JudgedTask(*losses)
    again.fails = True  # where nets are completed
    assert len(train(again, out, resume=True)) == 3
    assert capsys.readouterr().out == f"{out}: all epochs (3) are done already\n"
    assert read(out / "net.safetensors") == last


def test_a_folder_has_one_run_at_a_time(tmp_path, monkeypatch):
    out = tmp_path / "run"

    class Second(LineTask):
        def loss(self, module, batch):
            with pytest.raises(InputError, match="another process trains there"):
                train(LineTask(), out, resume=True)
            with pytest.raises(InputError, match="another process trains there"):
                train(LineTask(), out)
            return super().loss(module, batch)

    monkeypatch.setattr("overfeat.training.trainer.LOCK_SECONDS", 0)
    assert len(train(Second(epochs=1), out)) == 1
    train(LineTask(epochs=2), out, resume=True)


def test_a_run_that_stops_while_nets_are_completed_is_resumed(tmp_path):
    task, out = JudgedTask(3.0, 1.0, 2.0), tmp_path / "run"
    task.fails = True
    with pytest.raises(InputError, match="stopped"):
        train(task, out)
    assert "w" in read(out / "net.safetensors") and "w" in read(out / "best.safetensors")
    log = train(JudgedTask(3.0, 1.0, 2.0), out, resume=True)
    assert len(log) == 3
    assert all(read(out / name)["finished"] == 1 for name in ("net.safetensors", "best.safetensors"))


def test_warnings_are_printed_and_logged(tmp_path, capsys):
    log = train(JudgedTask(3.0, 1.0, 2.0, 0.5), tmp_path / "run")
    expected = [None, None, ["the loss rises in epoch 3"], None]
    assert [record.get("warnings") for record in log] == expected
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line).get("warnings") for line in lines] == expected
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("warning")] == ["warning: the loss rises in epoch 3"]
    assert printed[printed.index("warning: the loss rises in epoch 3") - 1].startswith("epoch 3/4")


@pytest.mark.parametrize("epochs", [1, 2, 60])
def test_a_run_prints_one_forecast_and_so_does_a_resumed_one(tmp_path, capsys, epochs):
    def forecasts():
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("forecast: ")]

    train(LineTask(epochs=epochs), tmp_path / "run")
    assert len(forecasts()) == 1
    train(LineTask(epochs=epochs + 1), tmp_path / "run", resume=True)
    assert len(forecasts()) == 1
    train(LineTask(epochs=epochs + 1), tmp_path / "run", resume=True)
    assert not forecasts()


def lines_of(forecast, clock, epochs, steps, first, step, end):
    """What a forecast gives in a run whose first step, others and ends of epochs take these seconds."""
    lines = []
    for epoch in range(epochs):
        for i in range(steps):
            clock.now += first if epoch == i == 0 else step
            lines.append(forecast.step())
            if not forecast.pending:
                return lines
        clock.now += end
        forecast.end_epoch()
    return lines


def test_the_forecast_of_a_long_epoch():
    """700 steps of 1.2 s and, until one has ended, 100 batches of validation that take half of it: 15 min an epoch."""
    clock = SimpleNamespace(now=5.0)
    forecast = Forecast(7 * 700, 700, 100, lambda: clock.now)
    lines = lines_of(forecast, clock, 7, 700, 60, 1.2, 0)
    assert len(lines) == 20 and not any(lines[:-1])
    assert lines[-1].startswith("forecast: 1.2 s a step, 15 min an epoch, 1 h 45 min to go; done at about ")


def test_the_forecast_of_short_epochs_measures_validation():
    clock = SimpleNamespace(now=5.0)
    forecast = Forecast(10 * 5, 5, 100, lambda: clock.now)
    lines = lines_of(forecast, clock, 10, 5, 60, 0.5, 10)
    assert len(lines) == 20 and lines[-1].startswith("forecast: 0.5 s a step, 12 s an epoch, 85 s to go; ")
    clock.now, forecast = 5.0, Forecast(6, 3, 0, lambda: clock.now)
    lines = lines_of(forecast, clock, 2, 3, 60, 0.5, 10)
    assert len(lines) == 3 and lines[-1].startswith("forecast: 0.5 s a step, 1.5 s an epoch, 1.5 s to go; ")


def test_times_as_text():
    texts = {0.0123: "0.012 s", 9.94: "9.9 s", 9.96: "10 s", 119.4: "119 s", 119.6: "2 min", 14.4 * 60: "14 min"}
    texts |= {7199: "2 h 0 min", 6720: "1 h 52 min", 47.9 * 3600: "47 h 54 min", 51 * 3600: "2 d 3 h", 0: "0 s"}
    assert {seconds: format_duration(seconds) for seconds in texts} == texts
    now = datetime(2026, 1, 31, 23, 0)
    assert (format_time(now, 3000), format_time(now, 3660)) == ("23:50", "00:01 on 2026-02-01")
