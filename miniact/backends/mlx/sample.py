"""Sampling on MLX: each prompt once, its cache widened to a row per answer, a token at a time.

mlx-lm's models take tokens and a KV cache, but no mask and no positions: so prompts are padded on
the left, where the cache knows of it, and all answers start in one column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache

from miniact.backends.mlx.head import Head
from miniact.backends.sampling import slices


class Caches:
    """Makes the caches of a model, and says whether they take prompts of unequal length."""

    def __init__(self, model: Any) -> None:
        self.model, self.body = model, model.model
        # sliding windows and linear attention keep other caches, which take no left padding
        self.pads_left = all(type(c) is KVCache for c in make_prompt_cache(model))

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[mx.array, list[Any]]:
        """Run each prompt once. Returns the hidden state after its last token, and the cache."""
        P = max(map(len, prompts))
        padding = [P - len(p) for p in prompts]
        token_BP = mx.array([[0] * n + list(p) for n, p in zip(padding, prompts)])
        cache = make_prompt_cache(self.model)
        if self.pads_left:
            cache = [BatchKVCache(padding) for _ in cache]
            for layer in cache:
                layer.step = max(P, 32)  # by which it grows; 256, the default, wastes memory
        return self.body(token_BP, cache)[:, -1], cache

    def prefill_in_slices(
        self, prompts: Sequence[Sequence[int]], max_tokens: int
    ) -> tuple[mx.array, list[Any]]:
        """The same, at most max_tokens at once, for caches that can be joined."""
        hidden: list[mx.array] = []
        cache: list[Any] = []
        for part in slices(list(map(len, prompts)), max_tokens):
            hidden_BD, new = self.prefill(prompts[part])
            mx.eval(hidden_BD, [layer.state for layer in new])  # or MLX holds all slices at once
            hidden.append(hidden_BD)
            for layer, more in zip(cache, new):
                layer.extend(more)
            cache = cache or new
        return mx.concatenate(hidden), cache


class Rows:
    """The answers of one chunk. R: the live ones."""

    def __init__(
        self, caches: Caches, head: Head, temperature: float, cache: list, hidden_RD: mx.array
    ) -> None:
        self.body, self.head, self.temperature = caches.body, head, temperature
        self.cache, self.hidden_RD = cache, hidden_RD

    def draw(self, u_R: np.ndarray) -> tuple[list[int], list[float]]:
        self.token_R, logp_R = draw(self.head, self.hidden_RD, self.temperature, mx.array(u_R))
        tokens: Any = self.token_R.tolist()
        logps: Any = logp_R.tolist()
        return tokens, logps

    def keep(self, live: list[int]) -> None:
        pick_rows(self.cache, live)
        self.token_R = self.token_R[mx.array(live)]

    def step(self) -> None:
        self.hidden_RD = self.body(self.token_R[:, None], self.cache)[:, -1]


def draw(
    head: Head, hidden_RD: mx.array, temperature: float, u_R: mx.array
) -> tuple[mx.array, mx.array]:
    """Next token of every row, and its log-probability at this temperature (greedy: at 1).

    The uniform number u of a row picks the first token whose cumulated probability exceeds it.
    """
    z_RV = head.logits(hidden_RD, temperature or 1.0)
    logp_RV = z_RV - mx.logsumexp(z_RV, -1, keepdims=True)
    if temperature == 0:
        token_R = mx.argmax(logp_RV, -1)
    else:
        sum_RV = mx.cumsum(mx.exp(logp_RV), -1)
        token_R = (sum_RV <= u_R[:, None] * sum_RV[:, -1:]).sum(-1)
        token_R = mx.minimum(token_R, logp_RV.shape[1] - 1)
    return token_R, mx.take_along_axis(logp_RV, token_R[:, None], 1)[:, 0]


def pick_rows(cache: list[Any], rows: Sequence[int]) -> None:
    """Make a cache of these rows of itself: repeated ones widen it, absent ones leave it."""
    index = mx.array(list(rows))
    for layer in cache:
        layer.state = tree_map(lambda x: x[index] if isinstance(x, mx.array) else x, layer.state)
