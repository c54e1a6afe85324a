"""The contract of `Env`: the same checks for every environment.

To check another one, add a line to CASES; `marks=pytest.mark.skipif(...)` if it needs an extra.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miniact import UserError
from miniact.envs import Env, Turn, make_env


@dataclass(frozen=True)
class Case:
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    splits: tuple[str, ...] = ("train",)
    n_tasks: int = 2  # episodes per split
    n_illegal: int = 10  # texts that are no action
    expert_wins: bool = True  # False: the expert may fail on some tasks


CASES = [
    pytest.param(
        Case("household", splits=("train", "id", "ood"), n_tasks=12, n_illegal=60), id="household"
    ),
    pytest.param(
        Case("webshop", splits=("train", "dev", "test"), n_tasks=8, n_illegal=60),
        id="webshop",
        marks=pytest.mark.skipif(
            any(find_spec(name) is None for name in ("bm25s", "rapidfuzz", "Stemmer")),
            reason='needs the extra: pip install "miniact[webshop]"',
        ),
    ),
    pytest.param(
        Case("alfworld", splits=("train", "valid_seen", "valid_unseen"), n_tasks=3, n_illegal=20),
        id="alfworld",
        marks=pytest.mark.skipif(
            find_spec("alfworld") is None, reason='needs the extra: pip install "miniact[alfworld]"'
        ),
    ),
]


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def env(case: Case):
    env = make_env(case.name, **case.options)
    yield env
    env.close()


def some_tasks(env: Env, case: Case) -> list[str]:
    return [task for split in case.splits for task in env.tasks(split, case.n_tasks, seed=0)]


def watch(env: Env) -> tuple:
    """All that the protocol lets one see of the state without acting."""
    return env.admissible(), env.expert_action()


def play(env: Env, task_id: str, seed: int, n: int = 12) -> tuple[list, list[str]]:
    """Expert and random actions mixed: (everything that was seen, the actions)."""
    rng = random.Random(seed)
    seen: list = [env.reset(task_id)]
    actions: list[str] = []
    while len(actions) < n:
        listed, expert = watch(env)
        options = [a for a in (expert, rng.choice(listed or ("look around",))) if a is not None]
        actions.append(rng.choice(options))
        turn = env.step(actions[-1])
        seen += [listed, expert, turn]
        if turn.done:
            break
    return seen, actions


def test_splits(env, case):
    assert env.splits[0] == "train"
    assert env.splits == case.splits


def test_tasks_are_distinct_deterministic_and_disjoint(env, case):
    lists = [env.tasks(split, case.n_tasks, seed=0) for split in case.splits]
    for split, ids in zip(case.splits, lists):
        assert ids == env.tasks(split, case.n_tasks, seed=0)
        assert all(isinstance(task, str) for task in ids)
    flat = [task for ids in lists for task in ids]
    assert 0 < len(flat) <= case.n_tasks * len(case.splits)
    assert len(set(flat)) == len(flat)


def test_a_task_id_determines_everything(env, case):
    fresh = make_env(case.name, **case.options)
    try:
        for i, task in enumerate(some_tasks(env, case)):
            first, actions = play(env, task, seed=i)
            again, same = play(fresh, task, seed=i)
            assert (first, actions) == (again, same)
    finally:
        fresh.close()


def test_reset_forgets_the_last_episode(env, case):
    one, two = env.tasks(case.splits[0], 2, seed=0)
    before = (env.reset(one), watch(env))
    play(env, two, seed=0)
    play(env, one, seed=0)
    assert (env.reset(one), watch(env)) == before


def test_the_expert_plays_to_the_end(env, case):
    wins = []
    for task in some_tasks(env, case):
        text, turn = env.reset(task)
        assert text.strip() and turn.observation.strip() and not turn.done
        while not turn.done and (action := env.expert_action()) is not None:
            listed = env.admissible()
            assert listed is None or action in listed
            turn = env.step(action)
            assert turn.applied and 0 <= turn.score <= 1
            assert turn.done or not turn.success
        wins.append(turn.success)
        assert not turn.success or turn.score == 1
    assert all(wins) if case.expert_wins else any(wins)


def test_admissible_is_sorted_and_applies(env, case):
    """Checked in the first state that lists its actions: where text is asked for, none can."""
    for task in some_tasks(env, case)[:4]:
        env.reset(task)
        path: list[str] = []
        while env.admissible() is None and len(path) < 3 and (action := env.expert_action()):
            env.step(action)
            path.append(action)
        if (listed := env.admissible()) is None:
            pytest.skip(f"{case.name} does not list its actions")
        assert listed == tuple(sorted(set(listed)))
        for action in random.Random(task).sample(listed, min(5, len(listed))):
            env.reset(task)
            for earlier in path:
                env.step(earlier)
            assert env.step(action).applied, action


def test_looking_does_not_touch(env, case):
    """Calling admissible() and expert_action() changes neither them nor what happens next."""
    task = env.tasks(case.splits[0], 1, seed=0)[0]
    _, actions = play(env, task, seed=3)

    def replay(*looks) -> list[tuple]:
        env.reset(task)
        return [(*(look() for look in looks), env.step(action)) for action in actions]

    listed, expert = env.admissible, env.expert_action
    alone = zip(replay(), replay(listed), replay(expert))
    wanted = [(one, two, two, one, turn) for (turn,), (one, _), (two, _) in alone]
    assert replay(listed, expert, expert, listed) == wanted


def test_illegal_actions_are_harmless(env, case):
    """Whatever a model writes is data: no exception, applied is False, nothing has changed."""
    task = env.tasks(case.splits[0], 1, seed=0)[0]
    odd = [
        "",
        " ",
        "\n",
        "go to",
        "take from",
        "open the pod bay doors",
        "x" * 100_000,
        "\x00",
        "🦙",
    ]

    def check(text: str) -> None:
        env.reset(task)
        before = watch(env)
        if before[0] is not None and text in before[0]:
            return
        turn = env.step(text)
        assert isinstance(turn, Turn)
        assert not (turn.applied or turn.done or turn.success), text
        assert turn.score == 0
        assert watch(env) == before, text

    for text in odd:
        check(text)
    few = settings(
        max_examples=case.n_illegal,
        suppress_health_check=list(HealthCheck),
    )
    few(given(st.text(max_size=40))(check))()


def test_unknown_split_task_and_option_are_user_errors(env, case):
    with pytest.raises(UserError, match="nosuchsplit"):
        env.tasks("nosuchsplit", 1, seed=0)
    for bad in ("", "nonsense", "nosuchsplit/1"):
        with pytest.raises(UserError) as error:
            env.reset(bad)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no_such_option"):
        make_env(case.name, no_such_option=1)


def test_close_twice(case):
    env = make_env(case.name, **case.options)
    env.close()
    env.close()
    env = make_env(case.name, **case.options)
    env.reset(env.tasks(case.splits[0], 1, seed=0)[0])
    env.close()
    env.close()


def test_unknown_environment_is_a_user_error():
    with pytest.raises(UserError, match="did you mean 'household'"):
        make_env("houshold")


PLAY_IN_A_PROCESS = """
import hashlib, random
from miniact.envs import make_env
env, digest = make_env("household"), hashlib.sha256()
for split in env.splits:
    for task in env.tasks(split, 18, seed=1):
        rng, (text, turn) = random.Random(task), env.reset(task)
        while not turn.done:
            digest.update(repr((text, turn, env.admissible(), env.expert_action())).encode())
            turn = env.step(rng.choice([*env.admissible(), env.expert_action()]))
print(digest.hexdigest())
"""


def test_household_does_not_depend_on_the_hash_seed():
    digests = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", PLAY_IN_A_PROCESS],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
