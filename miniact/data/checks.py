"""What only the whole log shows: repeated rows, openings, one task in all rows, and so on.

`Survey` reads every dialogue before any is converted; `Findings` looks at what came out. Both keep
a few numbers for each turn, never the texts.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from miniact.data.dialogue import Dialogue, Turn
from miniact.data.folding import is_ok, opens_with_rules
from miniact.data.outcomes import Outcomes
from miniact.data.reply import the_block
from miniact.types import Trajectory

_OPENING = 8  # turns at the start that are compared over the rows


def _numbers() -> array:
    return array("q")


@dataclass
class Survey:
    """What must be known of all rows before the first can be converted."""

    rows: int = 0
    calls: int = 0  # dialogues with tool calls
    ignored_rewards: int = 0  # rows of ETO, whose rewards are no outcomes
    rules: int = 0  # dialogues that open with rules and an "OK"
    outcomes: Outcomes = field(default_factory=Outcomes)
    replies: int = 0  # texts of agents
    blocks: int = 0  # of them, with one code block and prose beside it
    _ends: array = field(default_factory=_numbers)  # of each row, its turns as a number
    _starts: array = field(default_factory=_numbers)  # of each shorter beginning of a row
    _first: list[array] = field(default_factory=lambda: [_numbers() for _ in range(_OPENING)])
    _rules_text: array = field(default_factory=_numbers)

    def add(self, dialogue: Dialogue, success: bool | None) -> None:
        self.rows += 1
        self.calls += any(turn.calls for turn in dialogue.turns)
        turns = [turn for turn in dialogue.turns if turn.who != "system"]
        if opens_with_rules(turns):
            self.rules += 1
            self._rules_text.append(hash(turns[0].text))
        for turn in turns:
            if turn.who == "agent" and turn.text and not turn.plain:
                self.replies += 1
                block = the_block(turn.text)
                self.blocks += bool(block and block[1])
        numbers = prefix_numbers(turns)
        for k, number in enumerate(numbers[:_OPENING]):
            self._first[k].append(number)
        self._ends.append(_key(numbers, success))
        for number in numbers[:-1]:
            self._starts.append(number * 2)
            if success:
                self._starts.append(number * 2 + 1)

    @property
    def shared_rules(self) -> bool:
        """Whether most rows open with the same rules and an "OK", so that they are no task."""
        return self.rows > 1 and 2 * _most_common(self._rules_text) > self.rows

    def opening(self) -> tuple[int, int]:
        """(how many turns at the start are the same, in how many rows), for most of the rows."""
        best = (0, 0)
        for k, numbers in enumerate(self._first, start=1):
            if (n := _most_common(numbers)) * 2 > self.rows > 2:
                best = (k, n)
        return best

    def repeats(self) -> Repeats:
        return Repeats(np.unique(np.asarray(self._starts, dtype=np.int64)))


class Repeats:
    """Tells rows that another row repeats and goes on from, and rows that came before."""

    def __init__(self, starts: np.ndarray) -> None:
        self._starts, self._seen = starts, set[int]()

    def kind(self, dialogue: Dialogue, success: bool | None) -> str:
        """ "start": a longer row holds all of this one; "same": a row before is equal; or ""."""
        numbers = prefix_numbers([turn for turn in dialogue.turns if turn.who != "system"])
        key = _key(numbers, success)
        at = int(np.searchsorted(self._starts, key))
        if at < len(self._starts) and self._starts[at] == key:
            return "start"
        if key in self._seen:
            return "same"
        self._seen.add(key)
        return ""


def prefix_numbers(turns: list[Turn]) -> list[int]:
    """One number for each beginning of a dialogue: equal texts and calls, equal numbers."""
    number, numbers = 0, []
    for turn in turns:
        calls = tuple((call.name, str(call.arguments)) for call in turn.calls)
        number = hash((number, turn.who, turn.text.strip(), calls)) >> 2  # two bits to spare
        numbers.append(number)
    return numbers


def _key(numbers: list[int], success: bool | None) -> int:
    """A success is only repeated by a success; what failed or is unknown, by anything longer."""
    return (numbers[-1] if numbers else 0) * 2 + (success is True)


def _most_common(numbers: array) -> int:
    if not numbers:
        return 0
    return int(np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)[1].max())


@dataclass
class Findings:
    """Looks at the trajectories on their way out."""

    rows: int = 0
    failed: int = 0
    unknown: int = 0  # rows whose outcome is not known
    heldout: int = 0
    acknowledged: int = 0  # rows whose first action is an "OK."
    blind: int = 0  # actions whose observation is images alone
    actions: int = 0
    tasks: Counter = field(default_factory=Counter)
    example: str = ""
    compare: set[str] = field(default_factory=set)  # rules by which actions are compared

    def add(self, t: Trajectory) -> None:
        self.rows += 1
        self.failed += t.success is False
        self.unknown += t.success is None
        self.heldout += t.split != "train"
        self.acknowledged += is_ok(t.steps[0].action)
        self.compare.add(t.compare)
        self.actions += len(t.steps)
        self.blind += sum(is_blind(step.observation) for step in t.steps)
        self.tasks[hash(t.task)] += 1
        if not self.example or self.tasks[hash(t.task)] > 1:
            self.example = t.task

    def lines(self, survey: Survey, code_block: bool) -> list[str]:
        """One line for each finding, with its count and the option that mends it."""
        found = []
        same = max(self.tasks.values(), default=0)
        if self.rows > 2 and 2 * same > self.rows:
            found.append(
                f"the task is the same in {same} of {self.rows} rows ({_short(self.example)})"
                + _advice(survey)
            )
        if self.acknowledged:
            found.append(
                f'the first action is an "OK" in {self.acknowledged} of {self.rows} rows: if rules '
                "come before the task, --opening 2 leaves both out"
            )
        if not code_block and 2 * survey.blocks > survey.replies > 1 and not survey.calls:
            found.append(
                f"{survey.blocks} of {survey.replies} replies are prose and one code block: "
                "--code-block takes the block as the action and the prose as its thought"
            )
        if self.blind:
            found.append(
                f"{self.blind} of {self.actions} actions follow an image that no text describes: "
                "a text model cannot learn them (--no-images leaves such rows out)"
            )
        if survey.ignored_rewards:
            found.append(
                f"{survey.ignored_rewards} rows of ETO have a reward, which is not taken for "
                "success: its authors imitate them all (--success reward>X)"
            )
        if self.failed == self.rows:
            found.append(f"all {self.rows} rows failed: nothing is left to imitate")
        elif self.unknown == self.rows:
            found.append(
                f"no field tells success: all {self.rows} rows are imitated (--success FIELD[>X])"
            )
        return found


def _advice(survey: Survey) -> str:
    turns, rows = survey.opening()
    if turns == 1:
        return "; if it holds rules or examples, the hold-out by task has nothing to hold out"
    if turns:
        return (
            f"; the first {turns} turns are the same in {rows}: if they are rules or examples, "
            f"--opening {turns} leaves them out"
        )
    return ""


def is_blind(observation: str) -> bool:
    """Whether all that was seen is an image."""
    return "[image]" in observation and not observation.replace("[image]", "").strip()


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 50 else text[:49] + "…")
