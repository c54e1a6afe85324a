"""Sequences of tokens that begin alike → one row in which every beginning stands once.

    a b c x y q r        row        a b c x y q r | d e f | p      position  0 … 6 | 3 4 5 | 5
    a b c d e f          segments   └───────────┘   └───┘   ┴
    a b c x y p          links      d e f see a b c;  p sees a b c x y

A *segment* is a stretch of the row: its tokens see each other causally. A *link* lets all tokens of
one stretch see all of another: what hangs on a segment sees it up to where it hangs. Together they
are the whole attention mask, as triangles and rectangles: a token sees what its own sequence has
before it. The tree is found in the tokens; what they mean, nobody here knows: the states of a
trajectory, the question that is asked in each and the answers to it come out as three levels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 8  # tokens; what saves fewer is computed again, for a link costs something too


@dataclass(frozen=True)
class Tree:
    """T tokens in a row. `paths[i]`: the places in the row of the i-th sequence's tokens."""

    token_T: np.ndarray  # int64
    position_T: np.ndarray  # int64: how far from its sequence's beginning a token stands
    segments: list[tuple[int, int]]  # (first place, end): they follow one another
    links: list[tuple[int, int, int, int]]  # places first … end see places first … end
    paths: list[np.ndarray]

    def only(self, members: Sequence[int]) -> Tree:
        """The same tree without what these sequences have no need of."""
        used_T = np.zeros(len(self.token_T), dtype=bool)
        for i in members:
            used_T[self.paths[i]] = True
        place_T = np.concatenate([[0], np.cumsum(used_T)])  # the new place of what stays

        def stay(stretches: list) -> list:
            moved = (tuple(place_T[list(ends)].tolist()) for ends in stretches)
            return [ends for ends in moved if ends[0] < ends[1]]

        return Tree(
            self.token_T[used_T],
            self.position_T[used_T],
            stay(self.segments),
            stay(self.links),
            [place_T[self.paths[i]] for i in members],
        )


class _Growing:
    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self.rows = [np.asarray(tokens, dtype=np.int64) for tokens in sequences]
        self.tree = Tree(np.zeros(0), np.zeros(0), [], [], [np.zeros(0)] * len(self.rows))
        self.tokens: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.size = 0

    def add(self, members: list[int], path: np.ndarray) -> None:
        """Place these sequences, of which all begin with the tokens at the places `path`."""
        start, alike = len(path), dict[bytes, list[int]]()
        for i in members:
            if len(self.rows[i]) == start:
                self.tree.paths[i] = path
            else:
                alike.setdefault(self.rows[i][start : start + LEAST].tobytes(), []).append(i)
        for bunch in alike.values():
            self._add_bunch(bunch, path)

    def _add_bunch(self, members: list[int], path: np.ndarray) -> None:
        """The longest becomes one segment, and the others hang where they leave it."""
        start, first = len(path), self.size
        longest = self.rows[max(members, key=lambda i: len(self.rows[i]))]
        self._write(longest[start:], start)
        path = np.concatenate([path, np.arange(first, self.size)])
        leaving: dict[int, list[int]] = {}
        for i in members:
            leaving.setdefault(_alike(longest, self.rows[i]), []).append(i)
        for cut in sorted(leaving):
            before = self.size
            self.add(leaving[cut], path[:cut])
            if self.size > before:
                self.tree.links.append((before, self.size, first, first + cut - start))

    def _write(self, token_L: np.ndarray, start: int) -> None:
        self.tokens.append(token_L)
        self.positions.append(np.arange(start, start + len(token_L)))
        self.tree.segments.append((self.size, self.size + len(token_L)))
        self.size += len(token_L)


def _alike(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two sequences share from their beginning on."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def grow(sequences: Sequence[Sequence[int]]) -> Tree:
    """One row for all sequences. What hangs on a segment follows it, so links are stretches."""
    growing = _Growing(sequences)
    growing.add(list(range(len(sequences))), np.zeros(0, dtype=np.int64))
    nothing = [np.zeros(0, dtype=np.int64)]
    token_T, position_T = (
        np.concatenate(x or nothing) for x in (growing.tokens, growing.positions)
    )
    tree = growing.tree
    return Tree(token_T, position_T, tree.segments, tree.links, tree.paths)


def fill(tree: Tree, max_tokens: int) -> list[list[int]]:
    """Divide a tree's sequences into rows of at most max_tokens tokens, neighbours together.

    A beginning that is needed in two rows is computed in both.
    """
    rows: list[list[int]] = [[]]
    used_T, size = np.zeros(len(tree.token_T), dtype=bool), 0
    for i in sorted(range(len(tree.paths)), key=lambda i: tree.paths[i][-1]):
        path = tree.paths[i]
        new = len(path) - int(used_T[path].sum())
        if rows[-1] and size + new > max_tokens:
            used_T[:], size, new = False, 0, len(path)
            rows.append([])
        used_T[path] = True
        size += new
        rows[-1].append(i)
    return [row for row in rows if row]


def divide(sequences: Sequence[Sequence[int]], more: Sequence[int], ways: int) -> list[list[int]]:
    """Divide sequences at about equal cost; those that begin alike stay together.

    more: tokens of each beside its own, such as those of its answers.

    >>> divide([[1, 2], [7], [1, 2, 3], [8]], [5, 6, 5, 6], 2)
    [[0, 2], [1, 3]]
    """
    paths = grow(sequences).paths
    order = sorted(range(len(paths)), key=lambda i: (paths[i][-1], i))
    used: set[int] = set()
    costs = []
    for i in order:
        costs.append(len(set(paths[i].tolist()) - used) + more[i])
        used.update(paths[i].tolist())
    middle = np.cumsum(costs) - np.array(costs) / 2
    parts: list[list[int]] = [[] for _ in range(ways)]
    for i, at in zip(order, middle):
        parts[int(at / sum(costs) * ways)].append(i)
    return [sorted(part) for part in parts]


def rounds(tree: Tree) -> list[list[tuple[int, int, int, int]]]:
    """The links in rounds. In one no token looks twice, and all see at most as much as a row holds.

    What several stretches see of one is gathered for each, hence the second.

    >>> rounds(grow([[1, 2, 3, 4, 5, 6, 7, 8, *rest] for rest in ([], [1], [2], [1, 3])]))
    [[(10, 11, 0, 8)]]
    """
    levels: list[list[tuple[int, int, int, int]]] = []
    around: list[int] = []  # the ends of the stretches that this one is part of
    for link in sorted(tree.links, key=lambda link: (link[0], -link[1])):
        while around and around[-1] <= link[0]:
            around.pop()
        if len(around) == len(levels):
            levels.append([])
        levels[len(around)].append(link)
        around.append(link[1])
    return [few for level in levels for few in _few(level, len(tree.token_T))]


def _few(links: list[tuple[int, int, int, int]], most: int) -> list[list]:
    """Cut a level's links where they would see more than `most` tokens in all."""
    cut: list[list] = [[]]
    seen = 0
    for link in links:
        seen += link[3] - link[2]
        if cut[-1] and seen > most:
            cut.append([])
            seen = link[3] - link[2]
        cut[-1].append(link)
    return cut
