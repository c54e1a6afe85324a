"""What an agent in the household world can know from what it has read, and sentences that say it.

The tiny base thinks in these sentences, and because each is true or false of a state, what a model
thinks can be measured: by kind, and how much of it is true.

    kind       example                         true if, by what has been shown up to now,
    goal       i want hot apple in drawer      that is the task
    hand       i hold apple 1 · nothing        it is in hand
    place      i am at drawer 1                the agent stands there
    seen       i saw apple 1 on shelf 2        it lies there
    unseen     i saw no apple                  the task needs one, and none has been shown
    left       drawer 1 not searched           what it holds has not been shown
    closed     drawer 1 closed                 it was so when last shown
    must       i must heat apple               the task wants that, and no such apple is hot yet
    tool       heat needs microwave 1          the task wants that, and it is done there
    treated    apple 1 hot                     it has been treated so
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from miniact.types import State

KINDS = {
    "goal": r"i want .+",
    "hand": r"i hold .+",
    "place": r"i am at .+",
    "unseen": r"i saw no .+",
    "seen": r"i saw .+ on .+",
    "must": r"i must .+",
    "tool": r"\w+ needs .+",
    "left": r".+ not searched",
    "closed": r".+ closed",
    "treated": r"\w+ \d+ (?:clean|hot|cool)",
}
LAMP = "desklamp"  # the one object that cannot be taken


class Treatment(NamedTuple):
    tool: str  # the kind of place where it is done
    mark: str  # what the object is afterwards
    undoes: str  # what it is no longer
    objects: frozenset[str]  # the types of objects that take it


_DINNER = frozenset({"apple", "egg", "potato", "mug", "cup", "plate"})
TREATMENTS = {  # verb → what it does
    "clean": Treatment("sinkbasin", "clean", "", _DINNER | {"spoon", "cloth", "soapbar"}),
    "heat": Treatment("microwave", "hot", "cool", _DINNER),
    "cool": Treatment("fridge", "cool", "hot", _DINNER),
}
VERBS = {treatment.mark: verb for verb, treatment in TREATMENTS.items()}
TOOLS = {verb: treatment.tool for verb, treatment in TREATMENTS.items()} | {"light": LAMP}
_NAME = r"[a-z]+ \d+"
_TASK = re.compile(
    r"(?:put a|put|look at) (?:(clean|hot|cool|two) )?([a-z]+) (?:in|under the) ([a-z]+)"
)
_SHOWN = re.compile(rf"(?:On the|The) ({_NAME})(?: is open\. In it)?, you see (.*?)\.")


def kind_of(name: str) -> str:
    """'drawer 2' → 'drawer'."""
    return name.partition(" ")[0]


@dataclass
class Known:
    """What has been shown. `where`: object → place; `searched`: places whose content was shown."""

    how: str  # "clean", "hot", "cool", "two", "light" or "": what the task wants of the object
    object: str  # a type: "apple"
    target: str  # a kind of place, or the lamp
    places: list[str] = field(default_factory=list)
    at: str = ""
    hand: str = ""
    where: dict[str, str] = field(default_factory=dict)
    searched: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    marks: dict[str, set[str]] = field(default_factory=dict)

    @property
    def verb(self) -> str:
        return VERBS.get(self.how, "")

    def ready(self, name: str) -> bool:
        """Is it of the type that the task wants, and treated as it wants?"""
        treated = not self.verb or self.how in self.marks.get(name, ())
        return kind_of(name) == self.object and treated

    def of_kind(self, kind: str) -> list[str]:
        """Objects of a type that are known to lie somewhere."""
        return [name for name in self.where if kind_of(name) == kind]

    def see(self, action: str, observation: str) -> None:
        """Take in what an action led to."""
        if shown := re.search(r"Looking quickly around you, you see (.*)\.", observation):
            self.places = re.findall(_NAME, shown[1])
        if arrived := re.match(rf"You arrive at ({_NAME})\.", observation):
            self.at = arrived[1]
        if opened := re.match(rf"You open the ({_NAME})\.", observation):
            self.closed.discard(opened[1])
        if closed := re.search(rf"(?:You close the|The) ({_NAME})(?: is closed)?\.$", observation):
            self.closed.add(closed[1])
        if shown := _SHOWN.search(observation):
            place, names = shown[1], re.findall(_NAME, shown[2])
            self.searched.add(place)
            self.closed.discard(place)
            self.where = {o: p for o, p in self.where.items() if p != place}
            self.where |= dict.fromkeys(names, place)
        self._handle(observation)

    def _handle(self, observation: str) -> None:
        if taken := re.match(rf"You pick up the ({_NAME}) from", observation):
            self.hand = taken[1]
            self.where.pop(self.hand, None)
        if moved := re.match(rf"You move the ({_NAME}) to the ({_NAME})\.", observation):
            self.where[moved[1]] = moved[2]
            self.hand = ""
        if treated := re.match(rf"You (clean|heat|cool) the ({_NAME}) using", observation):
            treatment = TREATMENTS[treated[1]]
            marks = self.marks.setdefault(treated[2], set())
            marks.discard(treatment.undoes)
            marks.add(treatment.mark)

    # ---- sentences -----------------------------------------------------------------------------

    def goal(self) -> str:
        joined = "under" if self.how == "light" else "in"
        how = f"{self.how} " if self.how in (*VERBS, "two") else ""
        return f"i want {how}{self.object} {joined} {self.target}"

    def facts(self) -> dict[str, list[str]]:
        """Every true sentence, by kind."""
        wanted = [self.object, LAMP] if self.how == "light" else [self.object]
        held = kind_of(self.hand)
        verb = "light" if self.how == "light" else self.verb
        tools = self.of_kind(LAMP) or [f"{LAMP} 1"] if verb == "light" else self.places
        done = any(self.ready(name) for name in (*self.where, self.hand) if name)
        return {
            "goal": [self.goal()],
            "hand": [f"i hold {self.hand or 'nothing'}"],
            "place": [f"i am at {self.at}"] if self.at else [],
            "unseen": [f"i saw no {k}" for k in wanted if not self.of_kind(k) and k != held],
            "seen": [f"i saw {name} on {place}" for name, place in self.where.items()],
            "must": [f"i must {verb} {self.object}"] if self.verb and not done else [],
            "tool": [f"{verb} needs {t}" for t in tools if verb and kind_of(t) == TOOLS[verb]],
            "left": [
                f"{place} not searched" for place in self.places if place not in self.searched
            ],
            "closed": [f"{place} closed" for place in self.places if place in self.closed],
            "treated": [f"{name} {m}" for name, marks in self.marks.items() for m in sorted(marks)],
        }


def read(state: State) -> Known:
    """What the agent can know in a state: its task, and all that it has been shown."""
    task = _TASK.match(state.task)
    if task is None:
        raise ValueError(f"no task of the household world: {state.task!r}")
    known = Known(task[1] or ("light" if task[3] == LAMP else ""), task[2], task[3])
    actions = ["", *(action for _, action in state.history)]
    observations = [*(observation for observation, _ in state.history), state.observation]
    for action, observation in zip(actions, observations):
        known.see(action, observation)
    return known


def sentences(thought: str) -> list[str]:
    """'I hold nothing. drawer 1 closed' → ['i hold nothing', 'drawer 1 closed']."""
    parts = (" ".join(part.lower().split()) for part in thought.split("."))
    return [part for part in parts if part]


def check(state: State, thought: str) -> list[tuple[str, bool]]:
    """The kind of each sentence of a thought (other: none of ours), and whether it is true.

    Nothing of a state of another world, as a file of pairs may hold.
    """
    if not _TASK.match(state.task):
        return []
    facts = read(state).facts()
    checked = []
    for sentence in sentences(thought):
        kind = next((k for k, form in KINDS.items() if re.fullmatch(form, sentence)), "other")
        checked.append((kind, sentence in facts.get(kind, ())))
    return checked


def things(text: str) -> set[str]:
    """The things that a text is about: 'go to drawer 1' → {'drawer 1'}."""
    return set(re.findall(_NAME, text.lower()))
