"""The built-in household world: ALFWorld's six task types and its command language, at toy size.

A room holds 6-8 numbered receptacles ("places" below) and 6-9 numbered objects. The agent sees
what a place holds only while it stands there and the place is open, and carries one object at most.
Everything follows from the task id, which seeds a generator: nothing to download. Texts
and rules are those of ALFWorld 0.4.2, except that here
- each type of task has one sentence; there is no slicing, no `help`, and one kind of lamp, which
  is a true switch: used twice it is off again;
- no object starts clean, hot or cool, or in the kind of place that the task wants it in;
- one table of commonsense, `fits` in household.yaml, places objects and orders the expert's search.

Splits: "train"; "id" has the rooms and goals of train, but other placements; "ood" has other
rooms, and goals (object, target) that train never has, but no word that train does not use. In
"play" nothing has its place: rooms are thrown together, anything can lie anywhere, and goals are
those that make no sense elsewhere. A base that thinks is made there (dev/make_thinker.py).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import yaml

from miniact import UserError
from miniact.envs import Turn, check_names, household_facts
from miniact.envs.household_facts import LAMP, TREATMENTS, kind_of

NOTHING = "Nothing happens."
PLAY = "play"  # the split in which a base that thinks is made
COPIES = 2  # of a type of object in a room, at most: "apple 1" and "apple 2"
NUMBERS = 1_000_000  # of tasks of one type in one split
OPENABLE = frozenset({"cabinet", "drawer", "fridge", "microwave"})

_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes())
_FITS = {name: tuple(text.replace("*", "").split()) for name, text in _TABLES["fits"].items()}
_HELD_OUT = frozenset(
    (name, word[:-1])
    for name, text in _TABLES["fits"].items()
    for word in text.split()
    if word.endswith("*")
)
PLACES = {place for places in _FITS.values() for place in places} - {LAMP}
_OBJECTS = {kind: text.split() for kind, text in _TABLES["objects"].items()}


_SENTENCES = {
    "pick_and_place": "put a {0} in {1}.",
    "look_at_light": "look at {0} under the {1}.",
    "clean": "put a clean {0} in {1}.",
    "heat": "put a hot {0} in {1}.",
    "cool": "put a cool {0} in {1}.",
    "pick_two": "put two {0} in {1}.",  # both in the same one
}
TASK_TYPES = tuple(_SENTENCES)


class Goal(NamedTuple):
    object: str  # a type: "apple"
    target: str  # a kind of place, any of which will do: "cabinet"; or LAMP


class Room(NamedTuple):
    kind: str
    places: tuple[str, ...]  # "cabinet 1", "cabinet 2", "fridge 1", in the order of the first look


def _fits(name: str, place: str) -> bool:
    return kind_of(place) in _FITS[kind_of(name)]


def _numbered(kinds: list[str]) -> tuple[str, ...]:
    """['shelf', 'bed', 'shelf'] → ('shelf 1', 'bed 1', 'shelf 2')."""
    return tuple(f"{kind} {kinds[: i + 1].count(kind)}" for i, kind in enumerate(kinds))


def _listing(names: Sequence[str]) -> str:
    """'nothing', 'a apple 1', 'a apple 1, and a mug 1': ALFWorld's English."""
    *head, last = [f"a {name}" for name in names] or ["nothing"]
    return f"{', '.join(head)}, and {last}" if head else last


# ---------------------------------------------------------------------- from a task id to a world


@cache
def _rooms(split: str) -> tuple[Room, ...]:
    kinds = _TABLES["rooms"]["ood" if split == "ood" else "train"].items()
    return tuple(Room(kind, _numbered(text.split())) for kind, rows in kinds for text in rows)


def _goals(task: str, room: Room) -> list[Goal]:
    """Every goal of this type for this room: the object fits there, and also somewhere else."""
    objects, targets = _OBJECTS[room.kind], list(dict.fromkeys(map(kind_of, room.places)))
    homes = {o: [kind for kind in targets if kind in _FITS[o]] for o in objects}
    if task == "look_at_light":
        targets = [LAMP] if LAMP in objects else []
    elif task in TREATMENTS:
        treatment = TREATMENTS[task]
        objects = [o for o in objects if o in treatment.objects and treatment.tool in targets]
        targets = [kind for kind in targets if kind != treatment.tool]
    pairs = [Goal(o, t) for o in objects if o != LAMP for t in targets if t in _FITS[o]]
    return [goal for goal in pairs if homes[goal.object] != [goal.target]]


@cache
def _choices(split: str, task: str) -> tuple[tuple[Room, list[Goal]], ...]:
    """The rooms of a split in which it has goals for this type of task, with these goals."""
    rooms, held_out = _rooms(split), split == "ood"
    goals = [[g for g in _goals(task, room) if (g in _HELD_OUT) == held_out] for room in rooms]
    return tuple((room, choice) for room, choice in zip(rooms, goals) if choice)


def _furnish(rng: random.Random, room: Room, kinds: list[str], goal: Goal) -> dict[str, list[str]]:
    """What each place holds: `kinds` and others, each put where it fits with weight 0.8^rank."""
    others = [kind for kind in _OBJECTS[room.kind] if kind != LAMP] * COPIES
    for kind in kinds:
        others.remove(kind)
    kinds = kinds + rng.sample(others, rng.randint(6, 9) - len(kinds))
    if LAMP in _OBJECTS[room.kind]:
        kinds.append(LAMP)
    holds: dict[str, list[str]] = {place: [] for place in room.places}
    for name in _numbered(kinds):
        banned = goal.target if kind_of(name) == goal.object else None
        places = [p for p in room.places if _fits(name, p) and kind_of(p) != banned]
        weights = [0.8 ** _FITS[kind_of(name)].index(kind_of(place)) for place in places]
        holds[rng.choices(places, weights)[0]].append(name)
    return holds


def _senseless(rng: random.Random, task: str) -> tuple[Room, Goal]:
    """A room and a goal of the play split: any places, and a target where the object never fits."""
    treatment = TREATMENTS.get(task)
    targets = [LAMP] if task == "look_at_light" else sorted(PLACES)
    names = sorted(treatment.objects if treatment else set(_FITS) - {LAMP})
    goals = [Goal(name, t) for name in names for t in targets if t not in _FITS[name]]
    name, target = rng.choice(goals)
    kinds = [*({target} - {LAMP}), *([treatment.tool] if treatment else [])]
    more = [kind for kind in sorted(PLACES) * 2 + ["cabinet", "drawer"] if kind not in kinds]
    kinds += rng.sample(more, rng.randint(6, 8) - len(kinds))
    rng.shuffle(kinds)
    room = Room("", _numbered(kinds))
    known = (sorted(r.places) for split in ("train", "ood") for r in _rooms(split))
    if sorted(room.places) in known:  # one in thousands
        return _senseless(rng, task)
    return room, Goal(name, target)


def _scatter(rng: random.Random, room: Room, kinds: list[str], goal: Goal) -> dict[str, list[str]]:
    """`_furnish` for the play split: anything anywhere, but not where it has to go."""
    others = sorted(set(_FITS) - {LAMP}) * COPIES
    for kind in kinds:
        others.remove(kind)
    names = _numbered([*kinds, *rng.sample(others, rng.randint(6, 9) - len(kinds)), LAMP])
    holds: dict[str, list[str]] = {place: [] for place in room.places}
    for name in names:
        banned = goal.target if kind_of(name) == goal.object else None
        holds[rng.choice([p for p in room.places if kind_of(p) != banned])].append(name)
    return holds


# ------------------------------------------------------------------------------- the environment


class Household:
    """The household world as an `Env`. An episode ends after `max_steps` actions at the latest."""

    splits: tuple[str, ...] = ("train", "id", "ood")  # and PLAY, which is no one's to measure

    def __init__(self, max_steps: int = 30) -> None:
        if max_steps < 1:
            raise UserError(f"env.options: max_steps is {max_steps}, expected 1 or more")
        self.max_steps = max_steps
        self._last = Turn(NOTHING, done=True)  # until the first reset

    def tasks(self, split: str, n: int, seed: int) -> list[str]:
        """n distinct task ids, the six types in turn."""
        check_names("household: unknown split", (*self.splits, PLAY), split)
        rng = random.Random(f"{split}/{seed}")
        n = max(n, 0)
        per_type = min(math.ceil(n / len(TASK_TYPES)), NUMBERS)
        rows = zip(*[rng.sample(range(NUMBERS), per_type) for _ in TASK_TYPES])
        ids = [f"{split}/{task}/{i:06d}" for row in rows for task, i in zip(TASK_TYPES, row)]
        return ids[:n]

    def reset(self, task_id: str) -> tuple[str, Turn]:
        pattern = rf"({'|'.join((*self.splits, PLAY))})/({'|'.join(TASK_TYPES)})/[0-9]{{6}}"
        match = re.fullmatch(pattern, task_id)
        if match is None:
            raise UserError(
                f"household: unknown task id {task_id[:60]!r}, expected one like "
                f"'train/clean/000123'; tasks(split, n, seed) lists some"
            )
        split, self._task = match.groups()
        rng = random.Random(task_id)  # seeded by a string: the same in every process
        self._anywhere = split == PLAY
        if self._anywhere:
            room, self._goal = _senseless(rng, self._task)
        else:
            room, goals = rng.choice(_choices(split, self._task))
            self._goal = rng.choice(goals)
        self._needed = 2 if self._task == "pick_two" else 1
        self._places = room.places
        fill = _scatter if self._anywhere else _furnish
        self._holds = fill(rng, room, [self._goal.object] * self._needed, self._goal)
        self._marks: dict[str, set[str]] = {o: set() for held in self._holds.values() for o in held}
        self._at: str | None = None  # None: in the middle of the room
        self._hand: str | None = None
        self._open: set[str] = set()
        self._seen: set[str] = set()  # places whose content the agent has been shown
        self._lit = False
        self._steps = 0
        self._moves: dict[str, Callable[[], str]] | None = None
        self._last = Turn(self._look())
        return _SENTENCES[self._task].format(*self._goal), self._last

    def step(self, action: str) -> Turn:
        if self._last.done:
            return replace(self._last, observation=NOTHING, applied=False)
        self._steps += 1
        effect = self._effects().get(action)
        observation, won = NOTHING, False
        if effect is not None:
            observation, won, self._moves = effect(), self._solved(), None
        done = won or self._steps >= self.max_steps
        self._last = Turn(observation, done, won, float(won), applied=effect is not None)
        return self._last

    def admissible(self) -> tuple[str, ...]:
        return () if self._last.done else tuple(sorted(self._effects()))

    check_thought = staticmethod(household_facts.check)  # what evaluation/thoughts.py asks
    things = staticmethod(household_facts.things)

    def close(self) -> None:
        self._last = Turn(NOTHING, done=True)

    # ----------------------------------------------------------- the actions and what they do

    def _effects(self) -> dict[str, Callable[[], str]]:
        """Every action that applies now → its effect: the one truth of `step` and `admissible`."""
        if self._moves is not None:
            return self._moves
        at, hand = self._at, self._hand
        moves: dict[str, Callable[[], str]] = {"look": self._look, "inventory": self._inventory}
        for place in self._places:
            if place != at:
                moves[f"go to {place}"] = partial(self._go, place)
        if hand is not None:
            moves[f"examine {hand}"] = partial(self._examine, hand)
        if at is not None:
            moves[f"examine {at}"] = partial(self._show, at)
            if kind_of(at) in OPENABLE:
                verb = "close" if at in self._open else "open"
                moves[f"{verb} {at}"] = partial(self._swing, verb, at)
            for verb, treatment in TREATMENTS.items():
                if hand and kind_of(at) == treatment.tool and kind_of(hand) in treatment.objects:
                    moves[f"{verb} {hand} with {at}"] = partial(self._treat, verb, hand, at)
            if self._accessible(at):
                moves |= self._handling(at, hand)
        self._moves = moves
        return moves

    def _handling(self, at: str, hand: str | None) -> dict[str, Callable[[], str]]:
        """The actions on what an accessible place holds, and on what it could hold."""
        moves: dict[str, Callable[[], str]] = {}
        for name in self._holds[at]:
            moves[f"examine {name}"] = partial(self._examine, name)
            if kind_of(name) == LAMP:
                moves[f"use {name}"] = partial(self._use, name)
            elif hand is None:
                moves[f"take {name} from {at}"] = partial(self._take, name, at)
        if hand is not None and (self._anywhere or _fits(hand, at)):
            moves[f"move {hand} to {at}"] = partial(self._put, hand, at)
        return moves

    def _accessible(self, place: str) -> bool:
        return place in self._open or kind_of(place) not in OPENABLE

    def _look(self) -> str:
        if self._at is not None:
            return f"You are facing the {self._at}. Next to it, you see nothing."
        listing = _listing(self._places)
        return f"You are in the middle of a room. Looking quickly around you, you see {listing}."

    def _inventory(self) -> str:
        carried = f"carrying: a {self._hand}" if self._hand else "not carrying anything"
        return f"You are {carried}."

    def _go(self, place: str) -> str:
        self._at = place
        return f"You arrive at {place}. {self._show(place)}"

    def _show(self, place: str) -> str:
        """What a place holds, unless it is closed. From now on the agent knows it."""
        if not self._accessible(place):
            return f"The {place} is closed."
        self._seen.add(place)
        intro = f"The {place} is open. In it" if place in self._open else f"On the {place}"
        return f"{intro}, you see {_listing(self._holds[place])}."

    def _examine(self, name: str) -> str:
        if kind_of(name) == LAMP:
            return f"This {name} is {'on' if self._lit else 'off'}."
        marks = " and ".join(mark for mark in ("hot", "cool", "clean") if mark in self._marks[name])
        if not marks:
            return f"There's nothing special about {name}."
        return f"This is a {'cold' if marks == 'cool' else marks} {name}."  # ALFWorld's wording

    def _swing(self, verb: str, place: str) -> str:
        if verb == "close":
            self._open.remove(place)
            return f"You close the {place}."
        self._open.add(place)
        return f"You open the {place}. {self._show(place)}"

    def _take(self, name: str, place: str) -> str:
        self._holds[place].remove(name)
        self._hand = name
        return f"You pick up the {name} from the {place}."

    def _put(self, name: str, place: str) -> str:
        self._holds[place].append(name)
        self._hand = None
        return f"You move the {name} to the {place}."

    def _treat(self, verb: str, name: str, tool: str) -> str:
        self._marks[name].discard(TREATMENTS[verb].undoes)
        self._marks[name].add(TREATMENTS[verb].mark)
        return f"You {verb} the {name} using the {tool}."

    def _use(self, name: str) -> str:
        self._lit = not self._lit
        return f"You turn {'on' if self._lit else 'off'} the {name}."

    # ------------------------------------------------------------------- the goal and the expert

    def _ready(self, name: str) -> bool:
        """Is it of the right type, and clean, hot or cool if the task wants that?"""
        if kind_of(name) != self._goal.object:
            return False
        return self._task not in TREATMENTS or TREATMENTS[self._task].mark in self._marks[name]

    def _solved(self) -> bool:
        if self._task == "look_at_light":
            in_light = self._lit and self._at and f"{LAMP} 1" in self._holds[self._at]
            return bool(in_light and self._hand and self._ready(self._hand))
        targets = (place for place in self._places if kind_of(place) == self._goal.target)
        return any(sum(map(self._ready, self._holds[p])) >= self._needed for p in targets)

    def expert_action(self) -> str | None:
        """The next action of a searching expert, which knows only what the agent has been shown.

        Fetch an object of the right type, treat it, bring it where it belongs; first put down
        whatever else is in hand. It follows from the state alone, so it also recovers from the
        deviations of others.
        """
        if self._last.done:
            return None
        hand = self._hand
        if hand is None:
            return self._fetch()
        if kind_of(hand) != self._goal.object:
            fit = [place for place in self._places if self._anywhere or _fits(hand, place)]
            return self._bring(hand, fit)
        if self._task == "look_at_light":
            lamp_at = [place for place in self._places if f"{LAMP} 1" in self._known(place)]
            return self._reach(lamp_at[0]) or f"use {LAMP} 1" if lamp_at else self._search(LAMP)
        if not self._ready(hand):
            tool = f"{TREATMENTS[self._task].tool} 1"
            return f"{self._task} {hand} with {tool}" if self._at == tool else f"go to {tool}"
        return self._bring(hand, self._targets())

    def _known(self, place: str) -> Sequence[str]:
        """What the agent knows the place to hold. The expert reads nothing else of the world."""
        return self._holds[place] if place in self._seen else ()

    def _targets(self) -> list[str]:
        """Where the object may go. Of two objects, the second has to follow the first."""
        targets = [place for place in self._places if kind_of(place) == self._goal.target]
        started = [place for place in targets if any(map(self._ready, self._known(place)))]
        return started[:1] if self._needed == 2 and started else targets

    def _fetch(self) -> str | None:
        """Take an object of the right type (one that is ready, and near) or search for one."""
        done = self._targets() if self._needed == 2 else []
        takeable = [
            (not self._ready(name), self._effort(place), i, name, place)
            for i, place in enumerate(self._places)
            for name in self._known(place)
            if kind_of(name) == self._goal.object and place not in done
        ]
        if not takeable:
            return self._search(self._goal.object)
        *_, name, place = min(takeable)
        return self._reach(place) or f"take {name} from {place}"

    def _bring(self, name: str, places: list[str]) -> str:
        place = min(places, key=self._effort)
        return self._reach(place) or f"move {name} to {place}"

    def _search(self, kind: str) -> str | None:
        """Uncover the place at hand if it may hold one, else the likeliest place not seen yet."""
        homes = sorted(PLACES) if self._anywhere else _FITS[kind]
        fits = [k for k in homes if k != self._goal.target]
        unseen = [p for p in self._places if p not in self._seen and kind_of(p) in fits]
        return self._reach(min(unseen, key=lambda p: (p != self._at, fits.index(kind_of(p)))))

    def _effort(self, place: str) -> int:
        """The number of actions until the place is at hand and open."""
        return (place != self._at) + (not self._accessible(place))

    def _reach(self, place: str) -> str | None:
        """The next of these actions, None if there is none."""
        if self._at != place:
            return f"go to {place}"
        return None if self._accessible(place) else f"open {place}"
