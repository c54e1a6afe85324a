"""The losses, written once for every backend.

`xp` is the array library: numpy, torch or mlx.core. Suffix N: the completion tokens of a
micro-batch, one after the other, with no padding between them (prompts and observations are never
among them).

Every loss is a SUM of weighted token terms. The normaliser of the whole batch sits inside
`weight_N` (see `grpo.token_weights`), so splitting a batch into micro-batches cannot change the
gradient: a mean per micro-batch would, whenever lengths differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from miniact.types import Array, Tokens


def cross_entropy(xp: Any, logp_N: Array, tokens: Tokens) -> tuple[Array, dict[str, Array]]:
    """IL:  L = − Σ_t w_t · log π_θ(y_t | x, y_<t)."""
    loss = -(tokens.weight_N * logp_N).sum()
    return loss, {"loss": loss}


@dataclass(frozen=True)
class GRPOLoss:
    """The clipped policy-gradient loss of GRPO (Shao et al. 2024, arXiv 2402.03300, eq. 3).

    ρ_t = exp(log π_θ − log π_old)                      logp_N, old_logp_N, or logp_N as a constant
    L   = Σ_t w_t · [ − min(ρ_t·A, clip(ρ_t, 1 − ε_low, 1 + ε_high)·A) + β·k3_t ]
    k3_t = exp(log π_ref − log π_θ) − (log π_ref − log π_θ) − 1  ≥ 0        ref_logp_N

    on_policy: one update per batch, so π_old is π_θ itself and ρ = 1. The sampler computes log π_θ
    in another way than the training pass; in bfloat16 the two differ so far (`sampler_gap`) that ρ
    from the sampler's numbers would clip one token in a hundred.

    Where ρ = 1, the *value* of the policy term is −Σ w·A, which is 0 within every group: a loss
    near 0 is expected there and no fault. Its gradient is not 0.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    on_policy: bool = False

    def __call__(self, xp: Any, logp_N: Array, tokens: Tokens) -> tuple[Array, dict[str, Array]]:
        w_N, A_N = tokens.weight_N, tokens.advantage_N
        constant_N = _constant(xp, logp_N)
        ratio_N = xp.exp(logp_N - (constant_N if self.on_policy else tokens.old_logp_N))
        clipped_N = xp.clip(ratio_N, 1 - self.clip_low, 1 + self.clip_high)
        token_loss_N = -xp.minimum(ratio_N * A_N, clipped_N * A_N)
        # a token is clipped when the minimum picks the constant: no gradient flows through it
        is_clipped_N = (clipped_N * A_N) < (ratio_N * A_N)
        metrics = {
            "ratio": (w_N * ratio_N).sum(),
            "clip_fraction": (w_N * is_clipped_N).sum(),
        }
        if self.on_policy:
            metrics["sampler_gap"] = (w_N * xp.abs(constant_N - tokens.old_logp_N)).sum()
        if self.beta > 0:
            delta_N = tokens.ref_logp_N - logp_N
            k3_N = xp.exp(delta_N) - delta_N - 1
            token_loss_N = token_loss_N + self.beta * k3_N
            metrics["kl"] = (w_N * k3_N).sum()
        loss = (w_N * token_loss_N).sum()
        return loss, {"loss": loss, **metrics}


def _constant(xp: Any, x: Array) -> Array:
    """x without its gradient: the one thing here that each array library calls differently."""
    if hasattr(xp, "stop_gradient"):
        return xp.stop_gradient(x)
    return x.detach() if hasattr(x, "detach") else x


def dpo(chosen_B: np.ndarray, rejected_B: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), per pair.

    L = − log σ(β·m),  m = [log π_θ − log π_ref](a⁺) − [log π_θ − log π_ref](a⁻)
    ∂L/∂θ = − β·σ(−β·m) · [∂ log π_θ(a⁺) − ∂ log π_θ(a⁻)]

    chosen_B, rejected_B: log π_θ − log π_ref of the two whole completions, nats. Returns L and the
    pull β·σ(−β·m), both of shape [B]. The gradient of L is that of `cross_entropy` with weight
    +pull on the tokens of a⁺ and −pull on those of a⁻, so the two need not share a micro-batch:
    score both without a gradient, then train on the weights.

    >>> loss_B, pull_B = dpo(np.zeros(1), np.zeros(1), beta=0.1)  # where π_θ is still π_ref
    >>> round(float(loss_B[0]), 4), float(pull_B[0])
    (0.6931, 0.05)
    """
    margin_B = np.asarray(chosen_B, np.float64) - np.asarray(rejected_B, np.float64)
    loss_B = np.logaddexp(0.0, -beta * margin_B)  # = − log σ(β·m), without overflow
    return loss_B, beta * np.exp(-np.logaddexp(0.0, beta * margin_B))
