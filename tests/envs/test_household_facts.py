"""What can be known in the household world, told in sentences: checked against the world itself."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from miniact.envs import make_env
from miniact.envs.household import _choices, _rooms
from miniact.envs.household_facts import KINDS, check, read, sentences, things
from miniact.types import State

TYPES = ("pick_and_place", "look_at_light", "clean", "heat", "cool", "pick_two")


def walk(split: str, n: int, seed: int, expert: float):  # type: ignore[no-untyped-def]
    """(world, state) of every step of n episodes; the expert's moves in this share, else any."""
    env, rng = make_env("household", max_steps=20), random.Random(seed)
    for task_id in env.tasks(split, n, seed):
        task, turn = env.reset(task_id)
        history: list[tuple[str, str]] = []
        while True:
            yield env, State(task_id, task, tuple(history), turn.observation)
            if turn.done:
                break
            skilled = rng.random() < expert
            action = env.expert_action() if skilled else rng.choice(env.admissible())
            if rng.random() < 0.1:
                action = "take apple 2 from drawer 3"  # mostly not there
            history.append((turn.observation, action))
            turn = env.step(action)


@pytest.mark.parametrize("split", ["train", "ood", "play"])
@pytest.mark.parametrize("expert", [0.0, 0.6])
def test_what_is_read_is_what_the_world_holds(split, expert):
    """Everything that the agent has been shown is known, nothing else, and all of it is right."""
    treated = 0
    for env, state in walk(split, 60, 3, expert):
        known = read(state)
        assert (known.at, known.hand) == (env._at or "", env._hand or "")
        assert known.searched == env._seen and known.places == list(env._places)
        assert (known.object, known.target) == env._goal
        for place in known.searched:  # nothing moves but by the agent's hand
            assert [o for o, p in known.where.items() if p == place] == env._holds[place]
        assert set(known.where.values()) <= known.searched | {known.at}
        assert not known.closed & env._open
        marks = {o: m for o, m in env._marks.items() if m}
        assert {o: m for o, m in known.marks.items() if m} == marks
        treated += bool(marks)
    assert treated or expert == 0


def test_every_kind_of_sentence_comes_up_and_is_told_from_the_others():
    seen: Counter = Counter()
    for _, state in walk("train", 60, 1, 0.7):
        facts = read(state).facts()
        assert list(facts) == [k for k in facts if k in KINDS] and set(facts) == set(KINDS)
        for kind, told in facts.items():
            for sentence in told:
                assert check(state, sentence) == [(kind, True)], sentence
                seen[kind] += 1
    assert set(seen) == set(KINDS)


def test_false_sentences_are_false():
    for _, state in walk("train", 12, 2, 0.7):
        known = read(state)
        for kind, sentence in {
            "goal": "i want apple in moon",
            "hand": "i hold key 1",
            "place": "i am at moon 1",
            "seen": f"i saw key 1 on {known.places[0]}",
            "unseen": "i saw no key",
            "left": "moon 1 not searched",
            "closed": "moon 1 closed",
            "must": "i must eat apple",
            "tool": "heat needs moon 1",
            "treated": "moon 1 hot",
            "other": "the moon is full",
        }.items():
            assert check(state, sentence) == [(kind, False)]


def test_a_thought_is_read_sentence_by_sentence():
    thought = "I hold  nothing. Drawer 1 not searched."
    assert sentences(thought) == ["i hold nothing", "drawer 1 not searched"]
    assert things(thought) == {"drawer 1"} and things("look") == set()
    with pytest.raises(ValueError, match="no task of the household world: 'dance'"):
        read(State("x", "dance", (), "You see a floor."))


def test_play_shares_no_room_and_no_goal_with_what_is_learned_and_measured():
    """The tiny base was made there: it must know neither the rooms nor the goals of the others."""
    env = make_env("household")
    kept = {tuple(sorted(r.places)) for split in ("train", "ood") for r in _rooms(split)}
    goals = {
        goal
        for split in ("train", "id", "ood")
        for task in TYPES
        for _, choice in _choices(split, task)
        for goal in choice
    }
    played, words = set(), set()
    for task_id in env.tasks("play", 3000, 0):
        env.reset(task_id)
        assert tuple(sorted(env._places)) not in kept
        assert env._goal not in goals
        played.add(env._goal)
        words |= {*env._places, *(o for held in env._holds.values() for o in held), *env._goal}
    assert len(played) > 100
    for split in ("train", "ood"):  # but every word of the others
        for task_id in env.tasks(split, 600, 0):
            env.reset(task_id)
            held = {o for names in env._holds.values() for o in names}
            assert {*env._places, *held, *env._goal} <= words


def test_of_another_worlds_state_nothing_is_said():
    assert check(State("s", "walk to the door", (), "You see a door."), "i hold nothing") == []
