"""Run folders: what a run leaves on disk, and how it goes on after a kill.

    config.yaml           the resolved configuration     environment.json   versions, command
    trajectories.jsonl    expert trajectories            pairs.jsonl        contrastive pairs
    metrics.jsonl         one line per training step     tensorboard/       the same, as events
    stages/<k>-<name>/    adapter/ when done, checkpoint-<step>/ before; eval.json, episodes.jsonl
    samples/<k>-<name>.jsonl   prompts, replies, rewards, advantages
    results.json, results.txt, curves.png                  the final table and its picture

Whatever is written appears whole or not at all. Every batch, order and sample is a function of
(seed, stage, step), so a checkpoint is weights + optimizer + step number, and a run that was killed
ends with the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from miniact import Interrupted, UserError
from miniact.backends.protocol import Policy
from miniact.config.sections import StageConfig
from miniact.runs.progress import Bar
from miniact.types import Rollout

SAMPLE_EVERY, SAMPLE_GROUPS = 10, 2  # how often, and how many groups, go to samples/


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_asked(out: Path, text: str) -> None:
    """Write a file to where the user asked for it; UserError where that cannot be."""
    try:
        write_text(out, text)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from None


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _number(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None  # a browser's JSON knows no NaN


def parse(text: str) -> Any:
    return json.loads(text, parse_float=_number, parse_constant=lambda name: None)


def read_json(file: Path) -> dict[str, Any]:
    try:
        value = parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({error}); expected JSON as miniact writes it") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected an object, got {str(value)[:60]}")
    return value


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it takes its name only when complete and on the disk."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("r+b") as handle:  # Windows syncs only what may be written
                    os.fsync(handle.fileno())
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


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
    """One run's folder, locked against a second writer while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = locked(
            path / ".lock",
            f"{path}: another miniact is writing to this run folder; wait for it, or choose "
            "another --out",
        )
        self.stopper = Stopper()

    def __enter__(self) -> RunFolder:
        self._lock.__enter__()
        self.stopper.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopper.__exit__(*exc)
        self._lock.__exit__(None, None, None)

    def shared_seconds(self) -> dict[str, float]:
        """What the parts took that another run of a comparison did (see compare.py)."""
        file = self.path / "shared.json"
        return read_json(file).get("seconds", {}) if file.is_file() else {}

    def stage(self, number: int, name: str) -> Path:
        return self.path / "stages" / f"{number}-{name}"


def drop_lines(path: Path, keep: Callable[[dict], bool]) -> None:
    """Remove what a killed run wrote after its last checkpoint, and a half-written line."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            if line.endswith("\n") and keep(json.loads(line)):
                kept.append(line)
    write_text(path, "".join(kept))


class StageLog:
    """A stage's steps, metrics, samples and checkpoints."""

    def __init__(self, run: RunFolder, number: int, name: str, bar: Bar) -> None:
        self.run, self.bar = run, bar
        self.key = f"{number}-{name}"
        self.folder = run.stage(number, name)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.metrics = run.path / "metrics.jsonl"
        self.samples = run.path / "samples" / f"{self.key}.jsonl"
        self.samples.parent.mkdir(exist_ok=True)
        self.live_seen: list[float] = []

    def steps(self, policy: Policy, config: StageConfig) -> Iterator[int]:
        """Step numbers from the last checkpoint on; saves on the way, stops when asked to."""
        start = self._restore(policy)
        self._open_writers(start)
        self.bar.start(config.steps, start)
        for step in range(start, config.steps):
            yield step
            done = step + 1
            due = done % config.checkpoint_every == 0 and done < config.steps
            if due or self.run.stopper.asked:
                self._checkpoint(policy, done)
            self.run.stopper.check()
        self._writer.close()
        with explain_full_disk(self.run.path), whole_folder(self.folder / "adapter") as part:
            policy.save_adapter(part)
        for old in self._checkpoints():
            shutil.rmtree(old)
        if self.live_seen and max(self.live_seen) == 0:
            self.bar.note(
                f"warning: {self.key}: all groups of all steps had equal rewards, so nothing was "
                "learned; raise temperature or group_size, or start from a better adapter"
            )

    def write(self, step: int, metrics: dict[str, float], rollouts: Sequence[Rollout] = ()) -> None:
        """Log one step. A non-finite loss or gradient stops the run before it can be saved."""
        bad = [k for k, v in metrics.items() if not math.isfinite(v)]
        if bad:
            raise UserError(
                f"{self.key} step {step}: {bad[0]} is {metrics[bad[0]]}; the last checkpoint is "
                "kept; lower the learning rate and start from it"
            )
        if "live_groups" in metrics:
            self.live_seen.append(metrics["live_groups"])
        with explain_full_disk(self.run.path):
            row = {"stage": self.key, "step": step, **metrics, "time": round(time.time(), 3)}
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)
            if rollouts and step % SAMPLE_EVERY == 0:
                with self.samples.open("a", encoding="utf-8") as file:
                    for rollout in rollouts[:SAMPLE_GROUPS]:
                        file.write(json.dumps(self._sample_row(step, rollout)) + "\n")
        self.bar.advance(metrics)

    def _sample_row(self, step: int, rollout: Rollout) -> dict[str, Any]:
        return {
            "step": step,
            "prompt": self.decode(rollout.prompt),
            "answers": [
                {
                    "reply": sample.text,
                    "stop": sample.stop,
                    "reward": scored.reward,
                    "valid": scored.valid,
                    "advantage": float(advantage),
                    "logp": sum(sample.logps),
                }
                for sample, scored, advantage in zip(
                    rollout.samples, rollout.scored, rollout.advantages
                )
            ],
        }

    def _checkpoints(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("checkpoint-*") if not p.name.endswith(".part"))

    def _checkpoint(self, policy: Policy, step: int) -> None:
        older = self._checkpoints()
        target = self.folder / f"checkpoint-{step:07d}"
        with explain_full_disk(self.run.path), whole_folder(target) as part:
            policy.save_adapter(part)
            policy.save_optimizer(part / "optimizer.safetensors")
        for old in older:
            if old != target:
                shutil.rmtree(old)

    def _restore(self, policy: Policy) -> int:
        """Load the newest checkpoint; returns the next step. Without one, a fresh optimizer."""
        self.decode = policy.tokenizer.decode
        found = self._checkpoints()
        if not found:
            policy.reset_optimizer()
            return 0
        policy.load_adapter(found[-1])
        policy.load_optimizer(found[-1] / "optimizer.safetensors")
        return int(found[-1].name.rpartition("-")[2])

    def _open_writers(self, start: int) -> None:
        from tensorboardX import SummaryWriter

        drop_lines(self.metrics, lambda row: row["stage"] != self.key or row["step"] < start)
        drop_lines(self.samples, lambda row: row["step"] < start)
        folder = self.run.path / "tensorboard" / self.key
        self._writer = SummaryWriter(str(folder), purge_step=start, write_to_disk=True)
