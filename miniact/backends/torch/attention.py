"""Attention for tokens that share a prompt, without a mask over everything and without copies.

A row holds the tokens of several groups, one after the other; no token is padding:

    row       [ prompt 1 | answer a | answer b | answer c ] [ prompt 2, answer ] [ prompt 3 | …
    trunks      └──────┘                                      └──────────────┘     └──────┘
    branches               └──────┘   └──────┘   └──────┘                                     └─ …
    b sees      ████████              ██████◣

    trunk    the prompt of a group (with its answer, where it has only one): plain causal attention
    branch   one of several answers: its tokens see the whole trunk, and themselves causally

So a group costs P²/2 + G·C·(P + C) products of a query and a key, where a masked row would cost
(P + G·C)² and the plain layout G·(P + C)²/2. In sampling the keys of a prompt are kept once for
all its answers: they are read once per step, not once per answer.

`use_shared_attention` tells a model to hand what its layers compute to `_attend`. Sizes: T tokens
of the row, S trunks of M tokens, A branches of C tokens, H heads (K of keys and values), D wide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from miniact.backends.layout import PADDING, Layout

NAME = "miniact_shared"


def use_shared_attention(model: Any, used: bool) -> None:
    """Let the model's layers call `_attend`, or PyTorch's sdpa, whose part it takes."""
    now = model.config._attn_implementation
    if now in ("sdpa", NAME) and now != (wanted := NAME if used else "sdpa"):
        model.set_attn_implementation(wanted)


def _attend(  # noqa: PLR0913  (transformers' signature)
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    shared: Any = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if shared is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    return shared.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _widen(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[…, K, L, D] → […, H, L, D]: the same keys for every query head of a K."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _pick(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x[index] along the first axis; the gradient of this form is a plain, fast sum."""
    return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])


def no_mask(device: torch.device) -> torch.Tensor:
    """A 4D mask is passed through unread: the model must not make one from the positions."""
    return torch.zeros(1, 1, 1, 1, device=device)


class PackedRow:
    """A micro-batch as one row without padding; what a model needs to run over it.

    `index_N`: where in the row the prediction of each completion token is made.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        real_BL = layout.group_BL != PADDING
        at_BL = np.cumsum(real_BL).reshape(real_BL.shape) - 1  # place in the row

        def tensor(array: Any) -> torch.Tensor:
            return torch.as_tensor(array).to(device)

        self.token_1T = tensor(layout.token_BL[real_BL])[None]
        self.position_1T = tensor(layout.position_BL[real_BL])[None]
        self.index_N = tensor(at_BL[layout.row_N, layout.col_N])
        trunks, branches, trunk_A = _parts(layout, at_BL)
        prompt_A = np.array([len(trunks[s]) for s in trunk_A], dtype=np.int64)
        self.trunk_SM, self.branch_AC = tensor(_padded(trunks)), tensor(_padded(branches))
        self.trunk_A = tensor(trunk_A)
        self.back_T = tensor(_places(trunks, branches, self.token_1T.shape[1]))
        self.sees_A1CJ = None
        if branches:
            M, C = self.trunk_SM.shape[1], self.branch_AC.shape[1]
            if (prompt_A == M).all():
                prompt_A = prompt_A[:1]  # one mask for all branches
            trunk = np.arange(M)[None, None, None] < prompt_A[:, None, None, None]
            own = np.tri(C, dtype=bool)[None, None]
            shape = (len(prompt_A), 1, C)
            self.sees_A1CJ = tensor(
                np.concatenate(
                    [np.broadcast_to(trunk, (*shape, M)), np.broadcast_to(own, (*shape, C))], -1
                )
            )

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """q, k, v: [1, heads, T, D] → [1, T, H, D]."""
        q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (q, k, v))
        k_SMKD, v_SMKD = _pick(k_TKD, self.trunk_SM), _pick(v_TKD, self.trunk_SM)
        trunks_SHMD = F.scaled_dot_product_attention(
            _pick(q_THD, self.trunk_SM).transpose(1, 2),
            _widen(k_SMKD.transpose(1, 2), q.shape[1]),
            _widen(v_SMKD.transpose(1, 2), q.shape[1]),
            is_causal=True,
            scale=scale,
        )
        parts = [trunks_SHMD.transpose(1, 2).flatten(0, 1)]
        if self.sees_A1CJ is not None:
            keys, values = (
                torch.cat([_pick(trunk, self.trunk_A), _pick(own, self.branch_AC)], 1)
                for trunk, own in ((k_SMKD, k_TKD), (v_SMKD, v_TKD))
            )
            parts.append(self._branches(_pick(q_THD, self.branch_AC), keys, values, scale))
        return _pick(torch.cat(parts), self.back_T)[None]

    def _branches(
        self, q_ACHD: torch.Tensor, k_AJKD: torch.Tensor, v_AJKD: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """The E = H/K query heads of a key head become E·C queries: no key is copied for them."""
        A, C, H, D = q_ACHD.shape
        K = k_AJKD.shape[2]
        q_AKXD = q_ACHD.view(A, C, K, H // K, D).permute(0, 2, 3, 1, 4).reshape(A, K, -1, D)
        assert self.sees_A1CJ is not None
        out_AKXD = F.scaled_dot_product_attention(
            q_AKXD,
            k_AJKD.transpose(1, 2),
            v_AJKD.transpose(1, 2),
            attn_mask=self.sees_A1CJ.repeat(1, 1, H // K, 1),
            scale=scale,
        )
        out_ACKED = out_AKXD.view(A, K, H // K, C, -1).permute(0, 3, 1, 2, 4)
        return out_ACKED.reshape(A * C, H, -1)


def _parts(
    layout: Layout, at_BL: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Places in the row of every trunk and every branch, and the trunk of each branch."""
    trunks, branches, trunk_A = [], [], []
    for at_L, group_L, answer_L in zip(at_BL, layout.group_BL, layout.answer_BL):
        for group in range(group_L.max() + 1):
            mine = group_L == group
            last = answer_L[mine].max()
            trunks.append(at_L[mine & ((answer_L == 0) | (last == 1))])
            for answer in range(1, last + 1) if last > 1 else ():
                branches.append(at_L[mine & (answer_L == answer)])
                trunk_A.append(len(trunks) - 1)
    return trunks, branches, np.array(trunk_A, dtype=np.int64)


def _padded(parts: list[np.ndarray]) -> np.ndarray:
    """Parts as rows of one array, right padded. What the padding computes is never read."""
    out = np.zeros((len(parts), max(map(len, parts), default=0)), dtype=np.int64)
    for row, part in zip(out, parts):
        row[: len(part)] = part
    return out


def _places(trunks: list[np.ndarray], branches: list[np.ndarray], T: int) -> np.ndarray:
    """For every token of the row, its place among the padded trunks and then branches."""
    place_T = np.zeros(T, dtype=np.int64)
    start = 0
    for parts in (trunks, branches):
        width = max(map(len, parts), default=0)
        for i, part in enumerate(parts):
            place_T[part] = start + i * width + np.arange(len(part))
        start += len(parts) * width
    return place_T
