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


class SharedCache:
    """Keys and values while sampling: each prompt's once, each answer's own in a row of its own.

    Call order: `fill(rows)` and a pass for each slice of the prompts, `widen(n)`, a pass per token.
    """

    def __init__(self, length_B: torch.Tensor, max_tokens: int) -> None:
        self.length_B, self.room = length_B, max_tokens
        self.prompt: list[tuple[torch.Tensor, torch.Tensor]] = []  # per layer: [B, K, P, D]
        self.own: list[tuple[torch.Tensor, torch.Tensor]] = []  # per layer: [R, K, room, D]
        self.used = 0  # tokens in `own`
        self.prompt_R = torch.empty(0, dtype=torch.long)
        self.filling: slice | None = None

    def fill(self, rows: slice) -> None:
        """The next pass is that of these prompts, right padded."""
        self.filling = rows

    def widen(self, n: int) -> None:
        """n answers to each prompt. Their first tokens come next."""
        B, self.filling = len(self.length_B), None
        self.prompt_R = torch.arange(B, device=self.length_B.device).repeat_interleave(n)
        for layer in self.prompt:  # MLA's keys are wider than its values
            k, v = (x.new_empty(B * n, x.shape[1], self.room, x.shape[3]) for x in layer)
            self.own.append((k, v))
        P = self.prompt[0][0].shape[2]
        position_P = torch.arange(P, device=self.length_B.device)
        self.padding_BP = position_P[None] >= self.length_B[:, None]
        self._slots()

    def keep(self, row: torch.Tensor) -> None:
        """Drop all answers but these rows; drop prompts once most have no answer left."""
        self.prompt_R = self.prompt_R[row]
        used = self.used
        for i, (k, v) in enumerate(self.own):
            kept_k, kept_v = (x.new_empty(len(row), *x.shape[1:]) for x in (k, v))
            kept_k[:, :, :used], kept_v[:, :, :used] = k[row, :, :used], v[row, :, :used]
            self.own[i] = (kept_k, kept_v)
        live, again = self.prompt_R.unique(return_inverse=True)
        if 2 * len(live) <= len(self.length_B):
            self.length_B, self.padding_BP = self.length_B[live], self.padding_BP[live]
            self.prompt = [(k[live], v[live]) for k, v in self.prompt]
            self.prompt_R = again
        self._slots()

    def _slots(self) -> None:
        """Give every row a slot beside its prompt, [B, slots], so that one product serves all."""
        count_B = torch.bincount(self.prompt_R, minlength=len(self.length_B))
        self.slots = int(count_B.max())
        before_B = count_B.cumsum(0) - count_B
        rank_R = torch.arange(len(self.prompt_R), device=count_B.device) - before_B[self.prompt_R]
        self.slot_R = self.prompt_R * self.slots + rank_R
        self.full = len(self.prompt_R) == len(count_B) * self.slots
        self.padded = bool(self.padding_BP.any())

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """q, k, v: [rows, heads, L, D] → [rows, L, H, D]. Without a gradient."""
        if self.filling is not None:
            return self._fill(layer, q, k, v, scale)
        if layer == 0:
            self.used += 1
        R, H, _, D = q.shape
        (kp, vp), (ko, vo) = self.prompt[layer], self.own[layer]
        K, P = kp.shape[1:3]
        ko[:, :, self.used - 1], vo[:, :, self.used - 1] = k[:, :, 0], v[:, :, 0]
        ko, vo = ko[:, :, : self.used], vo[:, :, : self.used]
        q_RKED = q.reshape(R, K, H // K, D) * (D**-0.5 if scale is None else scale)  # E = H / K
        at_prompt_RKEP = self._by_answer(self._by_prompt(q_RKED) @ kp.transpose(2, 3), R)
        if self.padded:
            hidden_RP = self.padding_BP[self.prompt_R]
            at_prompt_RKEP.masked_fill_(hidden_RP[:, None, None], float("-inf"))
        both = torch.cat([at_prompt_RKEP, q_RKED @ ko.transpose(2, 3)], -1)
        p = both.softmax(-1, dtype=torch.float32).to(v.dtype)
        out_RKED = self._by_answer(self._by_prompt(p[..., :P]) @ vp, R) + p[..., P:] @ vo
        return out_RKED.reshape(R, 1, H, -1)

    def _fill(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """Keep a slice's keys and values. Padding is on the right, so causal needs no mask."""
        B, P, H = len(self.length_B), int(self.length_B.max()), q.shape[1]
        if layer == len(self.prompt):  # zeros: 0 · what lay there before could be NaN
            zeros_k, zeros_v = (x.new_zeros(B, x.shape[1], P, x.shape[3]) for x in (k, v))
            self.prompt.append((zeros_k, zeros_v))
        for kept, new in zip(self.prompt[layer], (k, v)):
            kept[self.filling, :, : new.shape[2]] = new
        out = F.scaled_dot_product_attention(
            q, _widen(k, H), _widen(v, H), is_causal=True, scale=scale
        )
        return out.transpose(1, 2)

    def _by_prompt(self, x_RKEX: torch.Tensor) -> torch.Tensor:
        """[R, K, E, X] → [B, K, slots·E, X]: all answers to a prompt beside each other."""
        K, E, X = x_RKEX.shape[1:]
        B = len(self.length_B)
        if not self.full:
            empty = x_RKEX.new_zeros(B * self.slots, K, E, X)
            x_RKEX = empty.index_copy_(0, self.slot_R, x_RKEX)
        return x_RKEX.view(B, self.slots, K, E, X).transpose(1, 2).reshape(B, K, -1, X)

    def _by_answer(self, x_BKX: torch.Tensor, R: int) -> torch.Tensor:
        """The inverse of `_by_prompt`."""
        B, K, _, X = x_BKX.shape
        x = x_BKX.view(B, K, self.slots, -1, X).transpose(1, 2).reshape(B * self.slots, K, -1, X)
        return x if self.full else x[self.slot_R]
