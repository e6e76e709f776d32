"""The training loop of all tasks: schedule, checkpoints, exact resume, torchrun (section 3.1)."""

import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from overfeat.errors import ArgumentError, InputError, printable
from overfeat.files import atomic_write
from overfeat.training import distributed
from overfeat.training.config import TrainConfig
from overfeat.training.distributed import all_reduce_sum, rank_zero_only
from overfeat.training.forecast import Forecast
from overfeat.training.resume import BEST, CHECKPOINT, LAST, LOCK_SECONDS, RunFolder, damaged
from overfeat.training.sampler import ResumableBatchSampler, derive_seed, make_loader
from overfeat.training.task import Task

CHECK_EVERY = 10  # steps between checks of the loss, each of which synchronizes with the GPU
Groups = list[dict[str, list[nn.Parameter]]]
OPTIMIZERS: dict[str, Callable[[Groups, TrainConfig], Optimizer]] = {
    "sgd": lambda groups, c: torch.optim.SGD(groups, c.lr, c.momentum, weight_decay=c.weight_decay),
    "adagrad": lambda groups, c: torch.optim.Adagrad(groups, c.lr, weight_decay=c.weight_decay),
    "adam": lambda groups, c: torch.optim.Adam(groups, c.lr, weight_decay=c.weight_decay),
    "adamw": lambda groups, c: torch.optim.AdamW(groups, c.lr, weight_decay=c.weight_decay),
}


def train(task: Task, out: str | os.PathLike, *, resume: bool = False) -> list[dict]:
    """Train, and write log.jsonl, checkpoint.pt, net.safetensors and best.safetensors into `out`.

    The nets, of the last epoch and of the best, are written after every epoch. Under torchrun every process calls this.

    Args:
        task: What to train, with the options of the loop.
        out: A new folder, or with `resume` that of the interrupted run.
        resume: Continue from checkpoint.pt, to the same weights as without the interruption.

    Returns:
        The log, a dict per epoch.

    Raises:
        InputError: Options that do not fit together or do not match the checkpoint, an `out` that holds another run,
            or a loss that is no longer finite.
    """
    with distributed.distributed_session(task.train.device) as device:
        return Trainer(task, Path(out), device).fit(resume=resume)


class Trainer:
    """The state of one training run; `epoch` and `step` count completed ones, from 0."""

    def __init__(self, task: Task, out: Path, device: torch.device):
        self.task, self.config, self.folder, self.device = task, task.train, RunFolder(out), device
        self.rank, self.world = distributed.rank_and_world_size()
        if self.config.precision == "float16" and device.type != "cuda":
            raise ArgumentError("precision", "float16 needs a GPU; on a CPU use bfloat16 or float32")
        if self.config.epochs is None:
            raise ArgumentError("epochs", "must be a number when the training starts")
        self.epochs = self.config.epochs
        self.module = task.module.to(device)
        self.weights = [weight for weight in self.module.parameters() if weight.requires_grad]
        groups, self.lr_factors = parameter_groups(task, self.weights)
        self.optimizer = OPTIMIZERS[self.config.optimizer](groups, self.config)
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.config.precision == "float16")
        self.replica: torch.nn.Module = self.module
        if self.world > 1:
            # 1x1 layers have two equivalent memory formats; DDP treats them as different and copies.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            indices = None if device.index is None else [device.index]
            self.replica = DistributedDataParallel(self.module, device_ids=indices)
        self.sampler, self.loader = self._loader()
        self.epoch = self.step = 0
        self.sums: dict[str, Tensor | float] = {}
        self.seconds, self.started = 0.0, time.perf_counter()
        self.best: float | None = None
        self.log: list[dict] = []
        self.finished = False  # whether the nets are complete
        self.forecast: Forecast

    def fit(self, *, resume: bool = False) -> list[dict]:
        """Train all remaining epochs; see `train`."""
        try:
            if resume:
                rank_zero_only(lambda: self.folder.claim(LOCK_SECONDS))
                self._load()
                rank_zero_only(lambda: self.folder.rewrite_log(self.log))
            else:
                rank_zero_only(self.folder.create)
                self._checkpoint()  # so that the run can be resumed from the first second on
            if self.finished and self.epoch == self.epochs:
                if self.rank == 0:
                    print(f"{self.folder.path}: all epochs ({self.epochs}) are done already")
                return self.log
            self._train()
            return self.log
        finally:
            self.folder.release()

    def _train(self) -> None:
        """The remaining epochs, and what completes the nets after them."""
        self.forecast = self._forecast()
        while self.epoch < self.epochs:
            self._epoch()
        rank_zero_only(self._finish_nets)
        self.finished = True
        self._checkpoint()

    def _forecast(self) -> Forecast:
        steps, validation = self.sampler.steps, len(self.task.validation or ())
        remaining = (self.epochs - self.epoch) * steps - self.step
        return Forecast(remaining, steps, -(-validation // self.config.batch_size))

    def _finish_nets(self) -> None:
        """Write the last net and complete both; the best one is a copy where it is the last."""
        last, best = self.folder.path / LAST, self.folder.path / BEST
        self.task.save(last)
        self.task.finish(last)
        if not best.exists():
            return
        epochs = [record["epoch"] for record in self.log if record.get(self.task.monitor) == self.best]
        if epochs[:1] == [self.epoch]:
            with atomic_write(best) as temporary:
                shutil.copyfile(last, temporary)
        else:
            self.task.finish(best)

    def _loader(self) -> tuple[ResumableBatchSampler, DataLoader]:
        data, order = self.task.dataset, getattr(self.task.dataset, "order", torch.randperm)
        batch_size = self._batch_size(len(data))
        sampler = ResumableBatchSampler(len(data), batch_size, self.config.seed, self.rank, self.world, order=order)
        pin = self.device.type == "cuda"
        return sampler, make_loader(data, self.config, self.task.collate, batch_sampler=sampler, pin_memory=pin)

    def _batch_size(self, samples: int) -> int:
        batch_size = min(self.config.batch_size, samples - samples % self.world)
        if batch_size < 1:
            raise InputError(f"{samples} samples are too few for {self.world} processes")
        if batch_size % self.world:
            raise ArgumentError("batch_size", f"must be a multiple of {self.world}, the processes, not {batch_size}")
        if batch_size < self.config.batch_size and self.rank == 0:
            print(f"one epoch has {samples} samples; the batch size shrinks to {batch_size}", file=sys.stderr)
        return batch_size

    def _epoch(self) -> None:
        self.started = time.perf_counter()
        first = self.step
        self.module.train()
        self.sampler.epoch, self.sampler.start = self.epoch, self.step
        title, quiet = f"epoch {self.epoch + 1}/{self.epochs}", True if self.rank else None  # None: off in files
        steps = self.sampler.steps
        with tqdm(desc=title, initial=self.step, total=steps, unit="batch", leave=False, disable=quiet) as bar:
            for batch in self.loader:
                self._step(batch)
                self.step += 1
                bar.update()
                self._measure_step()
                if self.step % CHECK_EVERY == 0:
                    bar.set_postfix(loss=f"{self._means()['loss']:.3f}", refresh=False)
                if self.step % self.config.checkpoint_steps == 0 and self.step < steps:
                    self._checkpoint()
        means = {f"train_{key}": value for key, value in self._means().items()}
        self._check_weights()
        speed = (self.step - first) * self.sampler.batch_size / (time.perf_counter() - self.started)
        lr = self.config.lr_at(self.epoch, steps - 1, steps)
        self._finish({"epoch": self.epoch + 1, "lr": lr, **means, **self._validate()}, speed)

    def _step(self, batch: dict) -> None:
        # Seeded at each step, so that dropout does not depend on where a run was interrupted.
        torch.manual_seed(derive_seed(self.config.seed, self.epoch, self.step, self.rank))
        self._start_step()
        self.task.skipped.record(self.loader.dataset, batch)
        with self._autocast():
            loss, sums = self.task.loss(self.replica, distributed.to_device(batch, self.device))
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        distributed.add(self.sums, sums)

    def _measure_step(self) -> None:
        """Print the forecast when it is due."""
        if not self.forecast.pending:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        line = self.forecast.step()
        if line and self.rank == 0:
            tqdm.write(line)
            sys.stdout.flush()

    def _start_step(self) -> None:
        """Set the learning rates and the task's progress."""
        steps = self.sampler.steps
        self.task.progress = (self.epoch * steps + self.step) / (self.epochs * steps)
        lr = self.config.lr_at(self.epoch, self.step, steps)
        for group, factor in zip(self.optimizer.param_groups, self.lr_factors, strict=True):
            group["lr"] = lr * factor

    def _autocast(self) -> torch.autocast:
        dtype = getattr(torch, self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def _means(self) -> dict[str, float]:
        """Means over the epoch so far and over all processes."""
        sums = all_reduce_sum(self.sums)
        samples = sums.pop("samples")
        if self.step == self.sampler.steps and not samples:
            advice = "check that object sizes, image sizes and the network's window are compatible"
            raise InputError(f"no training sample contained a positive window; {advice}")
        if not all(math.isfinite(value) for value in sums.values()):
            raise self._diverged(f"the loss became {sums['loss']}")
        return {key: value / max(1, samples) for key, value in sums.items()}

    def _check_weights(self) -> None:
        if not all(weight.isfinite().all() for weight in self.weights):
            raise self._diverged("the weights became infinite or NaN")

    def _diverged(self, what: str) -> InputError:
        return InputError(
            f"epoch {self.epoch + 1}, batch {self.step}: {what}; lower the learning rate (lr {self.config.lr}) or "
            f"change the initial weights, and train in another folder. {self.folder.path / CHECKPOINT} is unchanged"
        )

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        self.module.eval()
        with self._autocast():
            figures = self.task.validate()
        if not all(math.isfinite(value) for value in figures.values()):
            raise self._diverged("the validation figures became infinite or NaN")
        return figures

    def _finish(self, record: dict, speed: float) -> None:
        """Log the epoch, then write its nets and checkpoint: resuming cuts a log line without its checkpoint."""
        seen, elapsed = self.sampler.steps * self.sampler.batch_size, round(self._elapsed(), 2)
        record |= {"samples": seen, "samples_per_second": round(speed, 1), "seconds": elapsed}
        record["unreadable"] = self.task.skipped.everywhere()
        warning_lines = self.task.warnings(record, self.log)
        if warning_lines:
            record["warnings"] = warning_lines
        self.log.append(record)
        rank_zero_only(lambda: self.folder.append_log(record))
        if self.rank == 0:
            print(format_record(record, self.epochs), flush=True)
            for line in warning_lines:
                print(f"warning: {printable(line)}", flush=True)
        figure = record.get(self.task.monitor)
        if figure is not None and (self.best is None or figure < self.best):
            self.best = figure
            rank_zero_only(lambda: self.task.save(self.folder.path / BEST))
        rank_zero_only(lambda: self.task.save(self.folder.path / LAST))
        self.epoch, self.step, self.sums, self.seconds = self.epoch + 1, 0, {}, 0.0
        self.started = time.perf_counter()
        self._checkpoint()
        if self.forecast.pending:
            self.forecast.end_epoch()

    def _elapsed(self) -> float:
        """Seconds spent on this epoch, by an interrupted run too."""
        return self.seconds + time.perf_counter() - self.started

    def _checkpoint(self) -> None:
        self._check_weights()
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "fingerprint": self.task.fingerprint,
            "epoch": self.epoch,
            "step": self.step,
            "sums": all_reduce_sum(self.sums),
            "seconds": self._elapsed(),
            "best": self.best,
            "finished": self.finished,
            "unreadable": self.task.skipped.everywhere(),
        }
        rank_zero_only(lambda: self.folder.write_checkpoint(state))

    def _load(self) -> None:
        state = self.folder.read_checkpoint(self.task.fingerprint)
        try:
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
            self.sums = state["sums"] if self.rank == 0 else {}
            self.best, self.finished = state["best"], state.get("finished", False)
            self.task.skipped.files.update(state["unreadable"])
        except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise damaged(self.folder.path / CHECKPOINT, error) from error
        if self.epoch > self.epochs or (self.epoch == self.epochs and self.step):
            completed = f"the {self.epoch} that {self.folder.path} has completed"
            raise ArgumentError("epochs", f"{self.epochs} are fewer than {completed}")
        self.log = self.folder.read_log(self.epoch)


def parameter_groups(task: Task, trained: list[nn.Parameter]) -> tuple[Groups, list[float]]:
    """The trained weights of a task in an optimizer's groups, and the factor of the learning rate of each.

    Raises ValueError unless the task's groups hold each of the trained weights once.
    """
    groups = [([weight for weight in weights if weight.requires_grad], f) for weights, f in task.parameter_groups()]
    groups = [(group, factor) for group, factor in groups if group]
    if sorted(id(weight) for group, _ in groups for weight in group) != sorted(map(id, trained)):
        raise ValueError("parameter_groups must hold every weight that is trained once")
    return [{"params": group} for group, _ in groups], [factor for _, factor in groups]


def format_record(record: dict, epochs: int) -> str:
    """A record of the log as a line of text, errors in percent."""
    columns = [f"epoch {record['epoch']}/{epochs}"]
    for key, value in record.items():
        name = key.replace("_", " ")
        if key.endswith("error"):
            columns.append(f"{name} {100 * value:.2f} %")
        elif isinstance(value, float):
            columns.append(f"{name} {value:.4g}")
    if record["unreadable"]:
        columns.append(f"{len(record['unreadable'])} files left out")
    return "  ".join(columns)
