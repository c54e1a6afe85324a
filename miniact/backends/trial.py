"""A check on load, before anything is made: is every fast way right for this model?

Two answers to each of two prompts, which begin alike and are of unequal length, are sampled, scored
and trained on, and an adapter is saved and read back. What differs from the model's own forward
pass over one prompt and one answer alone is done in a plainer way from then on, with a note; where
there is none, and where anything fails, one line says what.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from miniact import UserError
from miniact.backends.held import Held
from miniact.backends.memory import ran_out_of_memory
from miniact.types import Array, Completion, Group, Sample, Tokens

T = TypeVar("T")
TEXT = "Put the clean mug on the table by the window, then go north and open the old red door."
LENGTH, ALIKE = 16, 9  # tokens of the longer prompt, and of what the other one shares with it
ANSWERS, NEW = 2, 4  # to each, and tokens of each


class Checked(Protocol):
    """A policy (protocol.py), and what a backend adds so that it can be checked."""

    tokenizer: Any
    name: str
    family: str  # the model's type, for messages
    ends: tuple[int, ...]
    tolerance: float  # mean |Δ log π|, in nats, that rounding alone may make
    has_adapter: bool  # or else all weights are trained
    fast_ways: tuple[str, ...]  # what it does to be fast, the fastest first
    ways: tuple[bool, ...]  # which of them are in use
    held: Held  # keys of prompts that were sampled from

    def sample(self, *args: Any, **kwargs: Any) -> list[list[Sample]]: ...

    def logprobs(self, *args: Any, **kwargs: Any) -> list[list[np.ndarray]]: ...

    def forward_backward(self, *args: Any, **kwargs: Any) -> dict[str, float]: ...

    def optim_step(self, *args: Any, **kwargs: Any) -> float: ...

    def reset_optimizer(self) -> None: ...

    def save_adapter(self, folder: Path) -> None: ...

    def load_adapter(self, folder: Path) -> None: ...

    def own_logps(self, prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        """log π of the answer's tokens by the model's own forward pass, this one sequence alone."""
        ...

    def disturbed(self, seed: int) -> AbstractContextManager[None]:
        """Meanwhile the adapter's weights are random, for B = 0 would hide mistakes.

        Afterwards they are what they were, and there are no gradients.
        """
        ...


_known: dict[Any, tuple[bool, ...]] = {}  # what was checked in this process, and its ways


def check(policy: Checked, key: Any) -> None:
    """Settle the ways of this model; once for each `key`. Raises UserError if none is right."""
    if key not in _known:
        ends, policy.ends = policy.ends, ()  # so that every answer is as long as it may be
        least, policy.held.least = policy.held.least, 1  # so that these few tokens are held
        try:
            with policy.disturbed(seed=1):
                _settle(policy)
        finally:
            policy.ends, policy.held.least = ends, least
        _known[key] = policy.ways
        cannot = [what for what, used in zip(policy.fast_ways, policy.ways) if not used]
        if cannot:
            print(
                f"note: {policy.family} cannot {', nor '.join(cannot)}; this is done the plain "
                "way, more slowly and with the same result",
                file=sys.stderr,
            )
    policy.ways = _known[key]


def _settle(policy: Checked) -> None:
    prompts = _prompts(policy)
    groups = _or_plainer(policy, "sampled", lambda: _sample(policy, prompts))
    _or_plainer(policy, "scored", lambda: _score(policy, groups))
    _or_plainer(policy, "trained", lambda: _train(policy, groups))
    if policy.has_adapter:
        _attempt(policy, "saved and read back", lambda: _read_back(policy, groups))


def _prompts(policy: Checked) -> list[tuple[int, ...]]:
    tokens = policy.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    tokens = [*tokens, *[tokens[-1]] * LENGTH]  # a vocabulary may know it as one word
    other = 0 if tokens[ALIKE] else 1
    return [tuple(tokens[:LENGTH]), (*tokens[:ALIKE], other)]


class _Differs(Exception):
    """What was computed is not what it should be."""


def _or_plainer(policy: Checked, done: str, run: Callable[[], T]) -> T:
    """run(), in a plainer way as long as it fails and there is one."""
    while True:
        try:
            return run()
        except UserError:
            raise
        except Exception as error:  # each architecture fails in its own way
            if not any(policy.ways) or ran_out_of_memory(error):
                raise _cannot(policy, done, error) from error
        fastest = policy.ways.index(True)
        policy.ways = tuple(used and i != fastest for i, used in enumerate(policy.ways))


def _attempt(policy: Checked, done: str, run: Callable[[], object]) -> None:
    try:
        run()
    except UserError:
        raise
    except Exception as error:
        raise _cannot(policy, done, error) from error


def _cannot(policy: Checked, done: str, error: Exception) -> UserError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if ran_out_of_memory(error):
        return UserError(
            f"model.path: out of memory when {policy.name} was tried with a few tokens; set "
            "model.adapter: qlora, or choose a smaller model"
        )
    return UserError(
        f"model.path: {policy.name} (model type {policy.family}) cannot be {done} here: "
        f"{reason:.200}; choose another model, or another model.backend"
    )


def _sample(policy: Checked, prompts: list[tuple[int, ...]]) -> list[Group]:
    for seed in range(2):  # the second time from keys that were held
        samples = policy.sample(prompts, ANSWERS, NEW, 1.0, seed)
        groups = [
            Group(prompt, tuple(Completion(s.tokens) for s in answers))
            for prompt, answers in zip(prompts, samples)
        ]
        _compare(policy, groups, [[np.array(s.logps) for s in answers] for answers in samples])
    return groups


def _score(policy: Checked, groups: list[Group]) -> None:
    _compare(policy, groups, policy.logprobs(groups))


def _compare(policy: Checked, groups: list[Group], logps: list[list[np.ndarray]]) -> None:
    own = [[policy.own_logps(g.prompt, c.tokens) for c in g.completions] for g in groups]
    error = float(np.abs(_joined(logps) - _joined(own)).mean())
    if not error <= policy.tolerance:
        raise _Differs(f"log-probs differ by {error:.2g} on average from its own forward pass")


def _train(policy: Checked, groups: list[Group]) -> None:
    scored = _joined(policy.logprobs(groups))
    with policy.disturbed(seed=1):  # for a step of a gradient that is NaN cannot be undone
        trained = policy.forward_backward(groups, _minus_logp)["logp"]
        norm = policy.optim_step(0.0, 1.0)
        policy.reset_optimizer()
    if not abs(trained - scored.sum()) <= policy.tolerance * len(scored):  # dropout, say
        raise _Differs(f"Σ log π is {scored.sum():.4g} as it is scored, {trained:.4g} in training")
    if not 0 < norm < float("inf"):
        raise _Differs(f"the norm of the gradient is {norm}")


def _read_back(policy: Checked, groups: list[Group]) -> None:
    before = _joined(policy.logprobs(groups))
    with tempfile.TemporaryDirectory() as folder:
        policy.save_adapter(Path(folder) / "adapter")
        with policy.disturbed(seed=2):
            policy.load_adapter(Path(folder) / "adapter")
            after = _joined(policy.logprobs(groups))
    if not np.allclose(before, after, atol=policy.tolerance):
        raise _Differs("log-probs of the adapter that was read back are others")


def _minus_logp(xp: Any, logp_N: Array, _: Tokens) -> tuple[Array, dict[str, Array]]:
    return -logp_N.sum(), {"logp": logp_N.sum()}


def _joined(logps: list[list[np.ndarray]]) -> np.ndarray:
    return np.concatenate([logp for group in logps for logp in group])
