"""Group-relative policy optimisation, shared by the two RL stages of miniact (`act` and `rl`).

The minimal form, in the order of the code:

    r_1..r_G                                rewards of the G answers to one prompt
    A_i = (r_i − mean r) / (std r + ε)       `advantages`; dr_grpo drops the division
    w_t                                     `token_weights`: the normaliser, one number per token
    L = Σ_t w_t·[−min(ρA, clip(ρ)A) + β·k3]  `losses.GRPOLoss`

Departures from textbook GRPO, all measured or argued in LAB.md: groups whose rewards are all equal
are dropped before the backward pass (their gradient is exactly 0 at β = 0) and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from miniact import UserError
from miniact.backends.protocol import Policy
from miniact.config.sections import GRPOConfig
from miniact.method.losses import GRPOLoss
from miniact.types import Completion, Group, Rollout, Sample, Scored, Scorer

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
    return [g.having(weight=[float(next(weights)) for _ in g.completions]) for g in groups]


def merge(group: Group) -> Group:
    """Train on answers that came out alike once, with the sum of their weights.

    Equal answers have equal rewards, so equal advantages: their terms of the loss are the same
    number, and a sum of weights times that number is the same loss with fewer tokens to compute.
    """
    merged: dict[tuple, Completion] = {}
    for c in group.completions:
        key = (c.tokens, c.advantage)  # a reward may depend on more than the answer: then both stay
        weight = c.weight + (merged[key].weight if key in merged else 0.0)
        merged[key] = replace(merged.get(key, c), weight=weight)
    return replace(group, completions=tuple(merged.values()))


def is_live(group: Group) -> bool:
    """Whether the group carries a gradient: not all its rewards were equal."""
    return any(c.advantage != 0.0 for c in group.completions)


def grpo_step(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    scorers: Sequence[Scorer],
    config: GRPOConfig,
    lr: float,
    seed: int,
) -> tuple[dict[str, float], list[Rollout]]:
    """Sample G answers to each prompt, score them, and update the policy `config.updates` times.

    scorers[i] judges the answers to prompts[i]. Returns (metrics, rollouts). When no group is
    live and β = 0 there is no gradient: nothing is updated, and the metric `zero_variance` is 1.
    """
    answers = policy.sample(prompts, config.group_size, config.max_tokens, config.temperature, seed)
    rollouts = []
    for prompt, samples, score in zip(prompts, answers, scorers, strict=True):
        scored = [checked(score(sample)) for sample in samples]
        reward_G = np.array([s.reward for s in scored])
        advantage_G = advantages(reward_G, scale=config.variant != "dr_grpo")
        rollouts.append(Rollout(prompt, samples, scored, advantage_G))
    metrics = batch_metrics(rollouts)
    groups = [make_group(r.prompt, r.samples, r.advantages) for r in rollouts]
    # weigh before dropping: a dead group counts in the mean, as an answer of advantage 0 does
    groups = weigh(groups, config.variant, config.max_tokens)
    if config.beta == 0:  # a dead group has no gradient; with β > 0 it still feels the KL term
        groups = [g for g in groups if is_live(g)]
    if groups:
        trained = [merge(g) for g in groups]
        metrics |= update(policy, trained, config, lr)
        passes = config.updates + (config.updates > 1) + (config.beta > 0)
        metrics["tokens"] += passes * sum(g.size for g in trained)
    return metrics, rollouts


def checked(scored: Scored) -> Scored:
    """What a scorer said. UserError if that is no score, before anything is learned from it."""
    if not isinstance(scored, Scored) or not math.isfinite(scored.reward):
        raise UserError(
            f"a scorer returned {scored!r:.80}; expected Scored(reward, correct, valid) with a "
            "finite reward"
        )
    return scored


def update(policy: Policy, groups: list[Group], config: GRPOConfig, lr: float) -> dict[str, float]:
    """`config.updates` optimizer steps on one sampled batch; the metrics are the last one's."""
    T, gap = config.temperature, {}
    if config.beta > 0:
        groups = with_reference(policy, groups, T)
    if config.updates > 1:  # π_old as the training pass computes it, not as the sampler did
        groups, gap["sampler_gap"] = with_old(policy, groups, T)
    on_policy = config.updates == 1
    loss = GRPOLoss(config.clip_low, config.clip_high, config.beta, on_policy)
    share = sum(c.weight * len(c.tokens) for g in groups for c in g.completions)
    metrics: dict[str, float] = {}
    for _ in range(config.updates):
        metrics = policy.forward_backward(groups, loss, T) | gap
        metrics["grad_norm"] = policy.optim_step(lr, config.max_grad_norm)
    for name in ("ratio", "clip_fraction", "kl", "sampler_gap"):  # sums over live tokens → means
        if name in metrics:
            metrics[name] /= share
    return metrics


def with_old(policy: Policy, groups: list[Group], temperature: float) -> tuple[list[Group], float]:
    """log π_old computed anew, and how far the sampler's numbers were from it: Σ w·|Δ|, nats."""
    scored = policy.logprobs(groups, temperature)
    gap = 0.0
    for group, logps in zip(groups, scored):
        for c, logp in zip(group.completions, logps):
            gap += c.weight * float(np.abs(logp - c.old_logps).sum())
    return [g.having(old_logps=logps) for g, logps in zip(groups, scored)], gap


def with_reference(policy: Policy, groups: list[Group], temperature: float) -> list[Group]:
    """Fill in log π_ref of every completion."""
    scored = policy.logprobs(groups, temperature, reference=True)
    return [g.having(ref_logps=logps) for g, logps in zip(groups, scored)]


def batch_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
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
        "zero_variance": 1 - float(np.mean(live)),
        "all_correct": float(np.mean([all(c) for c in correct])),
        "all_wrong": float(np.mean([not any(c) for c in correct])),
        "tokens": float(tokens + sum(len(r.prompt) for r in rollouts)),  # so far: sampling
        "reply_tokens": tokens / len(samples),
        "cut_off": float(np.mean([s.stop == "length" for s in samples])),
        "entropy": -sum(sum(s.logps) for s in samples) / tokens,  # estimate, nats per token
    }
