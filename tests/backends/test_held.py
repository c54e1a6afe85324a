"""Keys that are held between calls of `sample`: what is computed again, and that nothing changes.

The reference is the same policy that holds nothing: every prompt passes as a whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_batch, write_model
from zoo import BACKENDS, Zoo

from miniact.backends import trial
from miniact.backends.held import Held, Plan
from miniact.backends.protocol import load_policy
from miniact.config.sections import ModelConfig
from miniact.method.losses import cross_entropy

KINDS = ("llama-tied", "qwen3-untied")
NEVER = 10**9
QUESTION = (7, 3, 9, 4, 8, 2, 6, 5)
GROUPS = random_batch([5, 9], [[3, 1], [6, 2]], vocab=60)


def words(seed: int, n: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(10, 60, n).tolist())


def episode(seed: int, steps: int) -> list[tuple[int, ...]]:
    """The prompts of an episode: each is the one before it and a turn more, the question last."""
    turns = [words(100 * seed + step, 5 + (seed + 7 * step) % 11) for step in range(steps)]
    turns[0] += words(seed, 12)  # the task
    return [tuple(sum(turns[: step + 1], ())) + QUESTION for step in range(steps)]


# ---- the plan ------------------------------------------------------------------------------------

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=6)


@settings(max_examples=200)
@given(
    st.lists(TEXTS, min_size=1, max_size=5), st.integers(1, 8), st.integers(0, 60), st.booleans()
)
def test_a_stem_is_what_the_prompt_begins_with_and_lies_where_it_is_said_to(
    calls, least, room, moves
):
    held = Held(moves)
    held.least = least
    for prompts in calls:
        plan = held.plan(prompts, size=10, room=room)
        assert sorted(plan.order) == list(range(len(prompts)))
        assert [prompts[i] for i in plan.order] == plan.prompts
        for prompt, stem in zip(plan.prompts, plan.stems):
            assert stem.length < len(prompt)  # its last token is always computed
            if stem.chunk:
                there = stem.chunk.keys[stem.row]
            else:
                there = plan.prompts[stem.row] if stem.length else []
                assert not stem.length or stem.row < plan.leaders
            assert list(there[: stem.length]) == list(prompt[: stem.length])
        assert all(stem.chunk or not stem.length for stem in plan.stems[: plan.leaders])
        parts = list(plan.parts(max_tokens=20))
        assert [i for part in parts for i in range(part.start, part.stop)] == sorted(plan.order)
        assert all(part.start >= plan.leaders or part.stop <= plan.leaders for part in parts)
        held.keep(plan, plan.prompts, size=8, room=room, twice=4)
        assert sum(chunk.size for chunk in held.chunks) <= room


def new_tokens(plan: Plan) -> int:
    return sum(len(p) - stem.length for p, stem in zip(plan.prompts, plan.stems))


def test_the_states_of_a_trajectory_are_its_last_prompt_and_the_questions():
    held, prompts = Held(moves=True), episode(1, 12)
    held.least = 1
    plan = held.plan(prompts, 1, 100)
    assert plan.leaders == 1 and plan.prompts[0] == prompts[-1]
    assert new_tokens(plan) <= len(prompts[-1]) + 11 * len(QUESTION)
    mixed = [*prompts, *episode(2, 9)]
    assert held.plan(mixed, 1, 100).leaders == 2  # two trajectories share nothing


def test_what_goes_on_takes_the_place_of_what_was_held():
    held, steps = Held(moves=True), list(zip(*(episode(seed, 9) for seed in range(4))))
    held.least = 1
    for step, prompts in enumerate(steps):
        plan = held.plan(prompts, size=10, room=100)
        if step:
            assert new_tokens(plan) < 4 * (16 + len(QUESTION))
        held.keep(plan, None, size=8, room=100, twice=4)
        assert len(held.chunks) == 1
    plan = held.plan(prompts[:1], size=10, room=100)  # one of four: the others may be asked for yet
    held.keep(plan, None, size=2, room=100, twice=1)
    assert len(held.chunks) == 2


def test_too_little_to_spare_is_not_worth_a_plan():
    held, prompts = Held(moves=True), episode(1, 3)
    plan = held.plan(prompts, 1, 100)
    assert plan.leaders == 3 and not any(stem.length for stem in plan.stems)


# ---- both backends -------------------------------------------------------------------------------


def tokens(samples: list[list[Any]]) -> list[list[tuple[int, ...]]]:
    return [[s.tokens for s in answers] for answers in samples]


def logps(samples: list[list[Any]]) -> np.ndarray:
    return np.concatenate([s.logps for answers in samples for s in answers])


class Watched:
    """A policy that holds keys from the first token on, and what it computed of its prompts."""

    def __init__(self, policy: Any, monkeypatch: Any) -> None:
        self.policy, self.computed = policy, []
        monkeypatch.setattr(policy.held, "least", 1)
        plan = policy.held.plan

        def planned(*args: Any) -> Plan:
            self.computed.append(new_tokens(made := plan(*args)))
            return made

        monkeypatch.setattr(policy.held, "plan", planned)
        policy.held.drop()

    def plain(self, *how: Any, **more: Any) -> list[list[Any]]:
        """As it answers when it holds nothing and shares nothing."""
        chunks, least = list(self.policy.held.chunks), self.policy.held.least
        self.policy.held.least = NEVER
        self.policy.held.drop()
        answers = self.policy.sample(*how, **more)
        self.policy.held.chunks, self.policy.held.least = chunks, least
        self.computed.pop()
        return answers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_episodes_compute_what_is_new_and_answer_the_same(zoo: Zoo, backend, kind, monkeypatch):
    watched = Watched(zoo.policy(backend, kind), monkeypatch)
    live = [episode(seed, 6 + seed) for seed in range(4)]
    for step in range(9):
        prompts = [prompts[step] for prompts in live if step < len(prompts)]
        expected = watched.plain(prompts, 2, 7, 1.0, step)
        answers = watched.policy.sample(prompts, 2, 7, 1.0, step)
        assert tokens(answers) == tokens(expected)
        assert np.allclose(logps(answers), logps(expected), atol=2e-5)
    assert all(n <= 4 * (16 + len(QUESTION)) for n in watched.computed[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_computes_a_shared_stem_once_and_answers_the_same(zoo, backend, kind, monkeypatch):
    watched = Watched(zoo.policy(backend, kind), monkeypatch)
    prompts = [*episode(1, 8), *episode(2, 5), words(5, 4), *episode(1, 8)[::-1]]
    expected = watched.plain(prompts, 3, 7, 1.0, 0)
    answers = watched.policy.sample(prompts, 3, 7, 1.0, 0)
    assert tokens(answers) == tokens(expected)
    assert np.allclose(logps(answers), logps(expected), atol=2e-5)
    (computed,) = watched.computed
    assert computed < sum(map(len, prompts)) / 3


@settings(max_examples=8)
@given(
    prompts=st.lists(
        st.lists(st.integers(40, 42), min_size=1, max_size=14), min_size=1, max_size=5
    ),
    cuts=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_prompts_that_begin_alike(zoo, backend, prompts, cuts, seed):
    policy = zoo.policy(backend, "qwen3-untied")
    following = [[*p[: max(1, len(p) - cut)], *p[::-1]] for p, cut in zip(prompts, cuts)]
    answers = []
    for least in (NEVER, 1):
        policy.held.least = least
        policy.held.drop()
        answers.append([policy.sample(p, 2, 6, 1.0, seed) for p in (prompts, following)])
    for expected, got in zip(*answers):
        assert tokens(got) == tokens(expected)
        assert np.allclose(logps(got), logps(expected), atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_go_when_weights_change(zoo, backend, monkeypatch, tmp_path):
    policy = Watched(zoo.policy(backend), monkeypatch).policy
    prompts = [e[-1] for e in (episode(1, 5), episode(2, 5))]
    saved = tmp_path / "adapter"
    changes = {
        "a step": lambda: policy.optim_step(0.1, 1.0),
        "a gradient": lambda: policy.forward_backward(GROUPS, cross_entropy),
        "a step on it": lambda: policy.optim_step(0.5, 1.0),
        "saving, for what goes on from there holds none": lambda: policy.save_adapter(saved),
        "loading": lambda: policy.load_adapter(zoo.start("llama-tied")),
        "another adapter": lambda: policy.load_adapter(saved),
        "the reference": lambda: policy.logprobs(GROUPS, reference=True),
        "out of memory": lambda: policy.budgets.less_for_training(1),
    }
    for what, change in changes.items():
        policy.sample(prompts, 1, 4, 1.0, 0)
        assert policy.held.chunks
        change()
        assert not policy.held.chunks, what
    policy.sample(prompts, 1, 4, 1.0, 0)
    policy.logprobs(GROUPS)
    assert policy.held.chunks  # scoring changes nothing


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_held_counts_within_the_memory_for_sampling(zoo, backend, monkeypatch):
    policy = Watched(zoo.policy(backend), monkeypatch).policy
    expected = policy.sample(episode(3, 7), 2, 6, 1.0, 0)
    for limit in (6e5, 2e5, 1e5, 3e4, 1.0):
        monkeypatch.setattr(policy.budgets, "_sampling", limit)
        for seed in (3, 4, 3):
            answers = policy.sample(episode(seed, 7), 2, 6, 1.0, 0)
            assert sum(chunk.size for chunk in policy.held.chunks) <= limit
        assert tokens(answers) == tokens(expected)
    assert not policy.held.chunks


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_that_cannot_share_holds_nothing(zoo, backend, monkeypatch):
    policy = Watched(zoo.policy(backend), monkeypatch).policy
    ways = policy.ways
    try:
        policy.ways = (False, *ways[1:])
        policy.sample(episode(1, 4), 1, 4, 1.0, 0)
        assert not policy.held.chunks
    finally:
        policy.ways = ways


def test_the_check_on_load_notices_wrong_stems(tmp_path, tokenizer, monkeypatch, capsys):
    from miniact.backends.torch.keys import SharedCache

    fresh = write_model(tmp_path / "model", "llama-tied", tokenizer)
    monkeypatch.setattr(trial, "_known", {})
    right = SharedCache._fill_from_stems
    monkeypatch.setattr(SharedCache, "_fill_from_stems", lambda *a: 0.5 * right(*a))
    policy: Any = load_policy(ModelConfig(path=str(fresh), backend="torch", device="cpu"), 0)
    assert not policy.shares_prompts and not policy.held.chunks
    assert "note: llama cannot share a prompt between answers;" in capsys.readouterr().err
