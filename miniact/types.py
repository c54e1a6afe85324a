"""What flows through miniact, from an expert's trajectory to a gradient.

    Trajectory ──state(i)──▶ State ──sample K──▶ Question      step 1 and 2 of ACT: method/pairs.py
    Question   ──draw_orders──▶ Shown ──▶ prompt ──▶ Sample × G     a group: policy.sample
    Sample     ──method/rewards.py──▶ Scored                        G of them: a Rollout
    Rollout    ──method/grpo.py──▶ Group                            a prompt, n weighted completions
    Group      ──backends/layout.py──▶ Tokens ──▶ Loss              policy.forward_backward

    Trajectory ──method/controls──▶ Reflection                      Early Experience, a control

All types are frozen: a stage never edits what another stage made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray, torch.Tensor or mlx.core.array


@dataclass(frozen=True, slots=True)
class Step:
    """One decision of an expert: what it saw, what it did and, if known, could have done."""

    observation: str
    action: str
    admissible: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class State:
    """s_i: what the agent knows when it decides. `history`: (observation, action), oldest first.

    `earlier` counts turns before `history` that are no longer stored with the state.
    """

    id: str  # "<trajectory id>#<step index>", used in messages and to join results
    task: str
    history: tuple[tuple[str, str], ...]
    observation: str
    admissible: tuple[str, ...] | None = None
    earlier: int = 0
    compare: str = "words"  # the rule by which two actions are the same: rewards.py
    marked: bool = False  # lines of observations tell who speaks: data/folding.py
    tools: tuple[dict[str, Any], ...] = field(default=(), compare=False)  # that are at hand


@dataclass(frozen=True, slots=True)
class Trajectory:
    """An expert trajectory. One line of trajectories.jsonl; the README documents each field."""

    id: str
    task: str
    steps: tuple[Step, ...]
    success: bool | None = None
    split: str = "train"
    source: str = ""
    tools: tuple[dict[str, Any], ...] = ()  # definitions of the tools that were at hand
    compare: str = "words"  # how its actions are compared: "words", "exact" or "json"
    marked: bool = False  # observations mark who speaks, and foreign text cannot: data/folding.py

    def state(self, i: int) -> State:
        """s_i: the state before step i, in which the expert chose `steps[i].action`."""
        past = tuple((step.observation, step.action) for step in self.steps[:i])
        now = self.steps[i]
        return State(
            *(f"{self.id}#{i}", self.task, past, now.observation, now.admissible),
            compare=self.compare,
            marked=self.marked,
            tools=self.tools,
        )


@dataclass(frozen=True, slots=True)
class Question:
    """(s_i, a_i⁺, a_i⁻, …): which action is best here? With one alternative, a contrastive pair.

    The order of presentation is not part of it.
    """

    state: State
    expert: str  # a⁺
    alternatives: tuple[str, ...]  # a⁻
    split: str = "train"
    provenance: dict[str, Any] = field(default_factory=dict)  # model, adapter, seed, temperature

    @property
    def alternative(self) -> str:
        """a⁻ of a pair; ValueError for a question with several."""
        (only,) = self.alternatives
        return only

    def present(self, right: int) -> Shown:
        """The question with the expert's action at index `right`, the others in their order."""
        others = self.alternatives
        return Shown(self.state, (*others[:right], self.expert, *others[right:]), right)


@dataclass(frozen=True, slots=True)
class Shown:
    """A question as it is put once: the actions in an order, the right one at index `right`."""

    state: State
    actions: tuple[str, ...]
    right: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled answer. `tokens` holds exactly what was sampled, the end token included.

    `logps[t]` is log π(tokens[t] | prompt, tokens[<t]) in nats at the sampling temperature.
    """

    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    text: str
    stop: str  # "end": the end token was sampled | "length": the token limit was reached


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion to train on. Every array has one entry per completion token."""

    tokens: tuple[int, ...]
    weight: float = 1.0  # multiplies the loss of every token (IL: 1)
    advantage: float = 0.0  # A_i of GRPO
    old_logps: np.ndarray | None = None  # log π_old, nats, from the sampler
    ref_logps: np.ndarray | None = None  # log π_ref, nats; only when β > 0


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt, n completions (n = 1 for IL, G for GRPO). A backend lays it out as it likes."""

    prompt: tuple[int, ...]
    completions: tuple[Completion, ...]

    @property
    def size(self) -> int:
        """P + Σ|y|: the tokens that pass the model when the prompt is computed once."""
        return len(self.prompt) + sum(len(c.tokens) for c in self.completions)

    def having(self, **values_of: Sequence[Any]) -> Group:
        """The same group with other values of its completions' fields: having(weight=[0.5, 0.5])"""
        rows = zip(*values_of.values(), strict=True)
        changed = (
            replace(completion, **dict(zip(values_of, row)))
            for completion, row in zip(self.completions, rows, strict=True)
        )
        return replace(self, completions=tuple(changed))


@dataclass(frozen=True)
class Tokens:
    """What a loss knows of each completion token, apart from log π_θ. All arrays have shape [N]."""

    weight_N: Array  # share of the token in the loss
    advantage_N: Array  # A_i of the completion that the token belongs to
    old_logp_N: Array  # log π_old, nats
    ref_logp_N: Array  # log π_ref, nats

    def map(self, f: Callable[[Array], Array]) -> Tokens:
        """The same through f, for example into another library's arrays."""
        return Tokens(*(f(value_N) for value_N in vars(self).values()))


Loss = Callable[[Any, Array, Tokens], tuple[Array, dict[str, Array]]]  # (xp, logp_N, tokens)


@dataclass(frozen=True, slots=True)
class Scored:
    """What a stage says of one sampled answer."""

    reward: float
    correct: bool
    valid: bool  # the answer could be parsed
    actions: tuple[str, ...] = ()  # those that were shown (act), or the expert's alone (rl)
    right: int = 0  # the expert's among them


@dataclass(frozen=True, slots=True)
class Reply:
    """What a reward of one's own (`stage.*.reward`) is asked about: one sampled answer, parsed."""

    state: State
    expert: str  # a⁺
    action: str | None  # what it does (rl) or chooses (act); None: it holds no single answer
    text: str  # all of it, reasoning included
    correct: bool
    reward: float  # miniact's own
    candidates: tuple[str, ...] = ()  # the actions that were shown (act)


Scorer = Callable[[Sample], Scored]  # judges the answers to one prompt


@dataclass(frozen=True, slots=True)
class Rollout:
    """One group as it is logged and shown: prompt, answers, rewards, advantages."""

    prompt: tuple[int, ...]
    samples: list[Sample]
    scored: list[Scored]
    advantages: np.ndarray


@dataclass(frozen=True, slots=True)
class Reflection:
    """Why the expert's action is better in a state. One line of reflections.jsonl."""

    state: State
    expert: str
    text: str
    outcomes: tuple[tuple[str, str], ...]  # (action, what it led to), the expert's first
    provenance: dict[str, Any] = field(default_factory=dict)
