"""Attention over a tree's row (backends/tree.py), without a mask over everything.

All segments attend to themselves, and then in rounds to what they are linked to. These parts are
put together by their normalisers, and taken apart again in the backward pass. With scores s over
all keys j that a query sees, out = Σ_j softmax(s)_j · v_j:

    part i     lse_i = log Σ_{j in i} exp(s_j),    out_i = Σ_{j in i} exp(s_j − lse_i) · v_j
    together   lse = log Σ_i exp(lse_i),           out = Σ_i exp(lse_i − lse) · out_i
    backward   p_j = exp(s_j − lse),               ∂s_j = p_j · (∂out·v_j − ∂out·out)

so every part's gradient needs only the whole's lse and out: a fused kernel's backward pass is right
for a part as it is, if it is handed these. It costs the products that the tree needs and no more,
and memory that is linear in its tokens.

Sizes: T tokens of the row; H heads of queries, K of keys, D wide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from miniact.backends.layout import Layout
from miniact.backends.torch.kernels import kernel_for
from miniact.backends.torch.parts import Part, put, take
from miniact.backends.tree import rounds


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
        self.own = Part([(a, b, a, b) for a, b in tree.segments], True, device)
        self.rounds = [Part(links, False, device) for links in rounds(tree)]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array).to(self.device)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """q, k, v: [1, heads, T, D] → [1, T, H, D]."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return _Tree.apply(*(x.squeeze(0).transpose(0, 1) for x in (q, k, v)), self, scale)[None]


class _Tree(torch.autograd.Function):
    """q [T, H, D] over k, v [T, K, D] → [T, H, D]."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        q, k, v, row, scale = inputs
        kernel = kernel_for(q, k, v)
        out, lse = kernel.forward((q, k, v), row.own, scale)
        if row.rounds:
            sum_THD = out.float()
            for part in row.rounds:
                _join(sum_THD, lse, part, *kernel.forward((q, k, v), part, scale))
            out = sum_THD.to(out.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.row, ctx.scale = row, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        kernel = kernel_for(q, k, v)
        whole = (gradients[0].contiguous(), out, lse)
        sums = [torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k, v)]
        for part in (ctx.row.own, *ctx.row.rounds):
            kernel.backward((q, k, v), whole, part, ctx.scale, sums)
        return *(total.to(x.dtype) for total, x in zip(sums, (q, k, v))), None, None


def _join(
    out: torch.Tensor, lse: torch.Tensor, part: Part, out_XHD: torch.Tensor, lse_HX: torch.Tensor
) -> None:
    """Put a part's attention to what is there for its queries."""
    whole_HX = take(lse, part.queries, 1)
    share_HX = (lse_HX - whole_HX).sigmoid()  # exp(lse_part) / (exp(lse_part) + exp(lse_whole))
    mixed_XHD = take(out, part.queries).lerp(out_XHD.float(), share_HX.t()[..., None])
    put(out, part.queries, mixed_XHD)
    put(lse, part.queries, torch.logaddexp(whole_HX, lse_HX), 1)
