"""Expert trajectories: read, write, index, collect. JSON lines are the one format on disk.

One line is one trajectory (docs/logs.md documents every field):

    {"id": …, "task": …, "observations": [o_0, …], "actions": [a_0, …], "admissible": [[…], …] or
    absent,
     "success": true, "split": "train", "source": "…", "tools": [{…}, …] or absent,
     "compare": "exact" or "json", if not as words}

A file is streamed and indexed by byte offset, never read whole: 1 GB of logs costs a few megabytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from miniact import UserError
from miniact.data.containers import ENDINGS, read_items
from miniact.data.readers import recognise
from miniact.envs import Env
from miniact.runs.files import read_jsonl
from miniact.types import State, Step, Trajectory

FIELDS = ("id", "task", "observations", "actions", "admissible", "success", "split", "source")
COMPARE = ("words", "exact", "json")  # rules by which actions are compared
_HALF = re.compile("[\ud800-\udfff]")  # half of a character: JSON can spell it, UTF-8 cannot


def to_row(t: Trajectory) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": t.id,
        "task": t.task,
        "observations": [s.observation for s in t.steps],
        "actions": [s.action for s in t.steps],
    }
    if any(s.admissible is not None for s in t.steps):
        row["admissible"] = [list(s.admissible or ()) for s in t.steps]
    row |= {"success": t.success, "split": t.split, "source": t.source}
    row |= {"tools": list(t.tools)} if t.tools else {}
    row |= {"marked": True} if t.marked else {}
    return row if t.compare == "words" else {**row, "compare": t.compare}


def _is_text(value: Any) -> TypeGuard[str]:
    """A string that UTF-8 can hold; half an emoji could be neither written nor tokenized."""
    return isinstance(value, str) and not _HALF.search(value)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_text, values))


def _tools(tools: Any, where: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"{where}: tools must be a list of objects")
    if not _is_text(json.dumps(tools, ensure_ascii=False)):
        raise UserError(f"{where}: tools must be UTF-8")
    return tuple(tools)


def _rule(compare: Any, where: str) -> str:
    if compare not in COMPARE:
        raise UserError(
            f"{where}: compare is {compare!r:.40}, expected one of {', '.join(COMPARE)}"
        )
    return str(compare)


def from_row(row: Any, where: str, default_id: str = "") -> Trajectory:
    """Check one row and build its trajectory. Raises UserError naming `where` and the field."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object with {', '.join(FIELDS[1:4])}")

    def texts(name: str) -> list[str]:
        values = row.get(name)
        if values is None:
            raise UserError(f"{where}: no field {name!r}; has {', '.join(map(str, row)) or 'none'}")
        if not _are_texts(values):
            raise UserError(f"{where}: {name} must be a list of strings (UTF-8)")
        return values

    task = row.get("task")
    if not _is_text(task):
        raise UserError(f"{where}: task must be a string (UTF-8), got {task!r:.60}")
    observations, actions = texts("observations"), texts("actions")
    if not actions:
        raise UserError(f"{where}: actions is empty; expected at least one")
    if len(observations) not in (len(actions), len(actions) + 1):  # a final observation may follow
        raise UserError(f"{where}: {len(observations)} observations for {len(actions)} actions")
    admissible = row.get("admissible") or [None] * len(actions)
    if not isinstance(admissible, list) or not all(m is None or _are_texts(m) for m in admissible):
        raise UserError(f"{where}: admissible must be a list of lists of strings, one per action")
    if len(admissible) < len(actions):
        raise UserError(f"{where}: {len(admissible)} admissible lists for {len(actions)} actions")
    steps = tuple(
        Step(o, a, tuple(m) if m else None) for o, a, m in zip(observations, actions, admissible)
    )
    success, id_ = row.get("success"), row.get("id")
    if id_ is not None and not _is_text(str(id_)):
        raise UserError(f"{where}: id must be UTF-8")
    if success not in (None, True, False):  # 1 and 0 will do
        raise UserError(f"{where}: success must be true, false or absent, got {success!r:.60}")
    return Trajectory(
        id=default_id if id_ is None else str(id_),
        task=task,
        steps=steps,
        success=None if success is None else bool(success),
        split=str(row.get("split") or "train"),
        source=str(row.get("source") or ""),
        compare=_rule(row.get("compare") or "words", where),
        tools=_tools(row.get("tools") or [], where),
        marked=row.get("marked") is True,
    )


class TrajectoryFile:
    """A trajectories.jsonl, indexed: random access to trajectories and to single expert states.

    Only offsets, lengths and splits stay in memory. Trajectories that failed (success: false) are
    counted in `failed` and left out, because an expert's mistakes are nothing to imitate.
    """

    def __init__(self, path: Path, skip_bad_rows: bool = False) -> None:
        self.path, self.failed = path, 0
        offsets, lengths, splits, bad = [], [], [], list[int]()
        for number, offset, row in read_jsonl(path, bad if skip_bad_rows else None):
            try:
                trajectory = from_row(row, f"{path}:{number}", default_id=f"line-{number}")
            except UserError:
                if not skip_bad_rows:
                    raise
                bad.append(number)
                continue
            if trajectory.success is False:
                self.failed += 1
                continue
            offsets.append((offset, number))
            lengths.append(len(trajectory.steps))
            splits.append(trajectory.split)
        if bad:
            print(f"note: {path}: {len(bad)} rows skipped as malformed")
        if not offsets:
            raise UserError(
                f"{path}: no usable trajectory; expected JSON lines with successful ones"
            )
        self._offsets, self.splits = offsets, splits
        self.lengths = np.asarray(lengths)
        self._kept: dict[int, list[int]] = {}  # of trajectories with steps that are left out
        self.read = functools.lru_cache(maxsize=512)(self._read)

    def __len__(self) -> int:
        return len(self._offsets)

    def _read(self, index: int) -> Trajectory:
        offset, number = self._offsets[index]
        with self.path.open("rb") as file:
            file.seek(offset)
            row = json.loads(file.readline())
        return from_row(row, f"{self.path}:{number}", default_id=f"line-{number}")

    def leave_out(self, index: int, steps: Iterable[int]) -> None:
        """Count these steps of a trajectory no longer as states; they stay in later histories."""
        left_out = set(steps)
        self._kept[index] = [i for i in range(int(self.lengths[index])) if i not in left_out]
        self.lengths[index] = len(self._kept[index])

    def step(self, index: int, number: int) -> int:
        """Which step of a trajectory its state `number` is."""
        return self._kept[index][number] if index in self._kept else number

    def states(self, *splits: str) -> ExpertStates:
        return ExpertStates(self, [i for i, s in enumerate(self.splits) if s in splits])


class ExpertStates:
    """Every (s_i, a_i⁺) of some trajectories, by number. Nothing is loaded until asked for."""

    def __init__(self, file: TrajectoryFile, members: list[int]) -> None:
        self.file, self.members = file, members
        self._ends = np.cumsum(file.lengths[members]) if members else np.zeros(0, int)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> tuple[State, str]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        trajectory = self.file.read(self.members[which])
        number = index - (int(self._ends[which - 1]) if which else 0)
        step = self.file.step(self.members[which], number)
        return trajectory.state(step), trajectory.steps[step].action

    def batch(
        self, step: int, size: int, seed: int, neighbours: int = 1
    ) -> list[tuple[State, str]]:
        """Batch number `step`, a function of its arguments alone: no data position to save."""
        return [self[i] for i in shuffled(len(self), step, size, seed, self.runs(neighbours))]

    def runs(self, neighbours: int) -> tuple[int, ...]:
        """Where runs of so many neighbouring states end; 0: of all states of a trajectory."""
        return run_ends(self.file.lengths[self.members].tolist(), neighbours)


def run_ends(lengths: Sequence[int], neighbours: int) -> tuple[int, ...]:
    """Cut stretches of items into runs of so many; 0: not at all. Runs of 1 need no ends: ().

    >>> run_ends([5, 2], 2), run_ends([5, 2], 0), run_ends([5, 2], 1)
    ((2, 4, 5, 7), (5, 7), ())
    """
    if neighbours == 1:
        return ()
    ends, start = list[int](), 0
    for length in lengths:
        ends += [start + at for at in range(neighbours, length, neighbours)] if neighbours else []
        start += length
        ends.append(start)
    return tuple(ends)


def shuffled(n: int, step: int, size: int, seed: int, runs: tuple[int, ...] = ()) -> list[int]:
    """Batch number `step` of n items: every epoch in an order of its own, drawn from the seed.

    runs: where stretches end that stay together in it; without, each item stands alone.

    >>> sorted(shuffled(4, 0, 2, seed=7) + shuffled(4, 1, 2, seed=7))
    [0, 1, 2, 3]
    """
    places = range(step * size, (step + 1) * size)
    return [int(_order(n, seed, at // n, runs)[at % n]) for at in places]


@functools.lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int, runs: tuple[int, ...]) -> np.ndarray:
    random = np.random.default_rng([seed, epoch])
    if not runs:
        return random.permutation(n)
    stretches = np.split(np.arange(n), runs[:-1])
    return np.concatenate([stretches[i] for i in random.permutation(len(stretches))])


def collect(env: Env, split: str, n: int, seed: int, source: str) -> Iterator[Trajectory]:
    """Let the environment's expert play n tasks of a split; observation and action in one pass."""
    for task_id in env.tasks(split, n, seed):
        task, turn = env.reset(task_id)
        steps = []
        while not turn.done:
            action = env.expert_action()
            if action is None:
                break
            steps.append(Step(turn.observation, action, env.admissible()))
            turn = env.step(action)
        if steps:
            yield Trajectory(task_id, task, tuple(steps), turn.success, split, source)


def find_file(source: str) -> Path:
    """Where a source lies, if it is a file; "builtin:NAME" is one that ships with miniact."""
    kind, _, name = source.partition(":")
    return Path(__file__).parent / "samples" / name if kind == "builtin" else Path(source)


def import_rows(source: str, columns: dict[str, str], skip_bad_rows: bool) -> Iterator[Trajectory]:
    """Stream trajectories from a file (JSON lines, .json, .gz, .parquet) or a Hugging Face dataset.

    columns maps our field names to the source's where they differ, e.g. {"task": "instruction"}.
    """
    path = find_file(source)
    source = str(path) if source.startswith("builtin:") else source
    bad: list[int] = []
    rows: Iterable[tuple[str, Any]]
    if path.suffix == ".jsonl":
        lines = read_jsonl(path, bad if skip_bad_rows else None)
        rows = ((f"{path}:{n}", row) for n, _, row in lines)
    elif path.suffix != ".parquet" and (path.is_file() or path.suffix in ENDINGS):
        rows = _any_file(path, bad if skip_bad_rows else None)
    else:
        rows = ((f"{source} row {n}", row) for n, row in enumerate(_dataset(source), start=1))
    good = 0
    for number, (where, row) in enumerate(rows, start=1):
        if number == 1 and not columns:
            _check_is_no_log(row, source)
        try:
            if isinstance(row, dict) and columns:
                missing = [theirs for theirs in columns.values() if theirs not in row]
                if missing:
                    raise UserError(f"{where}: no column {missing[0]!r}; has {', '.join(row)}")
                row = {**row, **{ours: row[theirs] for ours, theirs in columns.items()}}
            yield from_row(row, where, default_id=f"row-{number}")
            good += 1
        except UserError:
            if not skip_bad_rows:
                raise
            bad.append(number)
    if not good:
        raise UserError(f"{source}: no usable row; expected one trajectory per row")
    if bad:
        print(f"note: {source}: {len(bad)} of {good + len(bad)} rows skipped as malformed")


def _any_file(path: Path, bad: list[int] | None) -> Iterator[tuple[str, Any]]:
    """(where, row) of a file that may be a list, a document or packed."""
    for where, number, item in read_items(path):
        try:
            yield where, item if isinstance(item, dict) else json.loads(item)
        except (ValueError, RecursionError):
            if bad is None:
                raise UserError(f"{where}: not a complete JSON value: {item[:40]!r}…") from None
            bad.append(number)


def _check_is_no_log(row: Any, source: str) -> None:
    """A log of some agent gets the way to import it rather than a missing field."""
    if isinstance(row, dict) and {"task", "actions"} & set(row):
        return
    if form := recognise(row):
        raise UserError(
            f"env.trajectories: {source} is a log ({form.about}), not trajectories; first run "
            f"miniact import {source} --out mine.jsonl"
        )


def _dataset(source: str) -> Iterable[dict]:
    import datasets

    try:
        if source.endswith(".parquet"):
            if not Path(source).is_file():
                raise FileNotFoundError(f"no file {source}")
            return datasets.load_dataset(
                "parquet", data_files=source, split="train", streaming=True
            )
        name, _, split = source.partition("@")
        return datasets.load_dataset(name, split=split or "train", streaming=True)
    except Exception as error:  # the library raises many kinds; all mean: not readable
        reason = " ".join(str(error).split())
        raise UserError(f"env.trajectories: cannot load {source!r}: {reason:.200}") from None


def hold_out(trajectories: Iterable[Trajectory], share: float) -> Iterator[Trajectory]:
    """Give a single-split source a held-out part. A task's hash decides: no task is in both."""
    for t in trajectories:
        yield replace(t, split="heldout" if is_held_out(t.task, share) else "train")


def is_held_out(task: str, share: float) -> bool:
    digest = hashlib.sha256(task.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share
