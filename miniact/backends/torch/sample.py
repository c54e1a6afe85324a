"""Sampling on PyTorch: one prefill per prompt, then all answers a token at a time.

Two ways to keep keys and values. `_Shared` holds those of a prompt once for all its answers
(torch_attention.py). `_Widened` copies transformers' own cache to a row per answer; it is slower
and serves every architecture. Both drop answers as they finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from miniact.backends.torch.attention import SharedCache, no_mask
from miniact.backends.torch.head import Head

Drawn = tuple[list[list[int]], list[list[float]]]


@dataclass(frozen=True)
class Model:
    """What sampling needs of a model. `shares`: its attention can read one prompt for all."""

    causal_lm: Any
    head: Head
    ends: tuple[int, ...]
    shares: bool


def sample_chunk(
    model: Model,
    prompts: Sequence[Sequence[int]],
    n: int,
    max_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> Drawn:
    """n answers to each prompt, those to prompt 0 first: token ids and their log-probs."""
    device = generator.device
    way = _Shared if model.shares else _Widened
    keys = way(model.causal_lm.get_decoder(), prompts, n, max_tokens, device)
    hidden_RD = keys.prefill()
    row_R = list(range(len(prompts) * n))  # which answer each live row is
    tokens: list[list[int]] = [[] for _ in row_R]
    logps: list[list[float]] = [[] for _ in row_R]
    for step in range(max_tokens):
        token_R, logp_R = draw(model.head, hidden_RD, temperature, generator)
        for row, token, logp in zip(row_R, token_R.tolist(), logp_R.tolist()):
            tokens[row].append(token)
            logps[row].append(logp)
        live = [i for i, row in enumerate(row_R) if tokens[row][-1] not in model.ends]
        if not live or step == max_tokens - 1:
            break
        if len(live) < len(row_R):
            keep = torch.tensor(live, device=device)
            keys.keep(keep)
            token_R, row_R = token_R[keep], [row_R[i] for i in live]
        hidden_RD = keys.step(token_R)
    return tokens, logps


def draw(
    head: Head, hidden_RD: torch.Tensor, temperature: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Next token of every row, and its log-probability at this temperature (greedy: at 1).

    One uniform number u per row picks the first token whose cumulated probability exceeds u.
    """
    logp_RV = torch.log_softmax(head.logits(hidden_RD, temperature or 1.0), -1)
    if temperature == 0:
        token_R1 = logp_RV.argmax(-1, keepdim=True)
    else:
        sum_RV = logp_RV.exp().cumsum(-1)
        u_R1 = torch.rand(len(sum_RV), 1, generator=generator, device=generator.device)
        token_R1 = torch.searchsorted(sum_RV, u_R1 * sum_RV[:, -1:], right=True)
        token_R1 = token_R1.clamp_(max=logp_RV.shape[1] - 1)
    return token_R1[:, 0], logp_RV.gather(1, token_R1)[:, 0]


class _Shared:
    """Prompts right padded; their keys are stored once and never copied."""

    def __init__(
        self, body: Any, prompts: Sequence[Any], n: int, max_tokens: int, device: torch.device
    ) -> None:
        self.body, self.n, self.device = body, n, device
        self.prompts = prompts
        self.length_B = torch.tensor([len(p) for p in prompts], device=device)
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
        B, P = len(self.prompts), int(self.length_B.max())
        token_BP = torch.zeros(B, P, dtype=torch.long)
        for b, prompt in enumerate(self.prompts):
            token_BP[b, : len(prompt)] = torch.tensor(prompt)
        position_BP = torch.arange(P, device=self.device).expand(B, P)
        hidden_BPD = self._run(token_BP.to(self.device), position_BP)
        last_BD = hidden_BPD[torch.arange(B, device=self.device), self.length_B - 1]
        self.cache.widen(self.n)
        self.position_R = self.length_B.repeat_interleave(self.n)
        return last_BD.repeat_interleave(self.n, 0)

    def keep(self, row: torch.Tensor) -> None:
        self.cache.keep(row)
        self.position_R = self.position_R[row]

    def step(self, token_R: torch.Tensor) -> torch.Tensor:
        hidden_RD = self._run(token_R[:, None], self.position_R[:, None])[:, 0]
        self.position_R = self.position_R + 1
        return hidden_RD


class _Widened:
    """Prompts left padded, so that all answers start in one column of transformers' cache."""

    def __init__(
        self, body: Any, prompts: Sequence[Any], n: int, max_tokens: int, device: torch.device
    ) -> None:
        self.body, self.n = body, n
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
