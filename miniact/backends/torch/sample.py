"""Sampling on PyTorch: one prefill per prompt, then all answers a token at a time.

Three ways to keep what was computed. `SharedKeys` holds the keys and values of a prompt once for
all its answers (attention.py). `WidenedKeys` copies transformers' own cache, of whatever kind, to a
row per answer. `NoKeys` keeps nothing: every token passes the whole text again, which is right for
every model and slow. All drop answers as they finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from miniact.backends.held import Plan
from miniact.backends.torch.attention import no_mask
from miniact.backends.torch.head import Head
from miniact.backends.torch.keys import SharedCache


class Rows:
    """The answers of one chunk. R: the live ones."""

    def __init__(self, head: Head, temperature: float, keys: Keys) -> None:
        self.head, self.temperature, self.keys = head, temperature, keys
        self.hidden_RD = keys.prefill()

    def draw(self, u_R: np.ndarray) -> tuple[list[int], list[float]]:
        u = torch.from_numpy(u_R).to(self.hidden_RD.device)
        self.token_R, logp_R = draw(self.head, self.hidden_RD, self.temperature, u)
        return self.token_R.tolist(), logp_R.tolist()

    def keep(self, live: list[int]) -> None:
        index = torch.tensor(live, device=self.token_R.device)
        self.keys.keep(index)
        self.token_R = self.token_R[index]

    def step(self) -> None:
        self.hidden_RD = self.keys.step(self.token_R)


def draw(
    head: Head, hidden_RD: torch.Tensor, temperature: float, u_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Next token of every row, and its log-probability at this temperature (greedy: at 1).

    The uniform number u of a row picks the first token whose cumulated probability exceeds it.
    """
    logp_RV = torch.log_softmax(head.logits(hidden_RD, temperature or 1.0), -1)
    if temperature == 0:
        token_R1 = logp_RV.argmax(-1, keepdim=True)
    else:
        sum_RV = logp_RV.exp().cumsum(-1)
        token_R1 = torch.searchsorted(sum_RV, u_R[:, None] * sum_RV[:, -1:], right=True)
        token_R1 = token_R1.clamp_(max=logp_RV.shape[1] - 1)
    return token_R1[:, 0], logp_RV.gather(1, token_R1)[:, 0]


class SharedKeys:
    """Prompts right padded; their keys are stored once and never copied for an answer."""

    def __init__(self, body: Any, plan: Plan, n: int, max_tokens: int, prefill: int) -> None:
        self.body, self.plan, self.n, self.prefill_tokens = body, plan, n, prefill
        self.device = next(body.parameters()).device
        self.length_B = torch.tensor([len(p) for p in plan.prompts], device=self.device)
        self.cache = SharedCache(self.length_B, max_tokens, plan)

    def _run(self, token_RL: torch.Tensor, position_RL: torch.Tensor) -> torch.Tensor:
        return self.body(
            input_ids=token_RL,
            attention_mask=no_mask(self.device),
            position_ids=position_RL,
            use_cache=False,
            shared=self.cache,
        ).last_hidden_state

    def prefill(self) -> torch.Tensor:
        last_BD = [self._prefill(rows) for rows in self.plan.parts(self.prefill_tokens)]
        self.cache.widen(self.n)
        self.position_R = self.length_B.repeat_interleave(self.n)
        return torch.cat(last_BD).repeat_interleave(self.n, 0)

    def _prefill(self, rows: slice) -> torch.Tensor:
        """Pass what is new of some prompts; the hidden state after the last token of each."""
        stems = [stem.length for stem in self.plan.stems[rows]]
        new = [p[length:] for p, length in zip(self.plan.prompts[rows], stems)]
        token_BS, stem_B = _right_padded(new), torch.tensor(stems, device=self.device)
        B, S = token_BS.shape
        self.cache.fill(rows)
        position_BS = stem_B[:, None] + torch.arange(S, device=self.device)
        # of padding too it must be one that the model knows
        position_BS = position_BS.minimum(self.length_B[rows, None] - 1)
        hidden_BSD = self._run(token_BS.to(self.device), position_BS)
        return hidden_BSD[torch.arange(B, device=self.device), self.length_B[rows] - stem_B - 1]

    def keep(self, row: torch.Tensor) -> None:
        self.cache.keep(row)
        self.position_R = self.position_R[row]

    def step(self, token_R: torch.Tensor) -> torch.Tensor:
        hidden_RD = self._run(token_R[:, None], self.position_R[:, None])[:, 0]
        self.position_R = self.position_R + 1
        return hidden_RD


class WidenedKeys:
    """Prompts left padded, so that all answers start in one column of transformers' cache."""

    def __init__(self, body: Any, prompts: Sequence[Any], n: int) -> None:
        self.body, self.n = body, n
        device = next(body.parameters()).device
        B, P = len(prompts), max(map(len, prompts))
        token_BP = torch.zeros(B, P, dtype=torch.long)
        mask_BP = torch.zeros(B, P, dtype=torch.long)
        for b, prompt in enumerate(prompts):
            token_BP[b, P - len(prompt) :] = torch.tensor(prompt)
            mask_BP[b, P - len(prompt) :] = 1
        self.padded = bool((mask_BP == 0).any())
        self.token_BP, self.mask_RL = token_BP.to(device), mask_BP.to(device)
        self.cache: Any = None

    def _run(self, token_RL: torch.Tensor, position_RL: torch.Tensor) -> torch.Tensor:
        result = self.body(
            input_ids=token_RL,
            attention_mask=self.mask_RL if self.padded else None,
            position_ids=position_RL,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = result.past_key_values
        return result.last_hidden_state[:, -1]

    def prefill(self) -> torch.Tensor:
        last_BD = self._run(self.token_BP, (self.mask_RL.cumsum(1) - 1).clamp(min=0))
        self.position_R = self.mask_RL.sum(1)
        row = torch.arange(len(last_BD), device=last_BD.device).repeat_interleave(self.n)
        self.keep(row)
        return last_BD[row]

    def keep(self, row: torch.Tensor) -> None:
        """Make the cache one of these rows of itself; a row may come again."""
        R = len(self.position_R)

        def pick(x: Any) -> Any:
            return x[row] if isinstance(x, torch.Tensor) and x.ndim and len(x) == R else x

        for layer in self.cache.layers:  # keys and values, or the states of a recurrence
            vars(layer).update(tree_map(pick, vars(layer)))
        self.mask_RL, self.position_R = self.mask_RL[row], self.position_R[row]

    def step(self, token_R: torch.Tensor) -> torch.Tensor:
        self.mask_RL = torch.cat([self.mask_RL, self.mask_RL.new_ones(len(token_R), 1)], 1)
        hidden_RD = self._run(token_R[:, None], self.position_R[:, None])
        self.position_R = self.position_R + 1
        return hidden_RD


class NoKeys:
    """The text of every answer, right padded where it is passed: a causal model never sees that."""

    def __init__(self, body: Any, prompts: Sequence[Any], n: int) -> None:
        self.body, self.text_R = body, [list(p) for p in prompts for _ in range(n)]
        self.device = next(body.parameters()).device

    def prefill(self) -> torch.Tensor:
        token_RL = _right_padded(self.text_R).to(self.device)
        hidden_RLD = self.body(input_ids=token_RL, use_cache=False).last_hidden_state
        last_R = torch.tensor([len(text) - 1 for text in self.text_R], device=self.device)
        return hidden_RLD[torch.arange(len(last_R), device=self.device), last_R]

    def keep(self, row: torch.Tensor) -> None:
        self.text_R = [self.text_R[r] for r in row.tolist()]

    def step(self, token_R: torch.Tensor) -> torch.Tensor:
        self.text_R = [[*text, token] for text, token in zip(self.text_R, token_R.tolist())]
        return self.prefill()


Keys = SharedKeys | WidenedKeys | NoKeys


def _right_padded(texts: Sequence[Any]) -> torch.Tensor:
    token_BL = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row_L, text in zip(token_BL, texts):
        row_L[: len(text)] = torch.tensor(text)
    return token_BL
