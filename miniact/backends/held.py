"""Keys and values of prompts that were sampled from before, so that only what is new is computed.

An episode's next prompt is the one before it and a turn more, and the states of one trajectory
begin alike (method/prompts.py). So each prompt of a chunk gets a stem: the tokens that it begins
with and whose keys lie elsewhere already, in a chunk of an earlier call or in its own chunk, behind
another prompt that passes first:

    held        [ task · turn 1 · turn 2 | what was asked ]      of the step before
    prompt      [ task · turn 1 · turn 2 · turn 3 | what is asked ]
                  └──── stem: copied ──┘   └─── computed ────┘

Keys are those of one set of weights: a backend calls `drop` whenever these change.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LEAST = 256  # tokens that must be spared in all; fewer cost less than to look after them


@dataclass(eq=False)
class Chunk:
    """Prompts whose keys lie side by side."""

    prompts: list[bytes]
    size: float  # bytes
    keys: Any = None  # the backend's own; row i is that of prompts[i]


@dataclass(frozen=True)
class Stem:
    """The first `length` tokens of a prompt, whose keys lie in this row of `chunk`."""

    length: int = 0
    chunk: Chunk | None = None  # None: in the chunk of the prompt itself
    row: int = 0


@dataclass
class Plan:
    """How a chunk of prompts is computed: in this order, each from its stem on."""

    order: list[int]  # places of the prompts in the chunk as it was
    prompts: list[Sequence[int]]  # in the new order, as what follows
    stems: list[Stem]
    chunk: Chunk
    leaders: int  # so many first ones; stems of the others lie in rows of these
    moved: list[Chunk] = field(default_factory=list)  # keys that are needed no more once copied

    def parts(self, max_tokens: int) -> Iterator[slice]:
        """Slices of the prompts to pass one after the other, of that many new tokens at most."""
        new = [len(p) - stem.length for p, stem in zip(self.prompts, self.stems)]
        for part in slices(new[: self.leaders], max_tokens):
            yield part
        for part in slices(new[self.leaders :], max_tokens) if self.leaders < len(new) else ():
            yield slice(self.leaders + part.start, self.leaders + part.stop)


def whole(prompts: Sequence[Sequence[int]]) -> Plan:
    """Every token of every prompt is computed."""
    B = len(prompts)
    return Plan(list(range(B)), list(prompts), [Stem()] * B, Chunk([], 0), B)


class Held:
    """What is held between calls. It never takes more than the memory for sampling.

    moves: a backend lets go of keys as it copies them, so that they are never there twice.
    """

    def __init__(self, moves: bool) -> None:
        self.moves, self.least = moves, LEAST
        self.chunks: list[Chunk] = []  # the oldest first

    def drop(self) -> None:
        self.chunks.clear()

    def plan(self, prompts: Sequence[Sequence[int]], size: float, room: float) -> Plan:
        """Stems for a chunk that takes `size` bytes of `room`; older keys make place for it."""
        texts = [_bytes(prompt) for prompt in prompts]
        while True:
            stems, leaders = self._stems(texts)
            moved = self._moved(stems.values())
            rest = [chunk for chunk in self.chunks if chunk not in moved]
            beside = rest if self.moves else self.chunks
            if not beside or size + sum(chunk.size for chunk in beside) <= room:
                break
            self.chunks.remove(beside[0])  # and look again: a stem may have lain there
        self.chunks = rest

        def new(i: int) -> tuple[bool, int]:
            return i not in leaders, len(prompts[i]) - stems[i].length

        order = sorted(range(len(prompts)), key=new)
        row = {i: at for at, i in enumerate(order)}
        placed = [
            s if s.chunk else Stem(s.length, None, row[s.row]) for s in (stems[i] for i in order)
        ]
        chunk = Chunk([texts[i] for i in order], size)
        return Plan(order, [prompts[i] for i in order], placed, chunk, len(leaders), moved)

    def keep(self, plan: Plan, keys: Any, size: float, room: float, twice: float) -> None:
        """Hold the keys of the chunk that was planned, if they fit beside the rest.

        twice: bytes of them that are there once more while answers are sampled.
        """
        if plan.chunk.size + twice + sum(chunk.size for chunk in self.chunks) <= room:
            plan.chunk.keys, plan.chunk.size = keys, size
            self.chunks.append(plan.chunk)

    def _stems(self, texts: list[bytes]) -> tuple[dict[int, Stem], set[int]]:
        """A stem for each prompt, and which prompts need no other one of this chunk before them.

        The longest go first: what a trajectory's last state has computed, its others begin with.
        """
        held = _Texts((text, (c, r)) for c in self.chunks for r, text in enumerate(c.prompts))
        alone, behind, leaders = {}, {}, _Texts()
        for i in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
            length, place = held.like(texts[i])
            alone[i] = Stem(length, *place) if place else Stem()
            length, leader = leaders.like(texts[i])
            if length > alone[i].length and 8 * length >= len(texts[i]):  # at least half of it
                behind[i] = Stem(length, None, leader)
            else:
                leaders.add(texts[i], i)
        if sum(stem.length for stem in alone.values()) < self.least:
            alone = {i: Stem() for i in alone}
        if sum(s.length - alone[i].length for i, s in behind.items()) < self.least:
            behind = {}
        return alone | behind, alone.keys() - behind.keys()

    def _moved(self, stems: Iterable[Stem]) -> list[Chunk]:
        """Chunks of which most prompts go on in new ones: these take their place."""
        goes_on = {
            (id(s.chunk), s.row)
            for s in stems
            if s.chunk and 8 * s.length >= len(s.chunk.prompts[s.row])
        }
        ids = [chunk for chunk, _ in goes_on]
        return [c for c in self.chunks if 2 * ids.count(id(c)) >= len(c.prompts)]


def slices(lengths: Sequence[int], max_tokens: int) -> Iterator[slice]:
    """Cut prompts into slices that, padded to their longest, hold at most max_tokens tokens.

    And little padding: a pass of its own costs as much as some hundred tokens.
    """
    start, longest = 0, 0
    for at, length in enumerate(lengths):
        longest = max(longest, length)
        padded, real = (at + 1 - start) * longest, sum(lengths[start : at + 1])
        if at > start and (padded > max_tokens or padded - real > max(LEAST, real / 4)):
            yield slice(start, at)
            start, longest = at, length
    yield slice(start, len(lengths))


class _Texts:
    """Texts in order, so that one that begins most like a given one is its neighbour."""

    def __init__(self, texts: Iterable[tuple[bytes, Any]] = ()) -> None:
        self.places = dict(texts)
        self.order = sorted(self.places)

    def add(self, text: bytes, place: Any) -> None:
        if text not in self.places:
            insort(self.order, text)
        self.places[text] = place

    def like(self, text: bytes) -> tuple[int, Any]:
        """(tokens that are the same, whose): of any text the most, but not all of this one."""
        at = bisect(self.order, text)
        near = self.order[max(at - 1, 0) : at + 1]
        length, other = max(((_alike(text, other), other) for other in near), default=(0, b""))
        return (length, self.places[other]) if length else (0, None)


def _bytes(tokens: Sequence[int]) -> bytes:
    """Four bytes a token, the highest first: they are ordered as the tokens are."""
    return np.asarray(tokens, ">u4").tobytes()


def _alike(text: bytes, other: bytes) -> int:
    """Tokens with which both begin; one less than all, for the last one's state is needed."""
    most = min(len(text) - 4, len(other)) // 4
    if most <= 0:
        return 0
    differ = np.frombuffer(text, "u4", most) != np.frombuffer(other, "u4", most)
    first = int(differ.argmax())
    return first if differ[first] else most
