"""Groups → numpy arrays. The only place where targets are shifted.

    shared    one row, a tree (tree.py): what prompts and answers have alike from their beginning
              on is computed once, whether it is one prompt of several answers, the history of
              several states of a trajectory, or the instructions that all prompts begin with
    plain     a row for each answer, right padded: [ prompt | answer ]; the reference of the tests,
              and what is done with models that cannot share

The first token of every answer is predicted by the prompt's last position, the others by the token
before them; an answer's last token predicts nothing, so it is not computed. `place_N` says where
the prediction of completion token n is made, counted through the rows; `target_N` is the token.
Suffixes: B rows, L positions in a row, N completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from miniact import UserError
from miniact.backends.tree import Tree, fill, grow
from miniact.types import Group, Tokens


@dataclass(frozen=True)
class Layout:
    """One micro-batch. `order` lists (index of the group, index of the completion) in N's order."""

    token_BL: np.ndarray  # int64; 0 where a row is padded
    place_N: np.ndarray  # b·L + l of the token that predicts
    target_N: np.ndarray
    order: list[tuple[int, int]]
    lengths: list[int]  # tokens of each completion in `order`
    tree: Tree | None  # of the one row; None in the plain layout, where all is causal
    repeated: int = 0  # tokens that an earlier micro-batch computed too: all did not fit in one

    @property
    def size(self) -> int:
        """Tokens that pass the model, padding included."""
        return self.token_BL.size


@dataclass(frozen=True)
class _Answer:
    """A completion behind its prompt. `inputs`: all that passes the model of the two."""

    group: int
    index: int
    prompt: int  # tokens
    tokens: tuple[int, ...]
    inputs: tuple[int, ...]


def _answers(groups: Sequence[Group], max_tokens: int) -> Iterator[_Answer]:
    """All completions. UserError if one is empty, or too long for any micro-batch."""
    for g, group in enumerate(groups):
        P = len(group.prompt)
        for c, completion in enumerate(group.completions):
            tokens = completion.tokens
            if not tokens:
                raise UserError(f"group {g}, answer {c}: is empty; expected its end token at least")
            if P + len(tokens) > max_tokens:
                raise UserError(
                    f"group {g}, answer {c}: prompt {P} + answer {len(tokens)} tokens do not fit "
                    f"model.max_tokens_per_batch {max_tokens}; raise it, or lower prompt.max_tokens"
                )
            yield _Answer(g, c, P, tokens, (*group.prompt, *tokens[:-1]))


def layouts(groups: Sequence[Group], max_tokens: int, shared: bool = True) -> Iterator[Layout]:
    """Lay groups out in micro-batches of at most max_tokens tokens, padding included.

    shared=True computes what is alike once, as far as it is in one micro-batch: what several have
    in common is computed in each of them, and counted as `repeated`.
    """
    answers = list(_answers(groups, max_tokens))
    if not shared:
        yield from map(_plain, _rows(answers, max_tokens))
        return
    tree = grow([answer.inputs for answer in answers])
    computed_T = np.zeros(len(tree.token_T), dtype=bool)
    for members in fill(tree, max_tokens):
        part, before = tree.only(members), int(computed_T.sum())
        computed_T[np.concatenate([tree.paths[i] for i in members])] = True
        repeated = len(part.token_T) - (int(computed_T.sum()) - before)
        few = [answers[i] for i in members]
        yield replace(_layout(few, part.token_T[None], part.paths, part), repeated=repeated)


def _rows(answers: list[_Answer], max_tokens: int) -> Iterator[list[_Answer]]:
    """As many answers as the token budget allows, the longest first: rows are padded to it."""
    rows: list[_Answer] = []
    for answer in sorted(answers, key=lambda a: -len(a.inputs)):
        if rows and (len(rows) + 1) * len(rows[0].inputs) > max_tokens:
            yield rows
            rows = []
        rows.append(answer)
    if rows:
        yield rows


def _plain(rows: list[_Answer]) -> Layout:
    token_BL = np.zeros((len(rows), len(rows[0].inputs)), dtype=np.int64)
    for row, answer in zip(token_BL, rows):
        row[: len(answer.inputs)] = answer.inputs
    L = token_BL.shape[1]
    paths = [np.arange(b * L, b * L + len(answer.inputs)) for b, answer in enumerate(rows)]
    return _layout(rows, token_BL, paths, None)


def _layout(
    answers: list[_Answer], token_BL: np.ndarray, paths: list[np.ndarray], tree: Tree | None
) -> Layout:
    """paths: the places of each answer's inputs."""
    places = [path[answer.prompt - 1 :] for answer, path in zip(answers, paths)]  # the one shift
    return Layout(
        token_BL,
        np.concatenate(places),
        np.concatenate([np.asarray(answer.tokens, dtype=np.int64) for answer in answers]),
        [(answer.group, answer.index) for answer in answers],
        [len(answer.tokens) for answer in answers],
        tree,
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
