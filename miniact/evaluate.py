"""Measuring: success in the environment, next-action accuracy, judgement accuracy.

Every rate comes with its n and a 95 % Wilson interval. All of it is measured on held-out tasks,
states and pairs, greedily by default, and is a function of the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miniact.config import EvalConfig
from miniact.envs import Env
from miniact.pairs import present
from miniact.policy import Policy
from miniact.prompts import Prompter
from miniact.rewards import same_action
from miniact.rollout import Episode, PlayOptions, play_episodes
from miniact.types import ActionPair, Completion, Group, State

Z95 = 1.959964  # the normal distribution's 97.5 % quantile


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927).

    >>> tuple(round(x, 3) for x in wilson(8, 10))
    (0.49, 0.943)
    """
    if n == 0:
        return (0.0, 1.0)
    p, z2 = successes / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    """A proportion with its n and interval; value None where nothing was counted."""
    n, k = len(hits), sum(map(bool, hits))
    low, high = wilson(k, n)
    return {"value": k / n if n else None, "n": n, "low": low, "high": high}


def evaluate_episodes(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Success and behaviour over finished episodes of one split."""
    return {
        "success": rate([e.success for e in episodes]),
        "score": float(np.mean([e.score for e in episodes])) if episodes else None,
        "steps": float(np.mean([len(e.moves) for e in episodes])) if episodes else None,
        "repeats_failure": rate([e.repeats_a_failure() for e in episodes]),
        "failed_actions": rate([not m.applied for e in episodes for m in e.moves]),
        "unparseable": rate([not m.action for e in episodes for m in e.moves]),
        "dropped_turns": sum(e.dropped_turns for e in episodes),
    }


def next_action_accuracy(
    policy: Policy,
    prompter: Prompter,
    states: Sequence[tuple[State, str]],
    config: EvalConfig,
    seed: int,
) -> dict[str, Any]:
    """How often the policy's action in a held-out expert state is the expert's."""
    prompts = [prompter.action(state, config.thinking) for state, _ in states]
    replies = policy.sample(
        [p.tokens for p in prompts], 1, config.max_tokens, config.temperature, seed
    )
    actions = [prompter.parse_action(sample.text) for (sample,) in replies]
    hits = [a is not None and same_action(a, expert) for a, (_, expert) in zip(actions, states)]
    return {
        "accuracy": rate(hits),
        "valid": rate([a is not None for a in actions]),
        "dropped_turns": sum(p.dropped for p in prompts),
    }


def judgement_accuracy(
    policy: Policy,
    prompter: Prompter,
    pairs: Sequence[ActionPair],
    config: EvalConfig,
    seed: int,
) -> dict[str, Any]:
    """Ask the critic about every held-out pair in both orders.

    accuracy: right answers among all, an unparseable one counts as wrong. given_valid: among valid
    answers only, so that learning the format cannot pass for learning to judge. expert_first and
    expert_second show a position bias. consistent: the same action chosen in both orders. implicit:
    log π(a⁺|s) > log π(a⁻|s), the judgement that acting itself implies, with no critic prompt.
    """
    asked = [(pair, position) for pair in pairs for position in (0, 1)]
    prompts = [
        prompter.critic(pair.state, present(pair, position), config.judge_thinking)
        for pair, position in asked
    ]
    replies = policy.sample(
        [p.tokens for p in prompts], 1, config.judge_max_tokens, config.temperature, seed
    )
    chosen = [
        prompter.parse_choice(sample.text, present(pair, position))
        for (pair, position), (sample,) in zip(asked, replies)
    ]
    right = [c == position for c, (_, position) in zip(chosen, asked)]
    valid = [c is not None for c in chosen]
    picks = [None if c is None else c == position for c, (_, position) in zip(chosen, asked)]
    return {
        "accuracy": rate(right),
        "valid": rate(valid),
        "given_valid": rate([r for r, v in zip(right, valid) if v]),
        "expert_first": rate(right[0::2]),
        "expert_second": rate(right[1::2]),
        "consistent": rate([a is not None and a == b for a, b in zip(picks[0::2], picks[1::2])]),
        "implicit": rate(implicit_judgements(policy, prompter, pairs)),
        "dropped_turns": sum(p.dropped for p in prompts),
    }


def implicit_judgements(
    policy: Policy, prompter: Prompter, pairs: Sequence[ActionPair]
) -> list[bool]:
    """log π(a⁺ | s) > log π(a⁻ | s) for each pair, summed over the reply's tokens and its end."""
    groups = []
    for pair in pairs:
        both = (prompter.render_action(a) for a in (pair.expert, pair.alternative))
        replies = tuple(Completion(prompter.reply_tokens(text)) for text in both)
        groups.append(Group(prompter.action(pair.state).tokens, replies))
    return [bool(a.sum() > b.sum()) for a, b in policy.logprobs(groups)]


@dataclass(frozen=True)
class HeldOut:
    """What to measure on: worlds to act in, expert states, pairs. Whatever is empty is left out."""

    envs: Sequence[Env] = ()
    states: Sequence[tuple[State, str]] = ()
    pairs: Sequence[ActionPair] = ()


def evaluate(
    policy: Policy,
    prompter: Prompter,
    config: EvalConfig,
    seed: int,
    held_out: HeldOut,
    on_done: Callable[[Episode], None] = lambda episode: None,
) -> tuple[dict[str, Any], list[Episode]]:
    """Everything that can be measured with what is given. Returns (results, episodes)."""
    results: dict[str, Any] = {}
    played: list[Episode] = []
    options = PlayOptions(config.temperature, config.max_tokens, config.thinking, seed)
    if held_out.envs and config.episodes:
        results["splits"] = {}
        for split in config.splits:
            tasks = held_out.envs[0].tasks(split, config.episodes, seed)
            episodes = play_episodes(policy, prompter, held_out.envs, tasks, options, on_done)
            results["splits"][split] = evaluate_episodes(episodes)
            played += episodes
    if held_out.states:
        results["next_action"] = next_action_accuracy(
            policy, prompter, held_out.states, config, seed
        )
    if held_out.pairs:
        results["judgement"] = judgement_accuracy(policy, prompter, held_out.pairs, config, seed)
    return results, played
