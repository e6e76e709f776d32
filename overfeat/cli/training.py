"""What the heads of `overfeat train` share: the flags of the loop, and how its help looks."""

import argparse
import os
from pathlib import Path

from overfeat.errors import InputError
from overfeat.training.config import DTYPES, OPTIMIZERS, TrainConfig

DEFAULTS = TrainConfig()


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or isinstance(action, argparse._StoreTrueAction):
            return action.help
        return super()._get_help_string(action)


def add_loop(parser: argparse.ArgumentParser) -> None:
    """The flags that every head has: `TrainConfig`, --out and --resume."""
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="where log, checkpoint and nets go")
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on where the run in --out was interrupted; "
        "to the same weights on a CPU with as many processes as before",
    )
    run.add_argument("--epochs", type=int, default=DEFAULTS.epochs, metavar="N", help="passes over the samples")
    run.add_argument("--batch", type=int, default=DEFAULTS.batch, metavar="N", help="samples a step, on all GPUs")
    run.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default=DEFAULTS.optimizer, help="what takes the steps")
    run.add_argument("--lr", type=float, default=DEFAULTS.lr, metavar="X", help="learning rate at the start")
    run.add_argument("--momentum", type=float, default=DEFAULTS.momentum, metavar="X", help="of SGD")
    run.add_argument(
        "--weight-decay", type=float, default=DEFAULTS.weight_decay, metavar="X", help="of weights and biases"
    )
    run.add_argument(
        "--lr-milestones",
        type=epochs,
        default=",".join(map(str, DEFAULTS.lr_milestones)),
        metavar="N,N,...",
        help="halve the rate after these epochs; '' for never",
    )
    run.add_argument("--seed", type=int, default=DEFAULTS.seed, metavar="N", help="of weights, order, crops, dropout")
    run.add_argument("--workers", type=int, default=DEFAULTS.workers, metavar="N", help="processes that read images")
    run.add_argument("--precision", choices=tuple(DTYPES), default=DEFAULTS.precision, help="of the passes")
    run.add_argument("--device", default=DEFAULTS.device, help="cpu, cuda, cuda:1; auto: a GPU where there is one")
    run.add_argument(
        "--checkpoint-steps",
        type=int,
        default=DEFAULTS.checkpoint_steps,
        metavar="N",
        help="steps between checkpoints within an epoch",
    )


def config_of(args: argparse.Namespace) -> TrainConfig:
    """The settings that `add_loop` has flags for."""
    return TrainConfig(**{name: getattr(args, name) for name in TrainConfig.__dataclass_fields__})


def check_dropout(share: float) -> None:
    """Raises InputError unless it is one."""
    if not 0 <= share < 1:
        raise InputError(f"--dropout is at least 0 and less than 1, not {share}")


def tell(*lines: str) -> None:
    """Print what is about to be trained, in one process of torchrun's."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(*lines, sep="\n", flush=True)


def epochs(text: str) -> tuple[int, ...]:
    """An argparse type: "30,50" as (30, 50)."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of epochs such as 30,50,60")
    return tuple(int(part) for part in parts)
