"""Attention from products and a softmax, with its normaliser, and back: for any device and width.

Sizes as in kernels.py: q [n, H, L, D], k and v [n, K, S, D]; the scores of all L queries never
exist at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

SCORES = 1 << 25  # that exist at once: 128 MB


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax(scale · q kᵀ) v [n, H, L, D], and the normaliser's logarithm [n, H, L], float32."""
    outs, lses = [], []
    for _, end, s in _scores(q, k, causal, scale):
        lse = s.logsumexp(-1, keepdim=True)
        outs.append(_product(s.sub_(lse).exp_().to(v.dtype), v[:, :, :end]))
        lses.append(lse[..., 0])
    return torch.cat(outs, 2), torch.cat(lses, 2)


def gradients(
    inputs: tuple[torch.Tensor, ...], whole: tuple[torch.Tensor, ...], causal: bool, scale: float
) -> tuple[torch.Tensor, ...]:
    """∂q, ∂k, ∂v of this part from the whole's (∂out, out, lse): see tree.py."""
    (q, k, v), (grad, out, lse) = inputs, whole
    along = (grad * out).sum(-1, keepdim=True, dtype=torch.float32)  # ∂out·out
    dq, dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in inputs)
    for at, end, s in _scores(q, k, causal, scale):
        q_l, grad_l, k_s, v_s = q[:, :, at], grad[:, :, at], k[:, :, :end], v[:, :, :end]
        p = s.sub_(lse[:, :, at, None]).exp_()
        dv[:, :, :end] += _product_back(p.to(v.dtype), grad_l, v.shape[1])
        ds = _product(grad_l, v_s.transpose(2, 3)).float().sub_(along[:, :, at])
        ds = ds.mul_(p).mul_(scale).to(q.dtype)
        dq[:, :, at] = _product(ds, k_s)
        dk[:, :, :end] += _product_back(ds, q_l, k.shape[1])
    return dq, dk, dv


def _scores(
    q: torch.Tensor, k: torch.Tensor, causal: bool, scale: float
) -> Iterator[tuple[slice, int, Any]]:
    """Block by block: the queries, the end of the keys that they see, the scores in float32."""
    (n, H, L, _), S = q.shape, k.shape[2]
    wide = max(1, SCORES // (n * H * S))
    for first in range(0, L, wide):
        last = min(first + wide, L)
        end = last if causal else S
        s = _product(q[:, :, first:last], k[:, :, :end].transpose(2, 3)).float().mul_(scale)
        if causal:
            later = torch.ones(last - first, end, dtype=torch.bool, device=q.device)
            s.masked_fill_(later.triu_(1 + first), float("-inf"))
        yield slice(first, last), end, s


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[n, H, L, X] · [n, K, X, Y] → [n, H, L, Y]; each of K serves H/K heads, and is not copied."""
    return (more_queries(a, b.shape[1]) @ b).view(*a.shape[:3], -1)


def _product_back(a: torch.Tensor, b: torch.Tensor, K: int) -> torch.Tensor:
    """[n, H, L, X]ᵀ · [n, H, L, Y] → [n, K, X, Y], summed over L and the heads of each of K."""
    return more_queries(a, K).transpose(2, 3) @ more_queries(b, K)


def more_queries(x: torch.Tensor, K: int) -> torch.Tensor:
    """[n, H, L, D] → [n, K, E·L, D]: the E = H/K heads that share a key as more queries to it."""
    return x.unflatten(1, (K, -1)).flatten(2, 3)
