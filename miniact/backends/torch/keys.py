"""Keys and values while sampling: a prompt's lie there once for all its answers.

    prompt   [B, K, P, D]      right padded; the stem of a row is copied, the rest is computed
    own      [R, K, room, D]   of each answer, in a row of its own

Sizes: B prompts of up to P tokens, R live answers, H heads (K of keys and values, E = H/K), D wide.
"""

from __future__ import annotations

from itertools import chain

import torch
import torch.nn.functional as F

from miniact.backends.held import Plan
from miniact.backends.torch.attention import widen

Layer = tuple[torch.Tensor, torch.Tensor]  # keys, values


class SharedCache:
    """Call order: `fill(rows)` and a pass for each slice of the prompts, `widen(n)`, a pass per
    token."""

    def __init__(self, length_B: torch.Tensor, max_tokens: int, plan: Plan) -> None:
        self.length_B, self.room, self.plan = length_B, max_tokens, plan
        self.prompt: list[Layer] = []  # per layer: [B, K, P, D]
        self.own: list[Layer] = []  # per layer: [R, K, room, D]
        self.used = 0  # tokens in `own`
        self.prompt_R = torch.empty(0, dtype=torch.long)
        self.filling: slice | None = None
        self.sees_B1SP: torch.Tensor | None = None  # None: no stems, plain causal attention

    def fill(self, rows: slice) -> None:
        """The next pass is that of these prompts, right padded, each from its stem on."""
        self.filling, self.sees_B1SP = rows, None
        stems, device = self.plan.stems[rows], self.length_B.device
        lengths = [len(prompt) for prompt in self.plan.prompts[rows]]
        for row, stem in enumerate(stems, rows.start):
            for kept in chain.from_iterable(self.prompt if stem.chunk is None else ()):
                kept[row, :, : stem.length] = kept[stem.row, :, : stem.length]
        if any(stem.length for stem in stems):
            stem_B, length_B = torch.tensor([s.length for s in stems]), torch.tensor(lengths)
            S, P = int((length_B - stem_B).max()), max(lengths)
            at_BS = stem_B[:, None] + torch.arange(S)
            new_BS = at_BS < length_B[:, None]
            self.new_N = tuple(index.to(device) for index in torch.nonzero(new_BS, as_tuple=True))
            self.at_N = at_BS[new_BS].to(device)
            self.sees_B1SP = (torch.arange(P) <= at_BS[:, None, :, None]).to(device)

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
        if layer == len(self.prompt):
            self.prompt.append(self._new_layer(layer, k, v))
        if self.sees_B1SP is not None:
            return self._fill_from_stems(layer, q, k, v, scale)
        for kept, new in zip(self.prompt[layer], (k, v)):
            kept[self.filling, :, : new.shape[2]] = new
        H = q.shape[1]
        out = F.scaled_dot_product_attention(
            q, widen(k, H), widen(v, H), is_causal=True, scale=scale
        )
        return out.transpose(1, 2)

    def _new_layer(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> Layer:
        """Room for the prompts, with the stems that are held: keys that move leave their place."""
        B, P = len(self.length_B), int(self.length_B.max())
        # zeros: 0 · what lay there before could be NaN; MLA's keys are wider than its values
        new_k, new_v = (x.new_zeros(B, x.shape[1], P, x.shape[3]) for x in (k, v))
        for row, stem in enumerate(self.plan.stems):
            for kept, old in zip((new_k, new_v), stem.chunk.keys[layer] if stem.chunk else ()):
                kept[row, :, : stem.length] = old[stem.row, :, : stem.length]
        for chunk in self.plan.moved:
            chunk.keys[layer] = ()
        return new_k, new_v

    def _fill_from_stems(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """The same behind stems. The query heads of a key head become queries, as in a step."""
        assert self.sees_B1SP is not None
        (b_N, s_N), (B, H, S, D), K = self.new_N, q.shape, k.shape[1]
        P = self.sees_B1SP.shape[3]
        kept_k, kept_v = (kept[self.filling, :, :P] for kept in self.prompt[layer])
        for kept, new in ((kept_k, k), (kept_v, v)):
            kept[b_N, :, self.at_N] = new[b_N, :, s_N]
        sees_B1XP = self.sees_B1SP.repeat(1, 1, H // K, 1)
        out_BKXD = F.scaled_dot_product_attention(
            q.reshape(B, K, -1, D), kept_k, kept_v, attn_mask=sees_B1XP, scale=scale
        )
        return out_BKXD.reshape(B, H, S, -1).transpose(1, 2)

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
