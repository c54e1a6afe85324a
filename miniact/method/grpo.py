"""Group-relative policy optimisation, shared by the two RL stages of miniact (`act` and `rl`).

The minimal form, in the order of the code:

    r_1..r_G                                rewards of the G answers to one prompt
    A_i = (r_i − mean r) / (std r + ε)       `advantages`; Dr. GRPO drops the division
    w_t                                     `token_weights`: the normaliser, one number per token
    L = Σ_t w_t·[−min(ρA, clip(ρ)A) + β·k3]  `losses.GRPOLoss`

Departures from textbook GRPO, all measured or argued in LAB.md: groups whose rewards are all equal
are dropped before the backward pass (their gradient is exactly 0 at β = 0) and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from miniact.backends.protocol import Policy
from miniact.config.sections import GRPOConfig
from miniact.method.losses import GRPOLoss
from miniact.types import Completion, Group, Rollout, Sample, Scored

EPSILON = 1e-4  # keeps the division finite; rewards are of order 1


def advantages(reward_G: np.ndarray, scale: bool = True) -> np.ndarray:
    """A_i = (r_i − mean(r)) / (std(r) + ε): how much better an answer is than its group.

    reward_G: shape [G]. scale=False leaves the division out (Dr. GRPO, arXiv 2503.20783). The
    standard deviation is the sample one (G − 1). A constant group gives exact zeros.

    >>> advantages(np.array([1.0, 0.0, 0.0, 1.0]), scale=False).tolist()
    [0.5, -0.5, -0.5, 0.5]
    """
    reward_G = np.asarray(reward_G, dtype=np.float64)
    if np.ptp(reward_G) == 0:
        return np.zeros_like(reward_G)
    centred_G = reward_G - reward_G.mean()
    return centred_G / (reward_G.std(ddof=1) + EPSILON) if scale else centred_G


def token_weights(lengths: Sequence[int], variant: str, max_tokens: int) -> np.ndarray:
    """w of every token of each completion, so that L = Σ_i Σ_t w_i·ℓ_it.

    lengths: completion lengths |y_i| in tokens, over the whole batch of B completions.
    grpo:     w_i = 1 / (B·|y_i|)         mean over tokens, then over sequences
    dapo:     w_i = 1 / Σ_j |y_j|         every token counts the same
    dr_grpo:  w_i = 1 / (B·max_tokens)    a constant: no length bias
    """
    length_B = np.asarray(lengths, dtype=np.float64)
    if variant == "grpo":
        return 1.0 / (len(length_B) * length_B)
    if variant == "dapo":
        return np.ones_like(length_B) / length_B.sum()
    if variant == "dr_grpo":
        return np.ones_like(length_B) / (len(length_B) * max_tokens)
    raise ValueError(f"unknown variant {variant!r}")


def make_group(prompt: Sequence[int], samples: Sequence[Sample], advantage_G: np.ndarray) -> Group:
    """One prompt, its G answers and their advantages, ready for the loss."""
    return Group(
        tuple(prompt),
        tuple(
            Completion(s.tokens, advantage=float(a), old_logps=np.asarray(s.logps, np.float32))
            for s, a in zip(samples, advantage_G, strict=True)
        ),
    )


def weigh(groups: Sequence[Group], variant: str, max_tokens: int) -> list[Group]:
    """Give every completion its normalised weight. Call it on the whole batch, never on a part."""
    lengths = [len(c.tokens) for g in groups for c in g.completions]
    weights = iter(token_weights(lengths, variant, max_tokens))
    return [
        replace(
            g, completions=tuple(replace(c, weight=float(next(weights))) for c in g.completions)
        )
        for g in groups
    ]


def merge(group: Group) -> Group:
    """Train on answers that came out alike once, with the sum of their weights: the same loss."""
    found: dict[tuple, Completion] = {}
    for c in group.completions:
        key = (c.tokens, c.advantage)
        found[key] = replace(found[key], weight=found[key].weight + c.weight) if key in found else c
    return replace(group, completions=tuple(found.values()))


def is_live(group: Group) -> bool:
    """Whether the group carries a gradient: not all its rewards were equal."""
    return any(c.advantage != 0.0 for c in group.completions)


def grpo_step(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    score: Callable[[int, Sample], Scored],
    config: GRPOConfig,
    lr: float,
    seed: int,
) -> tuple[dict[str, float], list[Rollout]]:
    """Sample G answers to each prompt, score them, and update the policy `config.updates` times.

    score(i, sample) judges an answer to prompts[i]. Returns (metrics, rollouts). When no group is
    live and β = 0 there is no gradient: nothing is updated, and the metric `live_groups` is 0.
    """
    answers = policy.sample(prompts, config.group_size, config.max_tokens, config.temperature, seed)
    rollouts = []
    for i, (prompt, samples) in enumerate(zip(prompts, answers)):
        scored = [score(i, sample) for sample in samples]
        reward_G = np.array([s.reward for s in scored])
        rollouts.append(
            Rollout(prompt, samples, scored, advantages(reward_G, config.scale_rewards))
        )
    metrics = describe(rollouts)
    groups = weigh(
        [make_group(r.prompt, r.samples, r.advantages) for r in rollouts],
        config.variant,
        config.max_tokens,
    )
    if config.beta == 0:  # with β > 0 a dead group still feels the KL term
        groups = [g for g in groups if is_live(g)]
    if groups:
        trained = [merge(g) for g in groups]
        metrics |= update(policy, trained, config, lr)
        passes = config.updates + (config.beta > 0)
        metrics["tokens"] += passes * sum(g.size for g in trained)
    return metrics, rollouts


def update(policy: Policy, groups: list[Group], config: GRPOConfig, lr: float) -> dict[str, float]:
    """`config.updates` optimizer steps on one sampled batch; the metrics are the last one's."""
    if config.beta > 0:
        groups = with_reference(policy, groups, config.temperature)
    loss = GRPOLoss(config.clip_low, config.clip_high, config.beta)
    share = sum(c.weight * len(c.tokens) for g in groups for c in g.completions)
    metrics: dict[str, float] = {}
    for _ in range(config.updates):
        metrics = policy.forward_backward(groups, loss, config.temperature)
        metrics["grad_norm"] = policy.optim_step(lr, config.max_grad_norm)
    for name in ("ratio", "clip_fraction", "kl"):  # sums over live tokens → means over them
        if name in metrics:
            metrics[name] /= share
    return metrics


def with_reference(policy: Policy, groups: list[Group], temperature: float) -> list[Group]:
    """Fill in log π_ref of every completion."""
    scored = policy.logprobs(groups, temperature, reference=True)
    return [
        replace(g, completions=tuple(replace(c, ref_logps=r) for c, r in zip(g.completions, refs)))
        for g, refs in zip(groups, scored)
    ]


def describe(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Metrics of a sampled batch, before any update. Shares are of answers or of groups."""
    scored = [s for r in rollouts for s in r.scored]
    samples = [s for r in rollouts for s in r.samples]
    correct = [[s.correct for s in r.scored] for r in rollouts]
    tokens = sum(len(s.tokens) for s in samples)
    live = [bool(np.any(r.advantages != 0)) for r in rollouts]
    return {
        "reward": float(np.mean([s.reward for s in scored])),
        "correct": float(np.mean([s.correct for s in scored])),
        "valid": float(np.mean([s.valid for s in scored])),
        "live_groups": float(np.mean(live)),
        "zero_variance": 1 - float(np.mean(live)),
        "all_correct": float(np.mean([all(c) for c in correct])),
        "all_wrong": float(np.mean([not any(c) for c in correct])),
        "tokens": float(tokens + sum(len(r.prompt) for r in rollouts)),  # so far: sampling
        "reply_tokens": tokens / len(samples),
        "cut_off": float(np.mean([s.stop == "length" for s in samples])),
        "entropy": -sum(sum(s.logps) for s in samples) / tokens,  # estimate, nats per token
    }
