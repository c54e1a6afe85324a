"""Sampling on PyTorch: one prefill per prompt, then all answers a token at a time.

Two ways to keep keys and values. `SharedKeys` holds those of a prompt once for all its answers
(attention.py). `WidenedKeys` copies transformers' own cache to a row per answer; it is slower and
serves every architecture. Both drop answers as they finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from miniact.backends.sampling import slices
from miniact.backends.torch.attention import SharedCache, no_mask
from miniact.backends.torch.head import Head


class Rows:
    """The answers of one chunk. R: the live ones."""

    def __init__(self, head: Head, temperature: float, keys: SharedKeys | WidenedKeys) -> None:
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
    """Prompts right padded; their keys are stored once and never copied."""

    def __init__(
        self, body: Any, prompts: Sequence[Any], n: int, max_tokens: int, prefill: int
    ) -> None:
        self.body, self.n, self.prompts, self.prefill_tokens = body, n, prompts, prefill
        self.device = next(body.parameters()).device
        self.length_B = torch.tensor([len(p) for p in prompts], device=self.device)
        self.cache = SharedCache(self.length_B, max_tokens)

    def _run(self, token_RL: torch.Tensor, position_RL: torch.Tensor) -> torch.Tensor:
        return self.body(
            input_ids=token_RL,
            attention_mask=no_mask(self.device),
            position_ids=position_RL,
            use_cache=False,
            shared=self.cache,
        ).last_hidden_state

    def prefill(self) -> torch.Tensor:
        lengths = [len(p) for p in self.prompts]
        last_BD = [self._prefill(rows) for rows in slices(lengths, self.prefill_tokens)]
        self.cache.widen(self.n)
        self.position_R = self.length_B.repeat_interleave(self.n)
        return torch.cat(last_BD).repeat_interleave(self.n, 0)

    def _prefill(self, rows: slice) -> torch.Tensor:
        """Pass a slice of the prompts; the hidden state after the last token of each."""
        prompts, length_B = self.prompts[rows], self.length_B[rows]
        B, P = len(prompts), int(length_B.max())
        token_BP = torch.zeros(B, P, dtype=torch.long)
        for b, prompt in enumerate(prompts):
            token_BP[b, : len(prompt)] = torch.tensor(prompt)
        self.cache.fill(rows)
        position_BP = torch.arange(P, device=self.device).expand(B, P)
        hidden_BPD = self._run(token_BP.to(self.device), position_BP)
        return hidden_BPD[torch.arange(B, device=self.device), length_B - 1]

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
        if self.n > 1:
            self.cache.batch_repeat_interleave(self.n)
        self.mask_RL = self.mask_RL.repeat_interleave(self.n, 0)
        self.position_R = self.mask_RL.sum(1)
        return last_BD.repeat_interleave(self.n, 0)

    def keep(self, row: torch.Tensor) -> None:
        self.cache.reorder_cache(row)
        self.mask_RL, self.position_R = self.mask_RL[row], self.position_R[row]

    def step(self, token_R: torch.Tensor) -> torch.Tensor:
        self.mask_RL = torch.cat([self.mask_RL, self.mask_RL.new_ones(len(token_R), 1)], 1)
        hidden_RD = self._run(token_R[:, None], self.position_R[:, None])
        self.position_R = self.position_R + 1
        return hidden_RD
