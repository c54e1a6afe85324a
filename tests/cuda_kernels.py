"""What CUDA's attention operators compute, for machines without a card: from their definition.

Several sequences lie one behind the other, cut at `cut_q` and `cut_k`; a causal one is aligned at
its last token. One formula in float64 for all, and what the operators do not take is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch


def _sequences(q: Any, k: Any, cut_q: Any, cut_k: Any, longest: Any) -> Iterator[tuple[Any, Any]]:
    assert cut_q.dtype == cut_k.dtype == torch.int32 and cut_q[-1] == len(q) and cut_k[-1] == len(k)
    assert q.shape[2] % 8 == 0 and q.stride(2) == k.stride(2) == 1
    for x, y in zip(pairwise(cut_q.tolist()), pairwise(cut_k.tolist())):
        assert 0 < x[1] - x[0] <= longest[0] and 0 < y[1] - y[0] <= longest[1]
        yield slice(*x), slice(*y)


def _scores(q: torch.Tensor, k: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    """[H, L, S], and the keys for every head of a query."""
    s = scale * torch.einsum("lhd,shd->hls", q, k)
    later = torch.ones_like(s, dtype=torch.bool).triu(1 + s.shape[2] - s.shape[1])
    return s.masked_fill(later, -math.inf) if causal else s


def _wide(q: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    return [x.repeat_interleave(q.shape[1] // x.shape[1], 1).double() for x in (q, *others)]


def flash_forward(  # noqa: PLR0913  (PyTorch's signature, as below)
    q: Any, k: Any, v: Any, cut_q: Any, cut_k: Any, max_q: int, max_k: int, dropout: float,
    causal: bool, debug: bool, *, scale: float,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    assert not dropout and not debug
    assert max_q > 1 or q.shape[1] == k.shape[1]  # or it hands out normalisers in another order
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q), dtype=torch.float32)
    for x, y in _sequences(q, k, cut_q, cut_k, (max_q, max_k)):
        q_x, k_y, v_y = _wide(q[x], k[y], v[y])
        s = _scores(q_x, k_y, causal, scale)
        out[x] = torch.einsum("hls,shd->lhd", s.softmax(-1), v_y).to(out.dtype)
        lse[:, x] = s.logsumexp(-1).float()
    unused = torch.empty(2, dtype=torch.uint64)
    return out, lse, unused, unused, unused


def flash_backward(  # noqa: PLR0913
    grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, cut_q: Any, cut_k: Any, max_q: int,
    max_k: int, dropout: float, causal: bool, rng: Any, unused: Any, *, scale: float,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    assert not dropout and lse.is_contiguous() and lse.shape == (q.shape[1], len(q))
    assert grad.dtype == out.dtype == q.dtype and grad.stride(2) == out.stride(2) == 1
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    for x, y in _sequences(q, k, cut_q, cut_k, (max_q, max_k)):
        q_x, k_y, v_y, grad_x, out_x = _wide(q[x], k[y], v[y], grad[x], out[x])
        p = (_scores(q_x, k_y, causal, scale) - lse[:, x, None].double()).exp()
        along = (grad_x * out_x).sum(-1).T[..., None]
        ds = scale * p * (torch.einsum("lhd,shd->hls", grad_x, v_y) - along)
        dq[x] = torch.einsum("hls,shd->lhd", ds, k_y).to(q.dtype)
        for d, weights, of in ((dk, ds, q_x), (dv, p, grad_x)):
            wide = torch.einsum("hls,lhd->shd", weights, of)
            d[y] = wide.unflatten(1, (k.shape[1], -1)).sum(2).to(d.dtype)
    return dq, dk, dv


def efficient_forward(  # noqa: PLR0913
    q: Any, k: Any, v: Any, bias: Any, cut_q: Any, cut_k: Any, max_q: int, max_k: int,
    dropout: float, mask: int, with_lse: bool, *, scale: float,
) -> tuple[Any, ...]:  # fmt: skip
    assert bias is None and with_lse and mask in (0, 1) and len(q) == 1
    assert q.shape[2] == k.shape[2] == v.shape[2]  # it shares no keys
    cuts = (cut_q, cut_k, max_q, max_k)
    out, lse, *_ = flash_forward(q[0], k[0], v[0], *cuts, dropout, bool(mask), False, scale=scale)
    padded = lse.new_full((len(cut_q) - 1, len(lse), math.ceil(max_q / 32) * 32), math.inf)
    for i, (a, b) in enumerate(pairwise(cut_q.tolist())):
        padded[i, :, : b - a] = lse[:, a:b]
    unused = torch.empty((), dtype=torch.int64)
    return out[None], padded, unused, unused, max_q, max_k


def efficient_backward(  # noqa: PLR0913
    grad: Any, q: Any, k: Any, v: Any, bias: Any, out: Any, cut_q: Any, cut_k: Any, max_q: int,
    max_k: int, lse: Any, dropout: float, seed: Any, offset: Any, mask: int, bias_too: bool,
    *, scale: float,
) -> tuple[Any, ...]:  # fmt: skip
    assert bias is None and not bias_too and lse.is_contiguous() and lse.shape[2] % 32 == 0
    ends = cut_q.tolist()
    packed = torch.cat([lse[i, :, : b - a] for i, (a, b) in enumerate(pairwise(ends))], 1)
    tensors = [x[0] for x in (grad, q, k, v, out)]
    cuts = (packed.contiguous(), cut_q, cut_k, max_q, max_k)
    gradients = flash_backward(*tensors, *cuts, dropout, bool(mask), seed, offset, scale=scale)
    return *(x[None] for x in gradients), None


OPERATORS = {
    "_flash_attention_forward": flash_forward,
    "_flash_attention_backward": flash_backward,
    "_efficient_attention_forward": efficient_forward,
    "_efficient_attention_backward": efficient_backward,
}
_CPU = "_scaled_dot_product_flash_attention_for_cpu"
ATEN = SimpleNamespace(  # what kernels.py takes from torch.ops.aten
    **OPERATORS, **{name: getattr(torch.ops.aten, name) for name in (_CPU, f"{_CPU}_backward")}
)
