"""Attention over a tree's row (backends/tree.py), without a mask over everything.

    roots         segments that hang on nothing: plain causal attention, PyTorch's own
    branches      all other tokens: triangles and rectangles of scores, one after the other

The parts of a branch are put together by their normalisers, and taken apart again in the backward
pass. With scores s over all keys j that a query sees, out = Σ_j softmax(s)_j · v_j:

    part i     lse_i = log Σ_{j in i} exp(s_j),    out_i = Σ_{j in i} exp(s_j − lse_i) · v_j
    together   lse = log Σ_i exp(lse_i),           out = Σ_i exp(lse_i − lse) · out_i
    backward   p_j = exp(s_j − lse),               ∂s_j = p_j · (∂out·v_j − ∂out·out)

so every part's gradient needs only the whole's lse and out. It costs the products that the tree
needs and no more, and beside them memory that is linear in its tokens.

Sizes: T tokens of the row, X of them of branches; H heads of queries, K of keys, E = H/K queries to
a key; D wide (values may be of another width). n segments of C tokens each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from miniact.backends.layout import Layout
from miniact.backends.torch.attention import pick, widen
from miniact.backends.tree import ON_GPU, Parts


class PackedRow:
    """A micro-batch as one row without padding; what a model needs to run over it.

    `index_N`: where in the row the prediction of each completion token is made.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        assert layout.tree is not None
        tree, self.device = layout.tree, device
        self.token_1T = self._tensor(tree.token_T)[None]
        self.position_1T = self._tensor(tree.position_T)[None]
        self.index_N = self._tensor(layout.place_N)
        parts = Parts(layout.tree, **({} if device.type == "cpu" else ON_GPU))
        self.roots = list(map(self._tensor, parts.roots))
        self.branch_X = self._tensor(parts.branch_X)
        self.back_T = self._tensor(parts.back_T)
        self.triangles = [tuple(map(self._tensor, both)) for both in parts.triangles]
        self.rectangles = parts.rectangles

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array).to(self.device)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """q, k, v: [1, heads, T, D] → [1, T, H, D]."""
        H, K = q.shape[1], k.shape[1]
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (q, k, v))
        outs_THD = []
        for index_nL in self.roots:
            q_nHLD, k_nHLD, v_nHLD = (
                widen(pick(x, index_nL).transpose(1, 2), H) for x in (q_THD, k_TKD, v_TKD)
            )
            out_nHLD = F.scaled_dot_product_attention(
                q_nHLD, k_nHLD, v_nHLD, is_causal=True, scale=scale
            )
            outs_THD.append(out_nHLD.transpose(1, 2).flatten(0, 1))
        if len(self.branch_X):
            q_XKED = pick(q_THD, self.branch_X).unflatten(1, (K, H // K))
            out_KXED = _Branches.apply(
                q_XKED.transpose(0, 1).contiguous(),
                k_TKD.transpose(0, 1).contiguous(),
                v_TKD.transpose(0, 1).contiguous(),
                self,
                scale,
            )
            outs_THD.append(out_KXED.transpose(0, 1).flatten(1, 2))
        return pick(torch.cat(outs_THD), self.back_T)[None]


class _Branches(torch.autograd.Function):
    """Attention of q [K, X, E, D] over k, v [K, T, D] by the parts of a row → [K, X, E, D]."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        q, k, v, row, scale = inputs
        out = q.new_empty(*q.shape[:3], v.shape[-1], dtype=torch.float32)
        lse = q.new_empty(*q.shape[:3], 1, dtype=torch.float32)
        for mine_nC, place_nC in row.triangles:
            x, y = mine_nC.flatten(), place_nC.flatten()
            s = _triangle(_few(q, mine_nC), _few(k, place_nC), scale)
            out_x, lse_x = _softmax(s, _few(v, place_nC))
            out.index_copy_(1, x, out_x.view_as(out[:, : len(x)]))
            lse.index_copy_(1, x, lse_x.view_as(lse[:, : len(y)]))
        for a, b, c, d in row.rectangles:
            s = _scores(q[:, a:b].flatten(1, 2), k[:, c:d], scale)
            out_x, lse_x = _softmax(s, v[:, c:d])
            whole, part = lse[:, a:b], lse_x.view_as(lse[:, a:b])
            both = torch.logaddexp(whole, part)
            part_out = out_x.view_as(out[:, a:b]).mul_((part - both).exp_())
            out[:, a:b].mul_((whole - both).exp_()).add_(part_out)
            lse[:, a:b] = both
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.row, ctx.scale = row, scale
        return out.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        grad, scale = gradients[0].contiguous(), ctx.scale
        along = (grad * out).sum(-1, keepdim=True)  # ∂out·out
        dq = torch.empty_like(q, dtype=torch.float32)
        dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        for mine_nC, place_nC in ctx.row.triangles:
            x, y = mine_nC.flatten(), place_nC.flatten()
            q_x, grad_x, lse_x, along_x = (_few(z, mine_nC) for z in (q, grad, lse, along))
            k_y, v_y = _few(k, place_nC), _few(v, place_nC)
            dq_x, dk_y, dv_y = _backward(
                _triangle(q_x, k_y, scale), (q_x, k_y, v_y), (grad_x, lse_x, along_x), scale
            )
            dq.index_copy_(1, x, dq_x.view_as(dq[:, : len(x)]))
            dk.index_copy_(1, y, dk_y.view_as(dk[:, : len(y)]))
            dv.index_copy_(1, y, dv_y.view_as(dv[:, : len(y)]))
        for a, b, c, d in ctx.row.rectangles:
            q_x, grad_x, lse_x, along_x = (z[:, a:b].flatten(1, 2) for z in (q, grad, lse, along))
            k_y, v_y = k[:, c:d], v[:, c:d]
            dq_x, dk_y, dv_y = _backward(
                _scores(q_x, k_y, scale), (q_x, k_y, v_y), (grad_x, lse_x, along_x), scale
            )
            dq[:, a:b] += dq_x.view_as(dq[:, a:b])
            dk[:, c:d] += dk_y
            dv[:, c:d] += dv_y
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _few(x: torch.Tensor, index_nC: torch.Tensor) -> torch.Tensor:
    """[K, tokens, (E,) D] → [K·n, C(·E), D]: these tokens, one segment's beside each other."""
    n, picked = len(index_nC), x.index_select(1, index_nC.flatten())
    return picked.view(len(x) * n, -1, x.shape[-1])


def _scores(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.bmm(q, k.transpose(1, 2)).float().mul_(scale)


def _triangle(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """The scores of segments with themselves: q [K·n, C·E, D], k [K·n, C, D]."""
    C = k.shape[1]
    later_CC = torch.ones(C, C, dtype=torch.bool, device=k.device).triu_(1)
    later = later_CC.repeat_interleave(q.shape[1] // C, 0)
    return _scores(q, k, scale).masked_fill_(later, float("-inf"))


def _softmax(s: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(s) · v and the logarithm of the normaliser; s is used up."""
    most = s.amax(-1, keepdim=True)
    p = s.sub_(most).exp_()
    total = p.sum(-1, keepdim=True)
    return torch.bmm(p.to(v.dtype), v).float() / total, most + total.log()


def _backward(
    s: torch.Tensor, inputs: tuple[torch.Tensor, ...], whole: tuple[torch.Tensor, ...], scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """∂q, ∂k, ∂v of one part from its scores, which are used up."""
    (q, k, v), (grad, lse, along) = inputs, whole
    p = s.sub_(lse).exp_()
    dv = torch.bmm(p.to(v.dtype).transpose(1, 2), grad)
    ds = torch.bmm(grad, v.transpose(1, 2)).float().sub_(along).mul_(p).mul_(scale).to(q.dtype)
    return torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q), dv
