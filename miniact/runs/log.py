"""What a stage writes while it trains: metrics, samples, checkpoints."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from miniact import UserError
from miniact.backends.protocol import Policy
from miniact.config.sections import StageConfig
from miniact.runs.files import append_jsonl, keep_rows, whole_folder
from miniact.runs.folder import RunFolder, explain_full_disk
from miniact.runs.loggers import logging
from miniact.runs.progress import Bar
from miniact.types import Rollout

SAMPLE_EVERY, SAMPLE_GROUPS = 10, 2  # how often, and how many groups, go to samples/
PATIENCE = 10  # steps without a group to learn from, until the run says so


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
        self.least_equal = math.inf  # of all steps, the smallest share of groups with equal rewards
        self.sampled_steps, self.warned_of_length = 0, False

    def steps(self, policy: Policy, config: StageConfig) -> Iterator[int]:
        """Step numbers from the last checkpoint on; saves on the way, stops when asked to."""
        start = self._restore(policy)
        keep_rows(self.metrics, lambda row: row["stage"] != self.key or row["step"] < start)
        keep_rows(self.samples, lambda row: row["step"] < start)
        self.bar.start(config.steps, start)
        with logging(self.run.log_to, self.run.path, self.key, start) as self._log:
            for step in range(start, config.steps):
                yield step
                done = step + 1
                due = done % config.checkpoint_every == 0 and done < config.steps
                if due or self.run.stopper.asked:
                    self._checkpoint(policy, done)
                self.run.stopper.check()
        with explain_full_disk(self.run.path), whole_folder(self.folder / "adapter") as part:
            policy.save_adapter(part)
        for old in self._checkpoints():
            shutil.rmtree(old)
        if self.least_equal == 1:
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
        self.least_equal = min(self.least_equal, metrics.get("zero_variance", math.inf))
        self._warn_early(metrics)
        with explain_full_disk(self.run.path):
            row = {"stage": self.key, "step": step, **metrics, "time": round(time.time(), 3)}
            append_jsonl(self.metrics, [row])
            self._log(metrics, step)
            if rollouts and step % SAMPLE_EVERY == 0:
                shown = (self._sample_row(step, rollout) for rollout in rollouts[:SAMPLE_GROUPS])
                append_jsonl(self.samples, shown)
        self.bar.advance(metrics)

    def _warn_early(self, metrics: dict[str, float]) -> None:
        """Say at once what would else be seen after the last step, perhaps a day later."""
        self.sampled_steps += "zero_variance" in metrics
        if self.sampled_steps == PATIENCE and self.least_equal == 1:
            self.bar.note(
                f"warning: {self.key}: no group of {PATIENCE} steps had unequal rewards, so "
                "nothing is learned so far; stop and look at samples/: are the answers readable, "
                "and ever right? Raise temperature or group_size, or take a better adapter"
            )
        if metrics.get("cut_off", 0.0) > 0.5 and not self.warned_of_length:
            self.warned_of_length = True
            self.bar.note(
                f"warning: {self.key}: {metrics['cut_off']:.0%} of a step's answers were cut off "
                "by the stage's max_tokens, and what is cut off can rarely be read; raise it"
            )

    def _sample_row(self, step: int, rollout: Rollout) -> dict[str, Any]:
        return {
            "step": step,
            "prompt": self.decode(rollout.prompt),
            "actions": list(rollout.scored[0].actions),
            "right": rollout.scored[0].right,
            "answers": [
                {
                    "reply": sample.text,
                    "stop": sample.stop,
                    "reward": scored.reward,
                    "correct": scored.correct,
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
        saved = self._checkpoints()
        if not saved:
            policy.reset_optimizer()
            return 0
        policy.load_adapter(saved[-1])
        policy.load_optimizer(saved[-1] / "optimizer.safetensors")
        return int(saved[-1].name.rpartition("-")[2])
