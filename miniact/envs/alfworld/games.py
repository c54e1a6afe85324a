"""New ALFWorld games, made from the rooms that the `alfworld` package itself describes.

The official games are a download of their own. The package does hold each room's receptacles and
kinds of object, which kind fits where, and how goals are worded: enough to put a room together. A
game is a room, its objects in random fitting places, and a goal that does not hold yet. It is
written in the tree that the package reads, so its own loader takes generated games too:

    OUT/json_2.1.1/<split>/<type>-<object>-None-<receptacle>-<room>/trial_<seed>_<number>/
        traj_data.json  initial_state.pddl  game.tw-pddl

Game number i of a split is a function of (seed, split, i), so going on after a kill adds what is
missing, and asking for more leaves those that are there as they are.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import filelock

from miniact import UserError
from miniact.envs import check_names
from miniact.envs.alfworld.engine import alfworld_folder, require_alfworld, visible_names
from miniact.runs.files import read_json, write_text

TREE = "json_2.1.1"
SPLITS = ("train", "valid_seen", "valid_unseen")
UNSEEN_ROOMS = (10, 219, 308, 424)  # those of the official valid_unseen split
TREATMENTS = {  # task type → what is done with its object before it is put away, where, its mark
    "pick_clean_then_place_in_recep": ("clean", "SinkBasin", "clean"),
    "pick_heat_then_place_in_recep": ("heat", "Microwave", "hot"),
    "pick_cool_then_place_in_recep": ("cool", "Fridge", "cool"),
}
TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    *TREATMENTS,
    "pick_two_obj_and_place",
)
_LAMP = "DeskLamp"  # floor lamps stand in no receptacle: the engine could not switch them on
_LAMP_STANDS = ("Desk", "Dresser", "SideTable", "DiningTable", "CoffeeTable", "Shelf", "CounterTop")
_COPIES = {"StoveBurner": 4}  # of receptacles that the layouts name without saying where they are
_MOST_OF_A_KIND = 3  # as in the official rooms


def generate(out: Path, counts: dict[str, int], seed: int) -> dict[str, int]:
    """Write solvable games of all six types until each split has its count.

    counts: {"train": n, "valid_seen": n, "valid_unseen": n}; the rooms of valid_unseen appear in no
    other split. Returns how many were written now. Same seed, same bytes.

    Raises UserError when `out` holds games of another origin or another seed.
    """
    require_alfworld()
    out = Path(out).expanduser()
    check_names("alfworld games: unknown split", SPLITS, *counts)
    try:
        done = _done(out, seed)
        if all(done.get(split, 0) >= count for split, count in counts.items()):
            return dict.fromkeys(counts, 0)  # nothing to write: a read-only folder will do
        out.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(out / ".lock"):
            return _add(out, counts, seed)
    except OSError as error:
        raise UserError(f"{out}: cannot hold ALFWorld games: {error.strerror}") from None


def _add(out: Path, counts: dict[str, int], seed: int) -> dict[str, int]:
    done = _done(out, seed)  # again: another process may have been at work
    _note(out, seed, done)
    shutil.rmtree(out / ".part", ignore_errors=True)
    choices = _choices(_read_rooms())
    written = dict.fromkeys(counts, 0)
    for split, count in counts.items():
        for i in range(done.get(split, 0), count):
            written[split] += _write(_make(choices, split, i, seed), out, split)
        done[split] = max(count, done.get(split, 0))
    _note(out, seed, done)
    return written


def _done(out: Path, seed: int) -> dict[str, int]:
    """How many games of each split are known to be complete; the folder must be ours."""
    note = out / "generated.json"
    if note.is_file():
        known = read_json(note)
        if known["seed"] == seed:
            return known["games"]
        others = f"games of seed {known['seed']}, not {seed}"
    elif (out / TREE).exists():
        others = "ALFWorld games that miniact did not make"
    else:
        return {}
    raise UserError(f"{out}: holds {others}; choose another --out")


def _note(out: Path, seed: int, done: dict[str, int]) -> None:
    note = json.dumps({"seed": seed, "games": done}, sort_keys=True)
    write_text(out / "generated.json", f"{note}\n")


@dataclass(frozen=True)
class _Room:
    """A floor plan: its receptacles, id → kind, and the kinds of object that belong there."""

    number: int
    receptacles: dict[str, str]
    objects: list[str]
    has_lamp: bool

    def places(self, kind: str, but: tuple[str, ...] = ()) -> list[str]:
        """Kinds of receptacle in this room that may hold a kind of object, sorted."""
        here = sorted(set(self.receptacles.values()) - set(but))
        return [r for r in here if kind in _fits()[r]]

    def of_kind(self, kind: str) -> list[str]:
        return [r for r, k in self.receptacles.items() if k == kind]


_Goals = list[tuple[str, str]]  # (kind of object, kind of receptacle, or the lamp)
_Choices = dict[tuple[str, bool], list[tuple[_Room, _Goals]]]  # see _choices


@dataclass(frozen=True)
class _Game:
    room: _Room
    type: str
    target: str  # kind of object
    goal: str  # kind of receptacle, or the lamp
    wording: str
    places: dict[str, str]  # object id → receptacle id
    trial: str


def _fits() -> dict[str, set[str]]:
    """Kind of receptacle → kinds of object that it may hold."""
    from alfworld.gen import constants

    return constants.VAL_RECEPTACLE_OBJECTS


def _read_rooms() -> list[_Room]:
    """All floor plans of the package."""
    from alfworld.gen import constants

    fixed = {r for r in constants.RECEPTACLES - constants.MOVABLE_RECEPTACLES_SET if r in _fits()}
    rooms = []
    for file in sorted(alfworld_folder().glob("gen/layouts/FloorPlan*-objects.json")):
        number = int(file.name.removeprefix("FloorPlan").removesuffix("-objects.json"))
        kinds = sorted(json.loads(file.read_text()))
        located = json.loads((file.parent / f"FloorPlan{number}-openable.json").read_text())
        receptacles = {}
        for name in sorted(located):  # "Drawer|x|y|z", "Sink|x|y|z|SinkBasin"
            first, *_, last = name.split("|")
            kind = last if last.endswith("Basin") else first
            if kind in fixed and kind.startswith(first):
                receptacles[name] = kind
        for kind in sorted(fixed.intersection(kinds) - set(receptacles.values())):
            for i in range(_COPIES.get(kind, 1)):
                name = f"{kind.removesuffix('Basin')}|+0{i}.00|+00.00|+00.00"
                if kind.endswith("Basin"):  # the package counts basins by the rest of their id
                    name += f"|{kind}"
                receptacles[name] = kind
        holdable = set().union(*(_fits()[kind] for kind in receptacles.values()))
        objects = [kind for kind in kinds if kind in holdable]
        rooms.append(_Room(number, receptacles, objects, _LAMP in kinds))
    return rooms


def _choices(rooms: list[_Room]) -> _Choices:
    """(type of task, whether the room is held out) → the rooms that allow it, with their goals."""
    table: _Choices = {}
    for room in rooms:
        for type_ in TASK_TYPES:
            if goals := _goals(room, type_):
                table.setdefault((type_, room.number in UNSEEN_ROOMS), []).append((room, goals))
    return table


def _make(choices: _Choices, split: str, i: int, seed: int) -> _Game:
    """Draw game i: the type goes round, then a room that allows it, a goal, and the places."""
    from alfworld.gen import goal_library

    type_ = TASK_TYPES[i % len(TASK_TYPES)]
    rng = random.Random(f"{seed}/{split}/{i}")
    room, goals = rng.choice(choices[type_, split == "valid_unseen"])
    target, goal = rng.choice(goals)
    places: dict[str, str] = {}
    for kind in room.objects:
        # The target starts neither where it shall end nor where it can be treated at once.
        spared = (goal, *TREATMENTS.get(type_, ())[1:2]) if kind == target else ()
        fewest = 2 if kind == target and type_ == "pick_two_obj_and_place" else 1
        for copy in range(rng.randint(fewest, _MOST_OF_A_KIND)):
            if kinds := room.places(kind, spared):
                places[f"{kind}|{copy + 1:02d}"] = rng.choice(room.of_kind(rng.choice(kinds)))
    if room.has_lamp and (stands := [r for k in _LAMP_STANDS for r in room.of_kind(k)]):
        places[f"{_LAMP}|01"] = rng.choice(stands)
    wording = rng.choice(goal_library.gdict[type_]["templates"]).format(
        obj=target.lower(), recep=goal.lower(), toggle=goal.lower(), mrecep=""
    )
    return _Game(room, type_, target, goal, wording, places, f"trial_{seed}_{i:05d}")


def _goals(room: _Room, type_: str) -> _Goals:
    """What this type of task can ask for in this room."""
    from alfworld.gen import constants

    if type_ == "look_at_obj_in_light":
        stands = set(_LAMP_STANDS).intersection(room.receptacles.values())
        return [(kind, _LAMP) for kind in room.objects if room.has_lamp and stands]
    kinds, station = room.objects, ""
    if type_ in TREATMENTS:
        verb, station, _ = TREATMENTS[type_]
        treatable = constants.VAL_ACTION_OBJECTS[f"{verb.capitalize()}able"]
        kinds = [k for k in kinds if k in treatable and station in room.receptacles.values()]
    return [
        (kind, goal)
        for kind in kinds
        for goal in room.places(kind, (station,))
        if room.places(kind, (station, goal))  # somewhere else to start from
    ]


def _write(game: _Game, out: Path, split: str) -> bool:
    """Write a game's three files; they appear together or not at all. False: it was there."""
    task = f"{game.type}-{game.target}-None-{game.goal}-{game.room.number}"
    folder = out / TREE / split / task / game.trial
    if folder.is_dir():
        return False
    data = alfworld_folder() / "data"
    problem = _problem(game)
    lamp = game.type == "look_at_obj_in_light"
    trajectory = {
        "task_type": game.type,
        "task_id": game.trial,
        "pddl_params": {
            "object_target": game.target,
            "object_sliced": False,
            "parent_target": "" if lamp else game.goal,
            "toggle_target": game.goal if lamp else "",
            "mrecep_target": "",  # "", not null: the package calls lower() on it
        },
        "scene": {"floor_plan": f"FloorPlan{game.room.number}", "scene_num": game.room.number},
    }
    engine = {
        "pddl_domain": (data / "alfred.pddl").read_text(),
        "grammar": (data / "alfred.twl2").read_text().replace("UNKNOWN GOAL", game.wording),
        "pddl_problem": problem,
        "solvable": True,
        "walkthrough": _walkthrough(game),
    }
    part = out / ".part"
    part.mkdir()
    (part / "traj_data.json").write_text(json.dumps(trajectory, indent=1))
    (part / "initial_state.pddl").write_text(problem)
    (part / "game.tw-pddl").write_text(json.dumps(engine))
    folder.parent.mkdir(parents=True, exist_ok=True)
    part.rename(folder)
    return True


def _problem(game: _Game) -> str:
    """The game as a PDDL problem of the package's domain."""
    from alfworld.gen import constants, goal_library

    room, kinds = game.room, {o: o.partition("|")[0] for o in game.places}
    # Each receptacle has a place of its own: one cannot "go to" what stands where one is already.
    # The agent starts at place 0, where there is none: the first text is about the whole room.
    place = {r: f"loc|{i}" for i, r in enumerate(room.receptacles, start=1)}
    objects = [("agent1", "agent"), ("loc|0", "location")]
    objects += [(location, "location") for location in place.values()]
    objects += [(r, "receptacle") for r in room.receptacles] + [(o, "object") for o in kinds]
    held_kinds, rooms_kinds = sorted(set(kinds.values())), sorted(set(room.receptacles.values()))
    objects += [(f"{k}Type", "rtype") for k in rooms_kinds]
    objects += [(f"{k}Type", "otype") for k in held_kinds]

    facts = ["= (total-cost) 0", "atLocation agent1 loc|0"]
    for r, kind in room.receptacles.items():
        facts += [f"receptacleType {r} {kind}Type", f"receptacleAtLocation {r} {place[r]}"]
        if kind in constants.OPENABLE_CLASS_SET:
            facts.append(f"openable {r}")
    facts += [
        f"canContain {r}Type {o}Type" for r in rooms_kinds for o in held_kinds if o in _fits()[r]
    ]
    for o, r in game.places.items():
        facts += [f"objectType {o} {kinds[o]}Type", f"inReceptacle {o} {r}"]
        facts += [f"objectAtLocation {o} {place[r]}"]
        facts += [f"{'toggleable' if kinds[o] == _LAMP else 'pickupable'} {o}"]
        if kinds[o] in constants.MOVABLE_RECEPTACLES_SET:
            facts.append(f"isReceptacleObject {o}")
        for property_ in ("Cleanable", "Heatable", "Coolable", "Sliceable"):
            if kinds[o] in constants.VAL_ACTION_OBJECTS[property_]:
                facts.append(f"{property_.lower()} {o}")
    goal = goal_library.gdict[game.type]["pddl"].replace("#", "-")
    head = "\n".join(f"        {name} - {type_}" for name, type_ in objects)
    init = "\n".join(f"        ({fact})" for fact in facts)
    return (
        f"(define (problem {game.trial})\n    (:domain alfred)\n"
        f"    (:objects\n{_mangled(head)}\n    )\n    (:init\n{_mangled(init)}\n    )\n"
        + goal.format(obj=game.target, recep=game.goal, toggle=game.goal, mrecep="")
    )


def _mangled(text: str) -> str:
    """The spelling of ids that PDDL allows and that the package reads back."""
    for mark, word in (("|", "bar"), ("+", "plus"), (".", "dot")):
        text = text.replace(mark, f"_{word}_")
    return re.sub(r"(?<=_)-(?=\d)", "_minus_", text)  # a sign, not the "-" before a type


def _walkthrough(game: _Game) -> list[str]:
    """Commands that solve the game for one who knows where everything is."""
    from alfworld.gen import constants

    ids = {x: _mangled(x).lower() for x in [*game.room.receptacles, *game.places]}
    shown = visible_names(ids.values())
    names = {x: shown[id_] for x, id_ in ids.items()}
    by_kind = {kind: r for r, kind in game.room.receptacles.items()}
    closed = {r for r, k in game.room.receptacles.items() if k in constants.OPENABLE_CLASS_SET}

    plan: list[str] = []
    at = ""

    def go(receptacle: str, open_it: bool = True) -> None:
        nonlocal at
        if receptacle != at:
            plan.append(f"go to {names[receptacle]}")
            at = receptacle
        if open_it and receptacle in closed:
            plan.append(f"open {names[receptacle]}")
            closed.remove(receptacle)

    targets = [o for o in game.places if o.partition("|")[0] == game.target]
    for target in targets[: 2 if game.type == "pick_two_obj_and_place" else 1]:
        source, name = game.places[target], names[target]
        go(source)
        plan.append(f"take {name} from {names[source]}")
        if game.type in TREATMENTS:
            verb, station, _ = TREATMENTS[game.type]
            go(by_kind[station], open_it=False)
            plan.append(f"{verb} {name} with {names[by_kind[station]]}")
        if game.goal == _LAMP:
            lamp = f"{_LAMP}|01"
            go(game.places[lamp])
            plan.append(f"use {names[lamp]}")
        else:
            go(by_kind[game.goal])
            plan.append(f"move {name} to {names[by_kind[game.goal]]}")
    return plan
