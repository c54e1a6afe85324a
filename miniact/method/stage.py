"""What every stage's loop is made of: `Stage`, and one step of each of the two kinds of learning.

    imitate     prompts and replies → cross-entropy          il, choice_sft, reflect
    reinforce   prompts and scorers → answers → GRPO         act, rl

A stage says what it shows and what it imitates or rewards; all else is here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from miniact import UserError
from miniact.backends.protocol import Policy
from miniact.config.sections import PairsConfig, StageConfig
from miniact.data.trajectories import ExpertStates
from miniact.method.grpo import grpo_step, weigh
from miniact.method.losses import cross_entropy
from miniact.method.pairs import questions
from miniact.method.prompts import Prompt, Prompter
from miniact.types import Completion, Group, Question, Reflection, Rollout, Scorer


class Log(Protocol):
    """Where a stage's steps go: into a run folder (runs.StageLog), or nowhere (`NoLog`)."""

    key: str  # number and name of the stage: 2-act
    folder: Path

    def steps(self, policy: Policy, config: StageConfig) -> Iterator[int]:
        """The numbers of the steps that are still to do."""
        ...

    def write(
        self, step: int, metrics: dict[str, float], rollouts: Sequence[Rollout] = ()
    ) -> None: ...


class NoLog:
    """For a loop of one's own: every step from 0 on with fresh moments, and nothing on disk."""

    key, folder = "", Path()

    def steps(self, policy: Policy, config: StageConfig) -> Iterator[int]:
        policy.reset_optimizer()
        yield from range(config.steps)

    def write(
        self, step: int, metrics: dict[str, float], rollouts: Sequence[Rollout] = ()
    ) -> None: ...


@dataclass(frozen=True)
class Stage:
    """All that a stage's loop needs. `seed` is the run's seed mixed with the stage's number."""

    policy: Policy
    prompter: Prompter
    config: Any  # the stage's own section of the config
    states: ExpertStates = None  # type: ignore[assignment]  # (s, a⁺) of the train split
    pairs: Sequence[Question] = ()  # (s, a⁺, a⁻) of the train split
    log: Log = field(default_factory=NoLog)
    seed: int = 0
    alternatives: PairsConfig = field(default_factory=PairsConfig)  # how pairs are made and asked
    reflections: Sequence[Reflection] = ()

    def steps(self) -> Iterator[int]:
        """The steps that are still to do.

        π_ref is the policy as this stage found it, so it is kept before a checkpoint is restored.
        """
        if getattr(self.config, "beta", 0) > 0:
            self.policy.freeze_reference()
        yield from self.log.steps(self.policy, self.config)

    @functools.cached_property
    def questions(self) -> list[Question]:
        """The train pairs as questions. UserError if there are none."""
        choices = self.alternatives.choices
        asked = questions(self.pairs, choices)
        if not asked:
            raise UserError(
                f"pairs.choices: no state has {choices - 1} distinct alternatives; raise pairs.k "
                "or pairs.temperature, or lower it"
            )
        return asked


Run = TypeVar("Run", bound=Callable[[Stage], None])


def needs(*what: str) -> Callable[[Run], Run]:
    """Marks a stage's run function with what must be made before it: pairs, reflections."""

    def mark(run: Run) -> Run:
        run.needs = what  # type: ignore[attr-defined]
        return run

    return mark


def needs_of(run: Callable[[Stage], None]) -> tuple[str, ...]:
    return getattr(run, "needs", ())


def learning_rate(config: StageConfig, step: int) -> float:
    """Rises linearly over `warmup` steps; then constant, or falling linearly to 0 at the end."""
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    fall = 1 - step / config.steps if config.schedule == "linear" else 1.0
    return config.lr * min(rise, fall)


Example = tuple[Prompt, tuple[int, ...]]  # a prompt and the reply to imitate, its end included


def imitate(stage: Stage, step: int, examples: Sequence[Example]) -> dict[str, float]:
    """One step of supervised training: L = − 1/N · Σ over the batch's N reply tokens of log π_θ.

    Only replies are trained, never prompts or observations. Returns the metrics.
    """
    if not examples:
        raise UserError("imitate: no examples; expected prompts and the replies to imitate")
    config = stage.config
    groups = [Group(prompt.tokens, (Completion(reply),)) for prompt, reply in examples]
    metrics = stage.policy.forward_backward(weigh(groups, "dapo", 0), cross_entropy)
    lr = learning_rate(config, step)
    metrics["grad_norm"] = stage.policy.optim_step(lr, config.max_grad_norm)
    metrics |= {"lr": lr, "tokens": sum(g.size for g in groups)}
    metrics["dropped_turns"] = sum(prompt.dropped for prompt, _ in examples)
    stage.log.write(step, metrics)
    return metrics


def reinforce(
    stage: Stage, step: int, prompts: Sequence[Prompt], scorers: Sequence[Scorer]
) -> dict[str, float]:
    """One step of reinforcement: G answers to each prompt, judged by its scorer, then GRPO.

    Returns the metrics. The seed of the answers follows from the stage's and the step: going on
    after a kill samples what would have been sampled.
    """
    if not prompts or len(prompts) != len(scorers):
        raise UserError(
            f"reinforce: {len(prompts)} prompts and {len(scorers)} scorers; expected a scorer for "
            "each prompt"
        )
    config, lr = stage.config, learning_rate(stage.config, step)
    tokens = [prompt.tokens for prompt in prompts]
    metrics, rollouts = grpo_step(stage.policy, tokens, scorers, config, lr, seed=stage.seed + step)
    metrics |= {"lr": lr, "dropped_turns": sum(prompt.dropped for prompt in prompts)}
    stage.log.write(step, metrics, rollouts)
    return metrics
