"""Sampling, as both backends do it: what goes together, the random numbers, one decode loop.

    Request ──chunks──▶ each prompt passes once ──widen──▶ a row per answer ──decode──▶ Samples

Of what begins like another prompt, of this call or an earlier one, only the rest passes (held.py).
A chunk is as large as the memory for keys and values allows (`Room`). That changes no answer: every
answer draws from a random stream of its own, so its tokens depend on the seed and on rounding, not
on what else is sampled beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from miniact.backends.held import Held, Plan, whole
from miniact.backends.memory import Budgets, until_it_fits
from miniact.types import Sample

Drawn = tuple[list[list[int]], list[list[float]]]  # of each answer: its tokens, their log-probs


@dataclass(frozen=True)
class Request:
    """What `policy.sample` was asked for: n answers to each prompt."""

    prompts: Sequence[Sequence[int]]
    n: int
    max_tokens: int
    temperature: float
    seed: int
    streams: Sequence[int] = ()  # each prompt's place in the whole call; (): this is the whole call


@dataclass(frozen=True)
class Room:
    """The memory that sampling may take, in bytes, and what it is spent on."""

    limit: float
    token: int  # keys and values of one token, in all layers
    row: int  # what a row takes while its next token is drawn: a few times its logits
    shared: bool  # the keys of a prompt lie there once, not once for each of its answers
    prefill: int  # most prompt tokens in one chunk; 0: any number, they pass in slices
    one_length: bool = False  # prompts of a chunk must be equally long
    holds: bool = False  # keys may be held for what begins alike

    def bytes(self, B: int, P: int, n: int, C: int) -> int:
        """What n answers of C tokens to each of B prompts of P tokens take."""
        tokens = P + n * C if self.shared else n * (P + C)
        return B * (tokens * self.token + n * self.row)

    def fits(self, B: int, P: int, n: int, C: int) -> bool:
        if B > 1 and self.prefill and self.prefill < B * P:
            return False
        return self.bytes(B, P, n, C) <= self.limit


Chunk = tuple[list[int], range]  # indices of prompts, and which of their answers


def by_length(prompts: Sequence[Sequence[int]], todo: Iterable[int]) -> list[int]:
    """Shortest first: alike lengths together need little padding."""
    return sorted(todo, key=lambda i: len(prompts[i]))


def stretches(order: Sequence[int], fits: Callable[[list[int]], bool]) -> Iterator[list[int]]:
    """Cut `order` into stretches as long as they fit; what does not fit even alone stays alone."""
    stretch: list[int] = []
    for i in order:
        if stretch and not fits([*stretch, i]):
            yield stretch
            stretch = []
        stretch.append(i)
    if stretch:
        yield stretch


def chunks(request: Request, room: Room, todo: Iterable[int]) -> Iterator[Chunk]:
    """Cut the sampling of prompts `todo` into parts that fit; the least is one answer alone."""
    prompts, n, C = request.prompts, request.n, request.max_tokens

    def fits(part: list[int]) -> bool:
        P = len(prompts[part[-1]])
        alike = not room.one_length or len(prompts[part[0]]) == P
        return alike and room.fits(len(part), P, n, C)

    for part in stretches(by_length(prompts, todo), fits):
        P, share = len(prompts[part[-1]]), n
        while len(part) == 1 and share > 1 and not room.fits(1, P, share, C):
            share = (share + 1) // 2
        for first in range(0, n, share):
            yield part, range(first, min(first + share, n))


def uniforms(request: Request, chunk: Chunk) -> np.ndarray:
    """u of shape [rows, max_tokens] in [0, 1), float32: the whole chance of a chunk's answers.

    Philox is a counter that is encrypted under a key. The seed is the key, and prompt and answer
    say where in the counter a row begins: a stream of its own, whatever else is sampled.
    """
    prompts, answers = chunk
    places = [request.streams[i] for i in prompts] if request.streams else prompts
    streams = (
        np.random.Philox(key=request.seed, counter=[0, answer, place, 0])
        for place in places
        for answer in answers
    )
    size = request.max_tokens
    return np.stack([np.random.Generator(s).random(size, np.float32) for s in streams])


class Rows(Protocol):
    """The answers of a chunk while they are decoded: their keys and values, their next token."""

    def draw(self, u_R: np.ndarray) -> tuple[list[int], list[float]]:
        """The next token of every row, by its random number, and its log-probability."""
        ...

    def keep(self, live: list[int]) -> None:
        """Drop all rows but these."""
        ...

    def step(self) -> None:
        """Pass the drawn tokens through the model."""
        ...


def decode(rows: Rows, uniform_RC: np.ndarray, ends: Sequence[int]) -> Drawn:
    """Answers a token at a time, until each has drawn an end token or as many as it may."""
    row_R = list(range(len(uniform_RC)))  # which answer each live row is
    tokens: list[list[int]] = [[] for _ in row_R]
    logps: list[list[float]] = [[] for _ in row_R]
    for step in range(uniform_RC.shape[1]):
        for row, token, logp in zip(row_R, *rows.draw(uniform_RC[row_R, step])):
            tokens[row].append(token)
            logps[row].append(logp)
        live = [i for i, row in enumerate(row_R) if tokens[row][-1] not in ends]
        if not live or step == uniform_RC.shape[1] - 1:
            break
        if len(live) < len(row_R):  # a row that has ended would go on costing what a live one does
            rows.keep(live)
            row_R = [row_R[i] for i in live]
        rows.step()
    return tokens, logps


class Sampler(Protocol):
    """What a backend adds to sampling."""

    tokenizer: Any
    ends: tuple[int, ...]  # tokens that end an answer
    budgets: Budgets
    held: Held

    def room(self) -> Room:
        """The memory for it, as it is now."""
        ...

    def sample_rows(self, plan: Plan, uniform_RC: np.ndarray, temperature: float) -> Drawn:
        """As many answers to each prompt as there are rows for it; prompt 0's come first."""
        ...


def sample(backend: Sampler, request: Request) -> list[list[Sample]]:
    """n answers to each prompt, chunk by chunk; with smaller chunks where memory runs out."""
    out: list[list[Sample]] = [[] for _ in request.prompts]

    def the_rest() -> None:
        todo = [i for i, samples in enumerate(out) if len(samples) < request.n]
        for i in todo:
            out[i] = []  # where memory ran out between two parts of a prompt's answers
        room = backend.room()
        for part, answers in chunks(request, room, todo):
            prompts = [request.prompts[i] for i in part]
            size = room.bytes(len(part), len(prompts[-1]), len(answers), request.max_tokens)
            plan = backend.held.plan(prompts, size, room.limit) if room.holds else whole(prompts)
            indices = [part[i] for i in plan.order]
            uniform_RC = uniforms(request, (indices, answers))
            drawn = backend.sample_rows(plan, uniform_RC, request.temperature)
            samples = iter(to_samples(backend.tokenizer, backend.ends, drawn))
            for i in indices:
                out[i] += [next(samples) for _ in answers]

    def less() -> None:
        backend.held.drop()
        room, P = backend.room(), max(map(len, request.prompts))
        least = room.bytes(1, P, 1, request.max_tokens)
        most = room.bytes(len(out), P, request.n, request.max_tokens)
        backend.budgets.less_for_sampling(least, most)

    until_it_fits(the_rest, less)
    return out


def to_samples(tokenizer: Any, ends: Sequence[int], drawn: Drawn) -> list[Sample]:
    """What was drawn, with its text (without the end token) and the reason why it stopped."""
    samples = []
    for tokens, logps in zip(*drawn):
        stop = "end" if tokens[-1] in ends else "length"
        shown = tokens[:-1] if stop == "end" else tokens
        text = tokenizer.decode(shown, skip_special_tokens=False)
        samples.append(Sample(tuple(tokens), tuple(logps), text, stop))
    return samples


def cache_bytes(shape: Any, itemsize: int) -> int:
    """2·L·K·D·itemsize: keys and values of one token. `shape`: a model's config, or its args."""

    def size(name: str) -> int:
        try:
            return getattr(shape, name, None) or 0
        except RuntimeError:  # Gemma 4 has another one in each layer
            return 0

    heads = size("num_attention_heads") or 1
    kv_heads = size("num_key_value_heads") or heads
    width = size("head_dim") or size("hidden_size") // heads
    kinds = getattr(shape, "layer_types", None) or ["attention"] * shape.num_hidden_layers
    layers = sum(kind.endswith("attention") and kind != "linear_attention" for kind in kinds)
    return 2 * max(layers, 1) * kv_heads * width * itemsize
