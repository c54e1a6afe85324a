"""The stages of a recipe. Each is one readable loop in a file of its own; all share `Stage`.

il          imitate the expert's actions
act         judge two actions, learned by reinforcement: the paper's
rl          act, learned by reinforcement
choice_sft  control: imitate the right choice
dpo         control: prefer the expert's action directly
reflect     baseline (Early Experience): imitate reflections
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from miniact import UserError
from miniact.backends.protocol import Policy
from miniact.config.sections import PairsConfig, StageConfig
from miniact.data.trajectories import ExpertStates
from miniact.method.grpo import weigh
from miniact.method.losses import cross_entropy
from miniact.method.pairs import Question, questions
from miniact.method.prompts import Prompt, Prompter
from miniact.runs.log import StageLog
from miniact.types import ActionPair, Completion, Group, Reflection


@dataclass(frozen=True)
class Stage:
    """All that a stage's loop needs. `seed` is the run's seed mixed with the stage's number."""

    policy: Policy
    prompter: Prompter
    config: Any  # the stage's own section of the config
    states: ExpertStates
    pairs: list[ActionPair]
    log: StageLog
    seed: int
    alternatives: PairsConfig = field(default_factory=PairsConfig)  # how pairs are made and asked
    reflections: Sequence[Reflection] = ()

    def questions(self) -> list[Question]:
        """The train pairs as questions. UserError if there are none."""
        choices = self.alternatives.choices
        found = questions(self.pairs, choices)
        if not found:
            raise UserError(
                f"pairs.choices: no state has {choices - 1} distinct alternatives; raise pairs.k "
                "or pairs.temperature, or lower it"
            )
        return found


def learning_rate(config: StageConfig, step: int) -> float:
    """Rises linearly over `warmup` steps; then constant, or falling linearly to 0 at the end."""
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    fall = 1 - step / config.steps if config.schedule == "linear" else 1.0
    return config.lr * min(rise, fall)


Example = tuple[Prompt, tuple[int, ...]]  # a prompt and the reply to imitate, its end included


def imitate(stage: Stage, step: int, examples: Sequence[Example]) -> None:
    """One step of supervised training: L = − 1/N · Σ over the batch's N reply tokens of log π_θ.

    Only replies are trained, never prompts or observations.
    """
    config = stage.config
    groups = [Group(prompt.tokens, (Completion(reply),)) for prompt, reply in examples]
    metrics = stage.policy.forward_backward(weigh(groups, "dapo", 0), cross_entropy)
    lr = learning_rate(config, step)
    metrics["grad_norm"] = stage.policy.optim_step(lr, config.max_grad_norm)
    metrics |= {"lr": lr, "tokens": sum(g.size for g in groups)}
    metrics["dropped_turns"] = sum(prompt.dropped for prompt, _ in examples)
    stage.log.write(step, metrics)
