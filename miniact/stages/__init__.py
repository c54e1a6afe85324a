"""The stages of a recipe. Each is one readable loop in a file of its own; all share `Stage`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from miniact.config import StageConfig
from miniact.policy import Policy
from miniact.prompts import Prompter
from miniact.runs import StageLog
from miniact.trajectories import ExpertStates
from miniact.types import ActionPair


@dataclass(frozen=True)
class Stage:
    """All that a stage's loop needs. `seed` is the run's seed mixed with the stage's number."""

    policy: Policy
    prompter: Prompter
    config: Any  # ILConfig or GRPOConfig
    states: ExpertStates
    pairs: list[ActionPair]
    log: StageLog
    seed: int


def learning_rate(config: StageConfig, step: int) -> float:
    """Rises linearly over `warmup` steps; then constant, or falling linearly to 0 at the end."""
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    fall = 1 - step / config.steps if config.schedule == "linear" else 1.0
    return config.lr * min(rise, fall)
