"""Parts of a row's attention: stretches of its tokens, each of which sees a stretch of its own.

A stretch is a view of the row's tensors; of several, what they hold is gathered.
Sizes: n stretches of L queries and S keys each; X queries in all; D wide.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

Where = slice | torch.Tensor  # places along an axis: a stretch is a view, several are gathered


def take(x: torch.Tensor, where: Where, axis: int = 0) -> torch.Tensor:
    if isinstance(where, slice):
        return x.narrow(axis, where.start, where.stop - where.start)
    return x.index_select(axis, where)


def put(x: torch.Tensor, where: Where, new: torch.Tensor, axis: int = 0) -> None:
    if isinstance(where, slice):
        take(x, where, axis).copy_(new)
    else:
        x.index_copy_(axis, where, new)


def add(x: torch.Tensor, where: Where, more: torch.Tensor) -> None:
    """Along the first axis; a place may stand in `where` several times."""
    if isinstance(where, slice):
        take(x, where).add_(more)
    else:
        x.index_add_(0, where, more.to(x.dtype))


class Bunch(NamedTuple):
    """n stretches of one length. Where they are: among the part's queries, and in the row."""

    n: int
    at: Where
    queries: Where
    keys: Where

    def split(self, x: torch.Tensor, where: Where) -> torch.Tensor:
        """[tokens, heads, D] → [n, heads, L, D]"""
        return take(x, where).unflatten(0, (self.n, -1)).transpose(1, 2)


class Part:
    """Stretches of a row: queries a … b see keys c … d, all or (then they are the same) causally.

    No query stands in two of them, and they come in the row's order.
    """

    def __init__(
        self, spans: list[tuple[int, int, int, int]], causal: bool, device: torch.device
    ) -> None:
        self.spans, self.causal, self.device = spans, causal, device
        self.queries = self._where([(a, b) for a, b, *_ in spans])
        self.keys = self._where([(c, d) for *_, c, d in spans])
        # 2 at least: where all are 1, flash attention takes the heads of a key for its queries,
        # and its normalisers come in another order
        self.longest = max(2, *(b - a for a, b, *_ in spans)), max(d - c for *_, c, d in spans)

    def _where(self, stretches: list[tuple[int, int]]) -> Where:
        ends = [end for _, end in stretches]
        if all(first == end for (first, _), end in zip(stretches[1:], ends)):
            return slice(stretches[0][0], ends[-1])
        return self._tensor(np.concatenate([np.arange(*stretch) for stretch in stretches]))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array).to(self.device)

    @cached_property
    def cuts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each stretch begins among the part's queries, and among its keys; and the ends."""
        lengths = np.array([(0, 0), *((b - a, d - c) for a, b, c, d in self.spans)])
        cut_q, cut_k = lengths.cumsum(0, dtype=np.int32).T
        return self._tensor(cut_q.copy()), self._tensor(cut_k.copy())

    @cached_property
    def padded(self) -> tuple[int, torch.Tensor]:
        """Where the queries stand if each stretch has a row of M places: M in full thirty-twos."""
        M = -(-self.longest[0] // 32) * 32
        rows = [i * M + np.arange(b - a) for i, (a, b, *_) in enumerate(self.spans)]
        return M, self._tensor(np.concatenate(rows))

    @cached_property
    def bunches(self) -> list[Bunch]:
        alike: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        at = 0
        for a, b, c, d in self.spans:
            alike.setdefault((b - a, d - c), []).append((at, a, c))
            at += b - a
        return [
            Bunch(len(firsts), *(
                self._where([(first, first + length) for first in column])
                for length, column in zip((L, L, S), zip(*firsts))
            ))
            for (L, S), firsts in alike.items()
        ]  # fmt: skip
