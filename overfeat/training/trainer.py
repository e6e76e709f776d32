"""One training loop for all heads: schedule, checkpoint, exact resume, torchrun (section 3.1)."""

import json
import math
import os
import pickle
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from overfeat.errors import InputError
from overfeat.files import atomic_write, ensure_dir
from overfeat.training.config import DTYPES, OPTIMIZERS, TrainConfig, flag
from overfeat.training.distributed import (
    add,
    all_reduce_sum,
    distributed_session,
    rank_and_world_size,
    rank_zero_only,
    to_device,
)
from overfeat.training.sampler import ResumableBatchSampler, SkippedFiles, derive_seed
from overfeat.training.task import Task

CHECK_EVERY = 10  # steps between looks at the loss; a look makes the host wait for a GPU
RESUMABLE = ("epochs", "workers", "device", "checkpoint_steps")  # when a run is resumed
CHECKPOINT, LOG, LAST, BEST = "checkpoint.pt", "log.jsonl", "net.safetensors", "best.safetensors"


def train(task: Task, config: TrainConfig, out: str | os.PathLike, resume: bool = False) -> list[dict]:
    """Train, and write log.jsonl, checkpoint.pt, net.safetensors and best.safetensors into `out`.

    resume: go on where the run that wrote checkpoint.pt was interrupted, to the same weights as
    without the interruption. Under torchrun every process calls this. Gives the log, a dict an
    epoch. Raises InputError for settings that do not fit together or to the checkpoint, for an
    `out` that holds another run, and for a loss that is no longer a number.
    """
    with distributed_session(config.device) as device:
        return _Run(task, config, Path(out), device).go(resume)


class _Run:
    """The state of one training run; `epoch` and `step` count what is done, from 0."""

    def __init__(self, task: Task, config: TrainConfig, out: Path, device: torch.device):
        self.task, self.config, self.out, self.device = task, config, out, device
        self.rank, self.world = rank_and_world_size()
        if config.precision == "float16" and device.type != "cuda":
            raise InputError("--precision float16 needs a GPU; on a CPU use bfloat16 or float32")
        self.module = task.module.to(device)
        self.weights = [weight for weight in self.module.parameters() if weight.requires_grad]
        self.optimizer = OPTIMIZERS[config.optimizer](self.weights, config)
        self.scaler = torch.amp.GradScaler("cuda", enabled=config.precision == "float16")
        self.replica = self.module
        if self.world > 1:
            # 1x1 layers have two equal memory formats; DDP takes them for different and copies.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            indices = None if device.index is None else [device.index]
            self.replica = DistributedDataParallel(self.module, device_ids=indices)
        data = task.dataset()
        order = getattr(data, "order", torch.randperm)
        self.sampler = ResumableBatchSampler(
            len(data), self._batch(len(data)), config.seed, self.rank, self.world, order
        )
        self.loader = DataLoader(
            data,
            batch_sampler=self.sampler,
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            collate_fn=task.collate,
            pin_memory=device.type == "cuda",
        )
        self.epoch = self.step = 0
        self.sums: dict = {}
        self.seconds, self.started = 0.0, time.perf_counter()
        self.best: float | None = None
        self.unreadable = SkippedFiles()
        self.log: list[dict] = []

    def _batch(self, samples: int) -> int:
        batch = min(self.config.batch, samples - samples % self.world)
        if batch < 1:
            raise InputError(f"{samples} samples are too few for {self.world} processes")
        if batch % self.world:
            raise InputError(
                f"--batch {batch} does not divide among {self.world} processes; choose a multiple of {self.world}"
            )
        if batch < self.config.batch and self.rank == 0:
            print(f"one epoch has {samples} samples; --batch shrinks to {batch}", file=sys.stderr)
        return batch

    def go(self, resume: bool) -> list[dict]:
        if resume:
            self._load()
            rank_zero_only(self._cut_log)
        else:
            rank_zero_only(self._new_folder)
            self._checkpoint()  # so that --resume works from the first second on
        while self.epoch < self.config.epochs:
            self._epoch()
        rank_zero_only(lambda: self.task.save(self.out / LAST))
        return self.log

    def _epoch(self) -> None:
        self.started = time.perf_counter()
        done, rate = self.step, self.config.rate(self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        self.sampler.epoch, self.sampler.start = self.epoch, self.step
        with tqdm(
            desc=f"epoch {self.epoch + 1}/{self.config.epochs}",
            initial=self.step,
            total=self.sampler.steps,
            unit="batch",
            leave=False,
            disable=True if self.rank else None,  # None: no bar where stderr is a file
        ) as bar:
            for batch in self.loader:
                self._step(batch)
                self.step += 1
                bar.update()
                if self.step % CHECK_EVERY == 0:
                    bar.set_postfix(loss=f"{self._means()['loss']:.3f}", refresh=False)
                if self.step % self.config.checkpoint_steps == 0 and self.step < self.sampler.steps:
                    self._checkpoint()
        means = {f"train_{key}": value for key, value in self._means().items()}
        self._check_weights()
        speed = (self.step - done) * self.sampler.batch / (time.perf_counter() - self.started)
        self._finish({"epoch": self.epoch + 1, "lr": rate, **means, **self._validate()}, speed)

    def _step(self, batch: object) -> None:
        # Seeded for each step, so that dropout does not depend on where a run was interrupted.
        torch.manual_seed(derive_seed(self.config.seed, self.epoch, self.step, self.rank))
        self.unreadable.record(self.loader.dataset, batch)
        with self._autocast():
            loss, sums = self.task.loss(self.replica, to_device(batch, self.device))
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        add(self.sums, sums)

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES[self.config.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def _means(self) -> dict[str, float]:
        """Means over the epoch so far and over all processes."""
        sums = all_reduce_sum(self.sums)
        samples = sums.pop("samples")
        if self.step == self.sampler.steps and not samples:
            raise InputError(
                "no sample had anything to learn from; do the boxes, the sizes of the images and the net's fit?"
            )
        if not all(math.isfinite(value) for value in sums.values()):
            raise self._diverged(f"the loss became {sums['loss']}")
        return {key: value / max(1, samples) for key, value in sums.items()}

    def _check_weights(self) -> None:
        if not all(weight.isfinite().all() for weight in self.weights):
            raise self._diverged("the weights became infinite or NaN")

    def _diverged(self, what: str) -> InputError:
        return InputError(
            f"epoch {self.epoch + 1}, batch {self.step}: {what}; lower --lr ({self.config.lr}) or change the "
            f"initial weights, and train anew in another --out. {self.out / CHECKPOINT} is as it was before"
        )

    @torch.no_grad()
    def _validate(self) -> dict[str, object]:
        self.module.eval()
        with self._autocast():
            figures = self.task.validate()
        if not all(math.isfinite(value) for value in figures.values() if isinstance(value, float)):
            raise self._diverged("the validation figures became infinite or NaN")
        return figures

    def _finish(self, record: dict, speed: float) -> None:
        """Log the epoch, then keep its weights: a log line without its checkpoint is cut by --resume."""
        self.unreadable.files.update(record.pop("unreadable", []))
        record["samples"] = self.sampler.steps * self.sampler.batch
        record["samples_per_second"] = round(speed, 1)
        record["seconds"] = round(self._seconds(), 2)
        record["unreadable"] = self.unreadable.everywhere()
        self.log.append(record)
        rank_zero_only(self._write_record)
        judged = record.get(self.task.monitor)
        if judged is not None and (self.best is None or judged < self.best):
            self.best = judged
            rank_zero_only(lambda: self.task.save(self.out / BEST))
        self.epoch, self.step, self.sums, self.seconds = self.epoch + 1, 0, {}, 0.0
        self.started = time.perf_counter()
        self._checkpoint()

    def _seconds(self) -> float:
        """Time spent on this epoch, by an interrupted run too."""
        return self.seconds + time.perf_counter() - self.started

    def _write_record(self) -> None:
        record = self.log[-1]
        try:
            with open(self.out / LOG, "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(f"{self.out / LOG}: cannot be written ({error.strerror or error})") from error
        print(format_record(record, self.config.epochs), flush=True)

    def _new_folder(self) -> None:
        for name in (CHECKPOINT, LOG, LAST, BEST):
            if (self.out / name).exists():
                raise InputError(f"{self.out} holds a run already ({name}); use --resume, or another --out")
        ensure_dir(self.out)

    def _settings(self) -> dict:
        """Whatever decides the result, under the names of its flags."""
        config = {key: value for key, value in asdict(self.config).items() if key not in RESUMABLE}
        return {**self.task.settings, **config, "lr_milestones": list(self.config.lr_milestones)}

    def _checkpoint(self) -> None:
        self._check_weights()
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "settings": self._settings(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": all_reduce_sum(self.sums),
            "seconds": self._seconds(),
            "best": self.best,
            "unreadable": self.unreadable.everywhere(),
        }

        def write() -> None:
            with atomic_write(self.out / CHECKPOINT) as part:
                try:
                    torch.save(state, part)
                except RuntimeError as error:  # torch's word for a disk that is full
                    raise OSError(str(error).splitlines()[0]) from error

        rank_zero_only(write)

    def _load(self) -> None:
        path = self.out / CHECKPOINT
        if not path.is_file():
            raise InputError(f"{path}: no such file, so there is nothing to --resume; leave the flag out")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._compare(state["settings"])
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
            self.sums = state["sums"] if self.rank == 0 else {}
            self.best, self.unreadable = state["best"], SkippedFiles(state["unreadable"])
        except InputError:
            raise
        except (
            OSError, EOFError, LookupError, TypeError, AttributeError, RuntimeError, ValueError, pickle.UnpicklingError
        ) as error:  # fmt: skip
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{path}: not a checkpoint of this program, or damaged ({why}); train anew") from error
        if self.epoch > self.config.epochs or (self.epoch == self.config.epochs and self.step):
            raise InputError(f"--epochs {self.config.epochs}: the run in {self.out} has done {self.epoch}")
        self.log = self._read_log()

    def _compare(self, old: dict) -> None:
        new = self._settings()
        changed = [
            f"{flag(name)} was {old.get(name)} and is now {new.get(name)}"
            for name in dict.fromkeys([*old, *new])
            if old.get(name) != new.get(name)
        ]
        if changed:
            raise InputError(
                f"{self.out / CHECKPOINT} belongs to a run with other settings: {'; '.join(changed)}. "
                "Resume with the same, or train anew in another --out"
            )

    def _read_log(self) -> list[dict]:
        """The log of the epochs that the checkpoint includes; what follows is done again."""
        log: list[dict] = []
        path = self.out / LOG
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                break  # the end of a line that a killed run was writing
            if not isinstance(record, dict) or record.get("epoch", math.inf) > self.epoch:
                break
            log.append(record)
        return log

    def _cut_log(self) -> None:
        with atomic_write(self.out / LOG) as part:
            part.write_text("".join(json.dumps(record) + "\n" for record in self.log), encoding="utf-8")


def format_record(record: dict, epochs: int) -> str:
    """A line of the log for people: errors in percent."""
    parts = [f"epoch {record['epoch']}/{epochs}"]
    for key, value in record.items():
        name = key.replace("_", " ")
        if key.endswith("error"):
            parts.append(f"{name} {100 * value:.2f} %")
        elif isinstance(value, float):
            parts.append(f"{name} {value:.4g}")
    if record["unreadable"]:
        parts.append(f"{len(record['unreadable'])} files left out")
    return "  ".join(parts)
