"""The household world: its tasks, its rules, what the agent may see, what the expert knows."""

from __future__ import annotations

import copy
import random
import re
import time
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniact import UserError
from miniact.envs.household import (
    _FITS,
    _HELD_OUT,
    COPIES,
    NOTHING,
    OPENABLE,
    TASK_TYPES,
    Household,
    _choices,
    _rooms,
)
from miniact.envs.household_facts import LAMP, TREATMENTS, kind_of

SPLITS = Household.splits
task_ids = st.builds(
    "{}/{}/{:06d}".format,
    st.sampled_from(SPLITS),
    st.sampled_from(TASK_TYPES),
    st.integers(0, 999_999),
)
seeds = st.integers(0, 2**32)


def started(task_id: str, max_steps: int = 1000) -> Household:
    env = Household(max_steps=max_steps)
    env.reset(task_id)
    return env


def wander(env: Household, seed: int, n: int) -> None:
    """n random actions, with enough expert's among them to get somewhere, but never a victory."""
    rng = random.Random(seed)
    for _ in range(n):
        action = rng.choice([rng.choice(env.admissible()), str(env.expert_action())])
        trial = copy.deepcopy(env)
        if not trial.step(action).done:
            env.step(action)


def finish(env: Household) -> int:
    """Let the expert play on until the task is solved: the number of its actions."""
    for n in range(1, 41):
        action = env.expert_action()
        assert action in env.admissible()
        if env.step(action).success:
            return n
    raise AssertionError("the expert goes in circles")


def of_type(task: str, n: int = 12, split: str = "train") -> list[str]:
    return [f"{split}/{task}/{i:06d}" for i in range(n)]


# ------------------------------------------------------------------------------ tasks and splits


def test_sizes():
    rooms = [*_rooms("train"), *_rooms("ood")]
    assert [len(_rooms(split)) for split in SPLITS] == [12, 12, 4]
    assert all(5 <= len(room.places) <= 8 for room in rooms)
    assert len({room.kind for room in _rooms("ood")}) == 4
    places = {place for room in rooms for place in room.places}
    objects = {f"{kind} {i + 1}" for kind in _FITS for i in range(COPIES)}
    assert 14 <= len(_FITS) - 1 <= 18
    assert all(1 <= int(place.split()[1]) <= 4 for place in places)
    assert len(places) + len(objects) < 90
    for task_id in Household().tasks("train", 300, 0):
        things = [name for held in started(task_id)._holds.values() for name in held]
        assert 6 <= sum(kind_of(name) != LAMP for name in things) <= 9
        assert len(set(things)) == len(things) and set(things) <= objects


def test_tasks_are_even_and_follow_the_seed():
    env = Household()
    ids = env.tasks("train", 600, seed=1)
    assert Counter(task.split("/")[1] for task in ids) == dict.fromkeys(TASK_TYPES, 100)
    assert ids == env.tasks("train", 600, seed=1)
    assert len(set(ids) & set(env.tasks("train", 600, seed=2))) < 6
    assert len(env.tasks("train", 7, seed=1)) == 7
    assert env.tasks("train", 0, seed=1) == env.tasks("train", -3, seed=1) == []


def test_id_has_the_goals_of_train_in_other_placements():
    assert all(_choices("id", task) == _choices("train", task) for task in TASK_TYPES)

    def worlds(split: str) -> set[str]:
        envs = map(started, Household().tasks(split, 1200, seed=0))
        return {repr((env._task, env._goal, env._holds)) for env in envs}

    assert not worlds("id") & worlds("train")
    same = [
        started(f"train/clean/{i:06d}")._holds == started(f"id/clean/{i:06d}")._holds
        for i in range(50)
    ]
    assert not any(same)  # the name of the split is part of the seed


def test_ood_has_new_rooms_and_new_goals():
    def goals(split: str) -> set:
        return {goal for t in TASK_TYPES for _, found in _choices(split, t) for goal in found}

    def layouts(split: str) -> set:
        return {tuple(sorted(room.places)) for room in _rooms(split)}

    assert not layouts("ood") & layouts("train")
    assert goals("ood") <= _HELD_OUT and not goals("train") & _HELD_OUT
    assert len(goals("ood")) >= 20
    played = [started(task) for task in Household().tasks("ood", 900, seed=0)]
    assert {env._goal for env in played} == goals("ood")
    assert {tuple(sorted(env._places)) for env in played} == layouts("ood")


def test_ood_says_no_new_word():
    """Names with their number are one word. Half random, half expert's play says all there is."""

    def words(split: str, n: int) -> set[str]:
        env, rng, found = Household(), random.Random(0), set()
        for task_id in env.tasks(split, n, seed=0):
            text, turn = env.reset(task_id)
            texts = [text, turn.observation]
            while not turn.done:
                action = rng.choice([rng.choice(env.admissible()), env.expert_action()])
                texts += [*env.admissible(), action]
                turn = env.step(action)
                texts.append(turn.observation)
            found.update(re.findall(r"[a-z]+ \d|[\w']+|[^\w\s]", " ".join(texts)))
        return found

    train, ood = words("train", 900), words("ood", 600)
    print(f"\nvocabulary: train {len(train)}, ood {len(ood)}")
    assert ood <= train
    assert len(train) < 180


def test_observations_are_short():
    env, lengths = Household(), []
    for task_id in env.tasks("train", 60, seed=0):
        _, turn = env.reset(task_id)
        while not turn.done:
            lengths.append(len(turn.observation.split()))
            turn = env.step(env.expert_action())
    assert max(lengths) < 60 and sum(n < 40 for n in lengths) > 0.95 * len(lengths)


@pytest.mark.parametrize(
    "bad",
    [
        "train",
        "test/clean/000001",
        "train/slice/000001",
        "train/clean/1",
        "train/clean/00000٣",
        "x" * 10_000,
    ],
)
def test_unknown_task_id(bad):
    with pytest.raises(UserError, match="unknown task id") as error:
        Household().reset(bad)
    assert len(str(error.value)) < 300


def test_max_steps_must_be_positive():
    with pytest.raises(UserError, match="max_steps is 0"):
        Household(max_steps=0)


# ------------------------------------------------------------------------------ rules


def applies(env: Household, action: str) -> bool:
    """The rules of the world, told a second time."""
    at, hand, words = env._at, env._hand, action.split()
    name = " ".join(words[-2:])
    what = " ".join(words[1:3])

    def reachable(place: str) -> bool:
        return place == at and (kind_of(place) not in OPENABLE or place in env._open)

    def visible(thing: str) -> bool:
        return any(thing in held for place, held in env._holds.items() if reachable(place))

    match words[0]:
        case "look" | "inventory":
            return len(words) == 1
        case "go":
            return name in env._places and name != at
        case "open":
            return name == at and kind_of(name) in OPENABLE and name not in env._open
        case "close":
            return name == at and name in env._open
        case "examine":
            return name in (at, hand) or visible(name)
        case "use":
            return kind_of(name) == LAMP and visible(name)
        case "take":
            inside = reachable(name) and what in env._holds[name]
            return hand is None and inside and kind_of(what) != LAMP
        case "move":
            return what == hand and reachable(name) and kind_of(name) in _FITS[kind_of(what)]
    treatment = TREATMENTS[words[0]]
    right = name == at and kind_of(name) == treatment.tool
    return what == hand and right and kind_of(what) in treatment.objects


def grammar(env: Household) -> list[str]:
    """Every command of the language over the names of this world, and over some others."""
    names = [*env._places, *env._marks, "cabinet 9", "apple 9", f"{LAMP} 2"]
    alone = [f"{verb} {x}" for verb in ("go to", "open", "close", "examine", "use") for x in names]
    joined = [("take", "from"), ("move", "to"), *((verb, "with") for verb in TREATMENTS)]
    pairs = [f"{v} {x} {prep} {y}" for v, prep in joined for x, y in permutations(names, 2)]
    return ["look", "inventory", *alone, *pairs]


@given(task_ids, seeds, st.integers(0, 25))
def test_admissible_is_what_the_rules_allow_and_what_step_applies(task_id, seed, n):
    env = started(task_id, max_steps=10**6)
    wander(env, seed, n)
    commands = grammar(env)
    listed = set(env.admissible())
    assert listed == {action for action in commands if applies(env, action)}
    before = (env.admissible(), env.expert_action(), repr(env._holds))
    for action in commands:
        if action not in listed:
            turn = env.step(action)
            assert not turn.applied and turn.observation == NOTHING
    assert (env.admissible(), env.expert_action(), repr(env._holds)) == before
    for action in listed:
        turn = copy.deepcopy(env).step(action)
        assert turn.applied and turn.observation != NOTHING


def test_one_episode_word_for_word():
    env = Household()
    task, turn = env.reset("train/clean/000001")
    said = [task, turn.observation]
    while not turn.done:
        action = env.expert_action()
        turn = env.step(action)
        said += [f"> {action}", turn.observation]
    assert said == EPISODE.splitlines()


EPISODE = """\
put a clean soapbar in cabinet.
You are in the middle of a room. Looking quickly around you, you see a toilet 1, a shelf 1, \
a shelf 2, a sinkbasin 1, a cabinet 1, a cabinet 2, and a cabinet 3.
> go to sinkbasin 1
You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing.
> go to toilet 1
You arrive at toilet 1. On the toilet 1, you see a soapbar 1, and a cloth 1.
> take soapbar 1 from toilet 1
You pick up the soapbar 1 from the toilet 1.
> go to sinkbasin 1
You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing.
> clean soapbar 1 with sinkbasin 1
You clean the soapbar 1 using the sinkbasin 1.
> go to cabinet 1
You arrive at cabinet 1. The cabinet 1 is closed.
> open cabinet 1
You open the cabinet 1. The cabinet 1 is open. In it, you see a toiletpaper 1, and a toiletpaper 2.
> move soapbar 1 to cabinet 1
You move the soapbar 1 to the cabinet 1."""


def test_wording_of_treatments():
    env = next(e for e in map(started, of_type("heat", 40)) if "microwave 1" in e._places)
    while env._hand is None:
        env.step(env.expert_action())
    held = env._hand
    assert env.step(f"examine {held}").observation == f"There's nothing special about {held}."
    assert env.step("inventory").observation == f"You are carrying: a {held}."
    for verb, tool, adjective in (
        ("cool", "fridge 1", "cold"),
        ("clean", "sinkbasin 1", "cool and clean"),
        ("heat", "microwave 1", "hot and clean"),
    ):
        env.step(f"go to {tool}")
        turn = env.step(f"{verb} {held} with {tool}")
        assert turn.observation == f"You {verb} the {held} using the {tool}."
        assert env.step(f"examine {held}").observation == f"This is a {adjective} {held}."


def test_a_lamp_is_a_switch_and_stays():
    env = started("train/look_at_light/000000")
    place = next(place for place, held in env._holds.items() if f"{LAMP} 1" in held)
    env.step(f"go to {place}")
    assert not env.step(f"take {LAMP} 1 from {place}").applied
    for state in ("on", "off"):
        assert env.step(f"use {LAMP} 1").observation == f"You turn {state} the {LAMP} 1."
        assert env.step(f"examine {LAMP} 1").observation == f"This {LAMP} 1 is {state}."


def test_step_limit_and_after_the_end():
    env = started("train/clean/000001", max_steps=3)
    assert [env.step(action).done for action in ("look", "dance", "look")] == [False, False, True]
    turn = env.step("look")
    assert turn.done and not turn.applied and not turn.success and turn.observation == NOTHING
    assert env.admissible() == () and env.expert_action() is None
    finish(env := started("train/clean/000001"))
    turn = env.step("look")
    assert turn.done and turn.success and not turn.applied and turn.score == 1


def test_before_reset_nothing_happens():
    env = Household()
    assert env.step("look").observation == NOTHING and env.admissible() == ()


# ------------------------------------------------------------------------------ what wins


@pytest.mark.parametrize("task", TASK_TYPES)
def test_it_is_solved_by_what_the_task_says(task):
    """The text names the goal, and the last action of the expert makes it true."""
    for task_id in of_type(task):
        env = Household()
        text, _ = env.reset(task_id)
        thing, target = re.fullmatch(
            r"(?:put(?: a| two)?(?: clean| hot| cool)?|look at) (\w+) (?:in|under the) (\w+)\.",
            text,
        ).groups()
        adjective = {"clean": "clean", "heat": "hot", "cool": "cool"}.get(task)
        assert (f" {adjective} " in text) == (adjective is not None)
        assert ("put two" in text) == (task == "pick_two")
        finish(env)
        if task == "look_at_light":
            assert target == LAMP and kind_of(env._hand) == thing
            assert env._lit and f"{LAMP} 1" in env._holds[env._at]
        else:
            assert kind_of(env._at) == target
            there = [name for name in env._holds[env._at] if kind_of(name) == thing]
            right = [name for name in there if not adjective or adjective in env._marks[name]]
            assert len(right) == (2 if task == "pick_two" else 1)


@pytest.mark.parametrize("task", TREATMENTS)
def test_an_untreated_object_does_not_win(task):
    for task_id in of_type(task):
        env = started(task_id)
        while env._hand is None:
            env.step(env.expert_action())
        held, target = env._hand, env._targets()[0]
        env.step(f"go to {target}")
        env.step(f"open {target}")
        turn = env.step(f"move {held} to {target}")
        assert turn.applied and not turn.done
        finish(env)  # it takes the object out again, and treats it
        assert TREATMENTS[task].mark in env._marks[held]


@pytest.mark.parametrize("task, undo", [("heat", "cool"), ("cool", "heat")])
def test_a_treatment_can_be_undone(task, undo):
    env = started(of_type(task)[0])
    while not (env._hand and env._ready(env._hand)):
        env.step(env.expert_action())
    tool = f"{TREATMENTS[undo].tool} 1"
    env.step(f"go to {tool}")
    env.step(f"{undo} {env._hand} with {tool}")
    assert not env._ready(env._hand)
    finish(env)


def test_pick_two_wants_both_in_the_same_place():
    tried = 0
    for task_id in of_type("pick_two", 60):
        env = started(task_id)
        targets = env._targets()
        if len(targets) < 2:
            continue
        tried += 1
        for target in targets[:2]:
            while env._hand is None:
                env.step(env.expert_action())
            env.step(f"go to {target}")
            env.step(f"open {target}")
            turn = env.step(f"move {env._hand} to {target}")
            assert turn.applied and not turn.done
        finish(env)
    assert tried > 5


@pytest.mark.parametrize("lit", [True, False])
def test_looking_wants_the_lamp_on_and_both_in_one_place(lit):
    elsewhere = 0
    for task_id in of_type("look_at_light"):
        env = started(task_id)
        lamp_at = next(place for place, held in env._holds.items() if f"{LAMP} 1" in held)
        env.step(f"go to {lamp_at}")
        for _ in range(1 if lit else 2):
            assert not env.step(f"use {LAMP} 1").done  # there is nothing to look at
        while env._hand is None:
            turn = env.step(env.expert_action())
        assert turn.done == (lit and env._at == lamp_at)
        if env._at != lamp_at:
            elsewhere += 1
            assert env.step(f"go to {lamp_at}").done == lit
        assert lit or env.step(f"use {LAMP} 1").success
    assert elsewhere > 5


# ------------------------------------------------------------------------------ seeing and knowing


@given(task_ids, seeds)
def test_what_is_hidden_is_never_named(task_id, seed):
    """Nothing speaks of an object before its place was visited, and opened if it is a container."""
    env, rng = started(task_id, max_steps=40), random.Random(seed)
    turn, uncovered = env._last, set()
    hidden = {name: place for place, held in env._holds.items() for name in held}
    while True:
        for name in [name for name, place in hidden.items() if place not in uncovered]:
            said = [turn.observation, *env.admissible(), str(env.expert_action())]
            assert not any(re.search(rf"\b{name}\b", text) for text in said)
        if turn.done:
            break
        action = rng.choice([rng.choice(env.admissible()), env.expert_action()])
        turn = env.step(action)
        verb, place = action.split()[0], " ".join(action.split()[-2:])
        if verb == "open" or (verb == "go" and kind_of(place) not in OPENABLE):
            uncovered.add(place)


@given(task_ids, seeds, st.integers(0, 20))
def test_the_expert_knows_only_what_was_shown(task_id, seed, n):
    """Were the unseen places to hold other things, the expert would do the same."""
    env = started(task_id)
    wander(env, seed, n)
    expected, rng = env.expert_action(), random.Random(seed)
    unseen = [place for place in env._places if place not in env._seen]
    for _ in range(5):
        things = [name for place in unseen for name in env._holds[place]]
        for place in unseen:
            env._holds[place] = []
        for name in things:
            env._holds[rng.choice(unseen)].append(name)
        assert env.expert_action() == expected


def test_a_closed_container_shows_nothing():
    env = started("train/heat/000000")
    drawer = next(place for place in env._places if kind_of(place) in OPENABLE)
    inside = env.step(f"go to {drawer}").observation
    assert inside == f"You arrive at {drawer}. The {drawer} is closed."
    opened = env.step(f"open {drawer}").observation
    assert opened.startswith(f"You open the {drawer}. The {drawer} is open. In it, you see ")
    assert env.step(f"close {drawer}").observation == f"You close the {drawer}."
    assert env.step(f"examine {drawer}").observation == f"The {drawer} is closed."
    assert not any(action.startswith("take") for action in env.admissible())


# ------------------------------------------------------------------------------ the expert


def test_the_expert_solves_every_task():
    env = Household()
    for split in SPLITS:
        lengths = []
        for task_id in env.tasks(split, 1000, seed=7):
            _, turn = env.reset(task_id)
            while not turn.done:
                turn = env.step(env.expert_action())
            assert turn.success, task_id
            lengths.append(env._steps)
        lengths.sort()
        print(f"\n{split}: expert length median {lengths[500]}, max {lengths[-1]}")
        assert 7 <= lengths[500] <= 10 and lengths[-1] < 30


def test_the_expert_looks_in_likely_places_first():
    for task_id in Household().tasks("train", 300, seed=5):
        env = started(task_id)
        thing, target = env._goal
        order = [kind_of(place) for place in env._places]
        likely = [kind for kind in _FITS[thing] if kind in order and kind != target]
        place = env._places[order.index(likely[0])]
        assert env.expert_action() == f"go to {place}"


@given(task_ids, seeds, st.integers(0, 40))
def test_the_expert_recovers_from_any_state(task_id, seed, n):
    env = started(task_id)
    wander(env, seed, n)
    assert finish(env) < 30


def test_the_expert_is_not_far_from_the_shortest_plan():
    """Once it has seen everything, the searching expert is as good as an all-knowing planner."""
    waste = []
    for task_id in Household().tasks("train", 60, seed=3):
        env = started(task_id)
        env._seen.update(env._places)
        waste.append(finish(copy.deepcopy(env)) - shortest(env))
    assert min(waste) == 0 and max(waste) <= 2 and sum(waste) <= 0.5 * len(waste)


HAND = "hand 0"  # where an object is while it is carried


def shortest(env: Household) -> int:
    """The length of a shortest plan, by breadth-first search over what matters to the goal."""
    goal, task = env._goal, env._task
    treatment = TREATMENTS.get(task)
    where = tuple(
        p for p, held in env._holds.items() for name in held if kind_of(name) == goal.object
    )
    lamp_at = next((p for p, held in env._holds.items() if f"{LAMP} 1" in held), None)

    def solved(at, shut, where, treated, lit) -> bool:
        if task == "look_at_light":
            return lit and at == lamp_at and HAND in where
        right = [p for p, ok in zip(where, treated) if ok and kind_of(p) == goal.target]
        return any(right.count(p) >= env._needed for p in right)

    def successors(at, shut, where, treated, lit):
        for place in env._places:
            yield place, shut, where, treated, lit
        yield at, shut - {at}, where, treated, lit
        for i, place in enumerate(where):
            if at not in shut and at == place and HAND not in where:
                yield at, shut, (*where[:i], HAND, *where[i + 1 :]), treated, lit
            if place == HAND:
                if at not in shut and kind_of(at) in _FITS[goal.object]:
                    yield at, shut, (*where[:i], at, *where[i + 1 :]), treated, lit
                if treatment and kind_of(at) == treatment.tool:
                    yield at, shut, where, (*treated[:i], True, *treated[i + 1 :]), lit
        if at == lamp_at:
            yield at, shut, where, treated, True

    useful = {place for place in env._places if place in where or kind_of(place) == goal.target}
    shut = frozenset(place for place in useful if kind_of(place) in OPENABLE)
    layer = {("nowhere 0", shut, where, (treatment is None,) * len(where), False)}
    found = set(layer)
    for n in range(30):
        if any(solved(*state) for state in layer):
            return n
        layer = {after for state in layer for after in successors(*state)} - found
        found |= layer
    raise AssertionError("no plan")


# ------------------------------------------------------------------------------ speed


def test_speed():
    """Random admissible play. The bound allows for a busy machine: see the printed value."""
    env, rng = Household(max_steps=300), random.Random(0)
    episodes = []
    for task_id in env.tasks("train", 24, seed=0):
        env.reset(task_id)
        actions = []
        while not env._last.done:
            actions.append(rng.choice(env.admissible()))
            env.step(actions[-1])
        episodes.append((task_id, actions))

    def rate(listing: bool) -> float:
        steps, seconds = 0, 0.0
        for task_id, actions in episodes:
            env.reset(task_id)
            begin = time.perf_counter()
            for action in actions:
                if listing:
                    env.admissible()
                env.step(action)
            seconds += time.perf_counter() - begin
            steps += len(actions)
        return steps / seconds

    plain, listed = (max(rate(listing) for _ in range(3)) for listing in (False, True))
    print(f"\nhousehold: {plain:,.0f} steps/s, {listed:,.0f} steps/s with admissible()")
    assert plain > 10_000 and listed > 7_500
