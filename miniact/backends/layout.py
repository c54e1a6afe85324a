"""Groups → numpy arrays. The only place where targets are shifted.

Every answer of a group continues the same prompt, so the prompt needs to be computed once:

    one row     [ prompt | answer 1 | answer 2 | … ]      and several small groups may share a row
    position      0 … P-1  P …        P …                 every answer continues at P
    sees          the prompt of its own group and its own answer, up to itself

The first token of every answer is predicted by the prompt's last position; the others by the token
before them. `row_N, col_N` say where the prediction of completion token n is made; `target_N` is
the token. Suffixes: B rows, L positions in a row, N completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from miniact import UserError
from miniact.types import Group, Tokens

PADDING = -1


@dataclass(frozen=True)
class Layout:
    """One micro-batch. `order` lists (index of the group, index of the completion) in N's order."""

    token_BL: np.ndarray  # int64
    position_BL: np.ndarray  # int64
    group_BL: np.ndarray  # which group a token belongs to; PADDING where there is none
    answer_BL: np.ndarray  # 0: prompt, i: the group's i-th answer
    row_N: np.ndarray
    col_N: np.ndarray
    target_N: np.ndarray
    order: list[tuple[int, int]]
    lengths: list[int]  # tokens of each completion in `order`

    @property
    def is_causal(self) -> bool:
        """Whether the plain causal mask is already right: a row is one prompt and one answer."""
        return bool(
            self.answer_BL.max(initial=0) <= 1 and (self.group_BL <= self.group_BL[:, :1]).all()
        )


@dataclass(frozen=True)
class _Piece:
    """A group, or a part of it, that is laid out in one stretch: one prompt, then its answers."""

    group: int
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, tuple[int, ...]], ...]  # (index of the completion, tokens)

    @property
    def size(self) -> int:
        return len(self.prompt) + sum(len(tokens) for _, tokens in self.answers)


def _pieces(groups: Sequence[Group], shared: bool, max_tokens: int) -> list[_Piece]:
    """Cut groups into pieces of at most max_tokens. shared=False: one answer a piece."""
    pieces = []
    for g, group in enumerate(groups):
        taken: list[tuple[int, tuple[int, ...]]] = []
        size = len(group.prompt)
        for c, completion in enumerate(group.completions):
            if not completion.tokens:
                raise UserError(f"group {g}, answer {c}: is empty; expected its end token at least")
            if len(group.prompt) + len(completion.tokens) > max_tokens:
                raise UserError(
                    f"group {g}, answer {c}: prompt {len(group.prompt)} + answer "
                    f"{len(completion.tokens)} tokens do not fit model.max_tokens_per_batch "
                    f"{max_tokens}; raise it, or lower prompt.max_tokens"
                )
            if taken and (not shared or size + len(completion.tokens) > max_tokens):
                pieces.append(_Piece(g, group.prompt, tuple(taken)))
                taken, size = [], len(group.prompt)
            taken.append((c, completion.tokens))
            size += len(completion.tokens)
        if taken:
            pieces.append(_Piece(g, group.prompt, tuple(taken)))
    return pieces


def _bins(pieces: list[_Piece], shared: bool, max_tokens: int) -> Iterator[list[list[_Piece]]]:
    """Rows of pieces (first fit, longest first), as many rows as the token budget allows."""
    rows: list[list[_Piece]] = []
    free: list[int] = []
    length = 0
    for piece in sorted(pieces, key=lambda p: (-p.size, p.group, p.answers[0][0])):
        fit = (
            next((i for i, room in enumerate(free) if room >= piece.size), None) if shared else None
        )
        if fit is not None:
            rows[fit].append(piece)
            free[fit] -= piece.size
            continue
        if rows and (len(rows) + 1) * length > max_tokens:
            yield rows
            rows, free, length = [], [], 0
        length = length or piece.size
        rows.append([piece])
        free.append(length - piece.size)
    if rows:
        yield rows


def layouts(groups: Sequence[Group], max_tokens: int, shared: bool = True) -> Iterator[Layout]:
    """Lay groups out in micro-batches of at most max_tokens tokens, padding included.

    shared=True computes each prompt once; shared=False is the plain layout, one row per answer,
    which the tests use as the reference and which models that cannot share a prefix fall back to.
    """
    for rows in _bins(_pieces(groups, shared, max_tokens), shared, max_tokens):
        yield _fill(rows)


def _fill(rows: list[list[_Piece]]) -> Layout:
    B, L = len(rows), max(sum(p.size for p in row) for row in rows)
    token_BL, position_BL, answer_BL = (np.zeros((B, L), dtype=np.int64) for _ in range(3))
    group_BL = np.full((B, L), PADDING, dtype=np.int64)
    row_N: list[int] = []
    col_N: list[int] = []
    target_N: list[int] = []
    order, lengths = [], []
    for b, row in enumerate(rows):
        at = 0
        for slot, piece in enumerate(row):
            P = len(piece.prompt)
            start = at
            token_BL[b, at : at + P] = piece.prompt
            position_BL[b, at : at + P] = np.arange(P)
            group_BL[b, at : at + piece.size] = slot
            at += P
            for number, (c, tokens) in enumerate(piece.answers, start=1):
                C = len(tokens)
                token_BL[b, at : at + C] = tokens
                position_BL[b, at : at + C] = np.arange(P, P + C)
                answer_BL[b, at : at + C] = number
                row_N += [b] * C
                col_N += [start + P - 1, *range(at, at + C - 1)]  # the one shift of targets
                target_N += tokens
                order.append((piece.group, c))
                lengths.append(C)
                at += C

    def ints(values: list[int]) -> np.ndarray:
        return np.asarray(values, dtype=np.int64)

    return Layout(
        token_BL,
        position_BL,
        group_BL,
        answer_BL,
        ints(row_N),
        ints(col_N),
        ints(target_N),
        order,
        lengths,
    )


def longest_answer(groups: Sequence[Group]) -> int:
    """P + C of the longest prompt with one answer: the least that a micro-batch must hold."""
    return max(len(g.prompt) + len(c.tokens) for g in groups for c in g.completions)


def loss_tokens(groups: Sequence[Group], layout: Layout) -> Tokens:
    """What the loss knows of each completion token, in the layout's order. numpy float32, [N]."""
    completions = [groups[g].completions[c] for g, c in layout.order]

    def spread(values: list[float]) -> np.ndarray:
        return np.repeat(np.asarray(values, dtype=np.float32), layout.lengths)

    def join(arrays: list[np.ndarray | None]) -> np.ndarray:
        zeros = [np.zeros(n, np.float32) for n in layout.lengths]
        parts = [z if a is None else np.asarray(a, np.float32) for a, z in zip(arrays, zeros)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    return Tokens(
        weight_N=spread([c.weight for c in completions]),
        advantage_N=spread([c.advantage for c in completions]),
        old_logp_N=join([c.old_logps for c in completions]),
        ref_logp_N=join([c.ref_logps for c in completions]),
    )


def split_by_completion(value_N: np.ndarray, layout: Layout, into: list[list[np.ndarray]]) -> None:
    """Cut a per-token array into completions and put each at `into[group][completion]`."""
    parts = np.split(value_N, np.cumsum(layout.lengths)[:-1])
    for (g, c), part in zip(layout.order, parts):
        into[g][c] = part


def unpack(layout: Layout) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """The prompts of a shared layout, its answers in their order, and whose answer each is."""
    prompts, answers, prompt_R = [], [], []
    for token_L, slot_L, number_L in zip(layout.token_BL, layout.group_BL, layout.answer_BL):
        for slot in range(slot_L.max() + 1):
            mine = slot_L == slot
            prompts.append(token_L[mine & (number_L == 0)].tolist())
            for number in range(1, number_L[mine].max() + 1):
                answers.append(token_L[mine & (number_L == number)].tolist())
                prompt_R.append(len(prompts) - 1)
    return prompts, answers, prompt_R
