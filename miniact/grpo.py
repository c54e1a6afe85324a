"""Group-relative policy optimisation, shared by the two RL stages of miniact (`act` and `rl`).

The minimal form, in the order of the code:

    r_1..r_G                                rewards of the G answers to one prompt
    A_i = (r_i − mean r) / (std r + ε)       `advantages`; Dr. GRPO drops the division
    w_t                                     `token_weights`: the normaliser, one number per token
    L = Σ_t w_t·[−min(ρA, clip(ρ)A) + β·k3]  `losses.GRPOLoss`

Departures from textbook GRPO, all measured or argued in LAB.md: groups whose rewards are all equal are
dropped before the backward pass (their gradient is exactly 0 at β = 0) and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from miniact.types import Completion, Group, Sample

EPSILON = 1e-4  # keeps the division finite; rewards are of order 1


def advantages(reward_G: np.ndarray, scale: bool = True) -> np.ndarray:
    """A_i = (r_i − mean(r)) / (std(r) + ε): how much better an answer is than its group.

    reward_G: shape [G]. scale=False leaves the division out (Dr. GRPO, arXiv 2503.20783). The standard
    deviation is the sample one (G − 1). A constant group gives exact zeros.

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
        return np.full(len(length_B), 1.0 / length_B.sum())
    if variant == "dr_grpo":
        return np.full(len(length_B), 1.0 / (len(length_B) * max_tokens))
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


def is_live(group: Group) -> bool:
    """Whether the group carries a gradient: not all its rewards were equal."""
    return any(c.advantage != 0.0 for c in group.completions)
