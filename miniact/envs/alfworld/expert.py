"""The expert of ALFWorld: explore until the object is found, then do what the task asks with it.

It is ours. The package's own hand-coded expert fails at most tasks with two objects (it waits for a
"put" that the game now calls "move") and breaks ties with the global random state; its planner may
think for 40 seconds. This one keeps no plan: it decides from the state of the game and from what it
has seen, so it also goes on after actions that were not its own.

The explorer knows of a receptacle's contents only after looking at them, like the agent that is to
learn from it. Where it has not looked, it looks first where the object may be kept and where a look
is cheapest for what it may find. The oracle knows all contents, and thus walks straight to things
that an agent cannot know of: shorter, but nothing that could be learned from texts.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

from miniact.envs.alfworld.engine import Game
from miniact.envs.alfworld.games import TREATMENTS


class Expert:
    """Plays one episode. `trajectory` is the game's traj_data.json."""

    def __init__(self, game: Game, trajectory: dict[str, Any], knows_all: bool) -> None:
        wanted = trajectory["pddl_params"]
        self._game = game
        self._knows_all = knows_all
        self._treatment = TREATMENTS.get(trajectory["task_type"])
        self._lamp = trajectory["task_type"] == "look_at_obj_in_light"
        self._target = wanted["object_target"].lower() + "type"
        self._goal = wanted["toggle_target" if self._lamp else "parent_target"].lower() + "type"
        self._seen: set[str] = set()  # receptacles whose contents were seen

    def observe(self) -> None:
        """To be told after each action that applied: it may have shown what a receptacle holds."""
        at, state = self._game.receptacle, _Facts(self._game)
        if at is not None and (at not in state.openable or at in state.opened):
            self._seen.add(at)

    def action(self) -> str | None:
        """The next command; None when there is nowhere left to look."""
        now = _Facts(self._game)
        held = now.held
        if held is None:
            return self._fetch(now)
        if now.kind[held] != self._target:
            return self._put_away(now, held)
        if self._treatment is not None:
            verb, station, mark = self._treatment
            stations = now.of_kind(f"{station.lower()}type")
            if held not in now.having[mark]:
                ways = [("gotolocation", s) for s in stations[:1]]
                return self._first((f"{verb}object", held), *ways)
        if self._lamp:
            lamps = [(o, r) for o, r in self._known(now) if now.kind[o] == self._goal]
            if not lamps:
                return self._search(now, self._goal)
            lamp, place = min(lamps)
            return self._first(("toggleobject", lamp), ("gotolocation", place))
        goal = self._destination(now)
        return goal and self._first(
            ("putobject", held, goal), ("openobject", goal), ("gotolocation", goal)
        )

    def _fetch(self, now: _Facts) -> str | None:
        """Get hold of an object of the wanted kind that is not yet where it should be."""
        goal = None if self._lamp else self._destination(now)
        ready = now.having[self._treatment[2]] if self._treatment else now.kind.keys()
        takeable = [
            (o not in ready, r not in now.here, r, o)
            for o, r in self._known(now)
            if now.kind[o] == self._target and not (r == goal and o in ready)
        ]
        if not takeable:
            return self._search(now, self._target)
        *_, place, target = min(takeable)
        return self._first(
            ("pickupobject", target, place), ("openobject", place), ("gotolocation", place)
        )

    def _destination(self, now: _Facts) -> str | None:
        """The receptacle to fill: one that holds such an object already, else one close by."""
        inside = Counter(r for o, r in self._known(now) if now.kind[o] == self._target)
        places = now.of_kind(self._goal)
        return min(places, key=lambda r: (-inside[r], r not in now.here), default=None)

    def _search(self, now: _Facts, wanted: str) -> str | None:
        """Look into the next receptacle: likely kinds first, then those of which there are few."""
        count = Counter(now.kind[r] for r in now.receptacles)

        def cost(r: str) -> tuple[bool, int]:
            looks = 2 if r in now.openable else 1  # it must be opened first
            return (now.kind[r], wanted) not in now.fits, count[now.kind[r]] * looks

        unseen = [r for r in now.receptacles if r not in self._seen]
        if not unseen or self._knows_all:
            return None
        place = min(unseen, key=cost)
        return self._first(
            ("openobject", place), ("gotolocation", place), ("examinereceptacle", place)
        )

    def _put_away(self, now: _Facts, held: str) -> str | None:
        """Empty the hand: what it holds is of no use here."""
        takers = [r for r in now.receptacles if (now.kind[r], now.kind[held]) in now.fits]
        place = min(takers, key=lambda r: r in now.openable, default=None)
        return place and self._first(
            ("putobject", held), ("openobject", place), ("gotolocation", place)
        )

    def _known(self, now: _Facts) -> list[tuple[str, str]]:
        """(object, receptacle) as far as the expert may know."""
        return [(o, r) for o, r in now.inside if self._knows_all or r in self._seen]

    def _first(self, *wishes: tuple[str, ...]) -> str | None:
        """The first of these that applies now: (action, ids that it must be about)."""
        applicable = {c: operator.name.split() for c, operator in self._game.commands.items()}
        for action, *ids in wishes:
            fitting = [
                c for c, (a, *args) in applicable.items() if a == action and {*ids} <= {*args}
            ]
            if fitting:
                return min(fitting)
        return None


class _Facts:
    """What holds in a game now, by predicate. Receptacles are in the order of their names."""

    def __init__(self, game: Game) -> None:
        facts: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
        for fact in game.state.facts:
            facts[fact.name].add(tuple(v.name for v in fact.arguments))
        self.kind = {f[0]: f[1] for f in facts["objecttype"] | facts["receptacletype"]}
        self.fits = facts["cancontain"]
        self.openable, self.opened = _ids(facts["openable"]), _ids(facts["opened"])
        self.having = {mark: _ids(facts[f"is{mark}"]) for mark in ("clean", "hot", "cool")}
        self.held = next((o for _, o in facts["holds"]), None)
        self.inside = sorted(facts["inreceptacle"])
        at = {location for _, location in facts["atlocation"]}
        places = facts["receptacleatlocation"]
        self.here = {r for r, location in places if location in at}
        self.receptacles = sorted((r for r, _ in places), key=lambda r: _natural(game.name(r)))

    def of_kind(self, kind: str) -> list[str]:
        return [r for r in self.receptacles if self.kind[r] == kind]


def _ids(facts: set[tuple[str, ...]]) -> set[str]:
    return {id_ for (id_,) in facts}


def _natural(name: str) -> tuple[str, int]:
    """ "drawer 10" comes after "drawer 9"."""
    number = re.search(r"\d+$", name)
    return name.rstrip("0123456789"), int(number[0]) if number else 0
