"""What a task decides of its training, and what it is given: learning rates by group of weights, progress."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from overfeat.errors import InputError
from overfeat.options import Options
from overfeat.training.config import TrainConfig
from overfeat.training.task import Task
from overfeat.training.trainer import train


class Points:
    """Four points of y = 2 x + 1."""

    cache = SimpleNamespace(check=lambda: None)

    def __len__(self):
        return 4

    def __getitem__(self, key):
        return {"x": float(key[1]), "y": 2.0 * key[1] + 1}


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
        torch.save(self.module.state_dict(), path)


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
