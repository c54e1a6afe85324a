"""Run folders: what a run leaves on disk, and how it goes on after a kill.

    config.yaml           the resolved configuration     environment.json   versions, command
    wording.txt           the words of its prompts, if they are not miniact's
    trajectories.jsonl    expert trajectories            pairs.jsonl        contrastive pairs
    metrics.jsonl         one line per training step     tensorboard/       the same, as events
    stages/<k>-<name>/    adapter/ when done, checkpoint-<step>/ before; eval.json, episodes.jsonl,
                          judgements.jsonl (the critic's held-out answers)
    samples/<k>-<name>.jsonl   prompts, replies, rewards, advantages
    logged.json           evaluations that the loggers have
    results.json, results.txt, curves.png                  the final table and its picture

Whatever is written appears whole or not at all. Every batch, order and sample is a function of
(seed, stage, step), so a checkpoint is weights + optimizer + step number, and a run that was killed
ends with the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import filelock

from miniact import Interrupted, UserError
from miniact.runs.files import read_json


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed."""
    installed = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def number_of(stage: str) -> int:
    """'10-rl' → 10: the order of stages is that of their numbers, not of their names."""
    return int(stage.partition("-")[0])


@contextlib.contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{folder}: the disk is full; the last checkpoint is intact: free some space, then "
            f"miniact run --resume {folder}"
        ) from None


class Stopper:
    """Turns Ctrl-C and SIGTERM into a stop at the next step; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Stopper:
        self._before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
            for number in self._before:
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ValueError):
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        if self.asked:
            raise Interrupted


@contextlib.contextmanager
def locked(file: Path, busy: str) -> Iterator[None]:
    """Keep other processes out as long as it is open; UserError `busy` if one is in there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(busy) from None
    try:
        yield
    finally:
        lock.release()


class RunFolder:
    """One run's folder, locked against a second writer while it is open.

    log_to: what its metrics also go to; see loggers.py.
    """

    def __init__(self, path: Path, log_to: Sequence[str] = ("tensorboard",)) -> None:
        self.path, self.log_to = path, log_to
        path.mkdir(parents=True, exist_ok=True)
        self._lock = locked(
            path / ".lock",
            f"{path}: another miniact is writing to this run folder; wait for it, or choose "
            "another --out",
        )
        self.stopper = Stopper()

    def __enter__(self) -> RunFolder:
        self._lock.__enter__()
        self._sweep()
        self.stopper.__enter__()
        return self

    def _sweep(self) -> None:
        """Remove what a kill left: unfinished parts, and checkpoints of stages that are done."""
        if not (self.path / "config.yaml").is_file():
            return  # not a run's folder yet: whose files these are is not known
        leftovers = [*self.path.glob("*.part"), *self.path.glob("stages/*/*.part")]
        for adapter in self.path.glob("stages/*/adapter"):
            leftovers += adapter.parent.glob("checkpoint-*")
        for path in leftovers:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def __exit__(self, *exc: object) -> None:
        self.stopper.__exit__(*exc)
        self._lock.__exit__(None, None, None)

    def shared_seconds(self) -> dict[str, float]:
        """What the parts took that another run of a comparison did (see compare.py)."""
        file = self.path / "shared.json"
        return read_json(file).get("seconds", {}) if file.is_file() else {}

    def stage(self, number: int, name: str) -> Path:
        return self.path / "stages" / f"{number}-{name}"
