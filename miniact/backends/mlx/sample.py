"""Sampling on MLX: each prompt once, its cache widened to a row per answer, a token at a time.

mlx-lm's models take tokens and a KV cache, but no mask and no positions: so prompts are padded on
the left, where the cache knows of it, and all answers start in one column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache

from miniact.backends.held import Plan, Stem
from miniact.backends.mlx.head import Head


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

    def prefill_plan(self, plan: Plan, max_tokens: int) -> tuple[mx.array, list[Any]]:
        """The same, at most max_tokens at once and each prompt from its stem on.

        For caches that can be joined and that start where they are told to.
        """
        hidden: list[mx.array] = []
        cache: list[Any] = []
        for part in plan.parts(max_tokens):
            here = HeldKeys.of(cache)
            stems = [
                (stem.chunk.keys if stem.chunk else here).stem(stem) if stem.length else []
                for stem in plan.stems[part]
            ]
            hidden_BD, new = self._prefill(plan.prompts[part], stems)
            mx.eval(hidden_BD, [layer.state for layer in new])  # or MLX holds all slices at once
            hidden.append(hidden_BD)
            for layer, more in zip(cache, new):
                layer.extend(more)
            cache = cache or new
        for chunk in plan.moved:
            chunk.keys = None
        return mx.concatenate(hidden), cache

    def _prefill(
        self, prompts: Sequence[Sequence[int]], stems: Sequence[Keys]
    ) -> tuple[mx.array, list[Any]]:
        """Prompts behind their stems; all pass as many of their last tokens as the one that is
        longest without its stem, so that all end in one column."""
        lengths = [stem[0][0].shape[2] if stem else 0 for stem in stems]
        S = max(len(p) - length for p, length in zip(prompts, lengths))
        P = max(map(len, prompts))
        if S == P:
            return self.prefill(prompts)
        padding = [P - len(p) for p in prompts]
        cache: list[Any] = [BatchKVCache(padding) for _ in self.body.layers]
        like = next(stem for stem in stems if stem)
        for at, layer in enumerate(cache):
            zeros = [mx.zeros_like(x[:, :, :1]) for x in like[at]]
            keys, values = (
                mx.concatenate(
                    [
                        _ending_at(P - S, stem[at][which][:, :, : len(p) - S])
                        if stem and len(p) > S
                        else mx.repeat(zeros[which], P - S, axis=2)
                        for p, stem in zip(prompts, stems)
                    ]
                )
                for which in range(2)
            )
            layer.state = (keys, values, layer.offset + (P - S), layer.left_padding, P - S)
            layer.step = max(S, 32)
        token_BS = mx.array([[0] * (S - len(p)) + list(p[-S:]) for p in prompts])
        return self.body(token_BS, cache)[:, -1], cache


Keys = list[tuple[mx.array, mx.array]]  # per layer: keys and values, [rows, K, tokens, D]


@dataclass
class HeldKeys:
    """The keys of a chunk as they are held: right-justified."""

    layers: Keys
    padding: list[int]  # columns before the first token of each row

    @classmethod
    def of(cls, cache: list[Any]) -> HeldKeys:
        layers = [layer.keys_and_values() for layer in cache]
        return cls(layers, cache[0].left_padding.tolist() if cache else [])

    def stem(self, stem: Stem) -> Keys:
        start = self.padding[stem.row]
        columns = slice(start, start + stem.length)
        return [
            (k[stem.row : stem.row + 1, :, columns], v[stem.row : stem.row + 1, :, columns])
            for k, v in self.layers
        ]

    @property
    def size(self) -> int:
        return sum(x.nbytes for layer in self.layers for x in layer)


def _ending_at(column: int, keys: mx.array) -> mx.array:
    return mx.pad(keys, [(0, 0), (0, 0), (column - keys.shape[2], 0), (0, 0)])


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
