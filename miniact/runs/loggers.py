"""Where metrics go besides metrics.jsonl: TensorBoard, trackio, Weights & Biases, or your own.

A logger is a context manager of (run folder, stage, first step) that yields log(figures, step). It
is opened once for each stage, and for each evaluation as the stage "evaluations", whose step is the
number of stages trained. Two are never open at once. What a resumed run logs again is what it
logged before, as every step is a function of seed, stage and step.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from miniact import UserError
from miniact.config.plugins import resolve

Log = Callable[[dict[str, float], int], None]
Logger = Callable[[Path, str, int], AbstractContextManager[Log]]
PROJECT = "miniact"  # the runs of all folders, grouped by folder


@contextmanager
def tensorboard(folder: Path, stage: str, start: int) -> Iterator[Log]:
    from tensorboardX import SummaryWriter

    events = str(folder / "tensorboard" / stage)
    unique = f".{start:07d}"  # or two that begin within one second would be one file
    writer = SummaryWriter(events, purge_step=start, filename_suffix=unique)

    def log(figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    with contextlib.closing(writer):
        yield log


@contextmanager
def trackio(folder: Path, stage: str, start: int) -> Iterator[Log]:
    import trackio

    group, name = _names(folder, stage)
    run = trackio.init(PROJECT, f"{group}/{name}", group, resume="allow", embed=False)
    yield from _until_finished(run)


@contextmanager
def wandb(folder: Path, stage: str, start: int) -> Iterator[Log]:
    import wandb

    group, name = _names(folder, stage)
    run = wandb.init(
        project=PROJECT, group=group, name=stage, id=name, resume="allow", dir=str(folder)
    )
    yield from _until_finished(run)


def _names(folder: Path, stage: str) -> tuple[str, str]:
    """The folder's name for people, and a name of the stage that no other run has."""
    config = folder / "config.yaml"
    began = config.stat().st_mtime_ns if config.is_file() else 0  # of the run, not of its resumes
    return "-".join(folder.resolve().parts[-2:]), f"{stage}-{began:x}"


def _until_finished(run: Any) -> Iterator[Log]:
    try:
        yield lambda figures, step: run.log(figures, step=step)
    finally:
        run.finish()


LOGGERS: dict[str, Logger] = {"tensorboard": tensorboard, "trackio": trackio, "wandb": wandb}
PACKAGES = {"tensorboard": "tensorboardX", "trackio": "trackio", "wandb": "wandb"}


def check_loggers(to: Sequence[str]) -> None:
    """UserError for a logger whose package is missing, before anything is made."""
    for name in to:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"log.to: {name} is not installed: pip install 'miniact[{name}]'")


@contextmanager
def logging(to: Sequence[str], folder: Path, stage: str, start: int) -> Iterator[Log]:
    """All loggers of a run as one. UserError where one cannot be opened."""
    with contextlib.ExitStack() as stack:
        logs: list[Log] = []
        for name in to:
            try:
                logger = LOGGERS[name] if name in LOGGERS else resolve("log.to", name)
                logs.append(stack.enter_context(logger(folder, stage, start)))
            except Exception as error:  # no login, no server, …: libraries raise many kinds
                reason = " ".join(str(error).split())
                raise UserError(f"log.to: {name} cannot be opened: {reason:.200}") from None

        def log(figures: dict[str, float], step: int) -> None:
            for each in logs:
                each(figures, step)

        yield log
