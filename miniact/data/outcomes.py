"""What a log says about success: `--success FIELD[>X]`, or a field that says it unambiguously."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from miniact import UserError
from miniact.data.dialogue import Row

# fields that hold an outcome in real logs, the plainest first
NAMES = (
    "success is_success successful succeeded solved is_solved resolved is_resolved passed win won "
    "is_win is_correct correct reward final_reward total_reward score outcome verdict label target "
    "loss_weight weight"
).split()
# these often mean something else: they count only where their values can be read
_WEAK = {"outcome", "verdict", "label", "target", "loss_weight", "weight", "score", "correct"}
_GOOD = set(
    "success succeeded successful pass passed win won solved resolved correct true yes".split()
)
_BAD = set(
    "failure fail failed error lost loss unsolved unresolved incorrect wrong false no".split()
)
_RULE = re.compile(r"\s*([\w.\-/@ ]+?)\s*(?:(>=|>|<=|<|=)\s*(.+?))?\s*")
_DEPTH = 3

Rule = Callable[[Row], "bool | None"]


def named_rule(text: str) -> Rule:
    """FIELD, FIELD>X, FIELD>=X, FIELD<X, FIELD=X → whether a row succeeded; None where it lacks it.

    >>> [named_rule("info.reward>0.5")({"info": {"reward": r}}) for r in (0.5, 1.0)]
    [False, True]
    """
    match = _RULE.fullmatch(text)
    if not match:
        raise UserError(
            f"--success {text!r}: expected FIELD or FIELD>NUMBER, dots for inner fields"
        )
    path, sign, value = match[1], match[2], match[3]
    if sign in (">", ">=", "<", "<="):
        try:
            limit = float(value)
        except ValueError:
            raise UserError(f"--success {text!r}: {value!r} is no number") from None

    def rule(row: Row) -> bool | None:
        given = lookup(row, path)
        if given is None:
            return None
        if sign == "=":
            return str(given).lower() == value.lower()
        if not sign:
            verdict = read_value(given)
            if verdict is None:
                raise UserError(
                    f"--success {path}: {given!r:.40} is neither yes nor no; "
                    f"say {path}>X or {path}=X"
                )
            return verdict
        number = _number(given)
        if number is None:
            raise UserError(f"--success {text}: {path} is {given!r:.40}, expected a number")
        return {
            ">": number > limit,
            ">=": number >= limit,
            "<": number < limit,
            "<=": number <= limit,
        }[sign]

    return rule


def lookup(row: Any, path: str) -> Any:
    """The value at a dotted path; a field whose own name has dots is found too."""
    if not isinstance(row, dict):
        return None
    if path in row:
        return row[path]
    head, _, rest = path.partition(".")
    return lookup(row.get(head), rest) if rest else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def read_value(value: Any) -> bool | None:
    """A value as success or failure, if it can mean only that.

    >>> [read_value(v) for v in (True, 0, 1.0, -1, "failure", 0.5, "shopping")]
    [True, False, True, False, False, None, None]
    """
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _GOOD or word in _BAD:
            return word in _GOOD
    number = _number(value)
    return number == 1 if number in (-1, 0, 1) else None


def _candidates(row: Any, before: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every field that may be an outcome."""
    for name, value in row.items() if isinstance(row, dict) else ():
        if not isinstance(name, str):
            continue
        if name.lower() in NAMES and isinstance(value, (bool, int, float, str)):
            yield before + name, value
        elif isinstance(value, dict) and depth > 1:
            yield from _candidates(value, f"{before}{name}.", depth - 1)


@dataclass
class _Column:
    rows: int = 0
    failed: int = 0
    unreadable: int = 0
    example: Any = None
    low: float = math.inf
    high: float = -math.inf
    at_most_zero: int = 0


@dataclass
class Outcomes:
    """Gathers what the rows of a file say, to choose the field that tells success."""

    columns: dict[str, _Column] = field(default_factory=dict)
    conflicts: set[frozenset[str]] = field(default_factory=set)

    def add(self, row: Row) -> bool | None:
        """Note the fields of one row. Returns whether all that can be read say success."""
        verdicts = {}
        for path, value in _candidates(row):
            column = self.columns.setdefault(path, _Column())
            column.rows += 1
            verdict = read_value(value)
            if verdict is None:
                column.unreadable += 1
                column.example = value
            else:
                verdicts[path] = verdict
                column.failed += not verdict
            if (number := _number(value)) is not None:
                column.low, column.high = min(column.low, number), max(column.high, number)
                column.at_most_zero += number <= 0
        for a, b in combinations(verdicts, 2):
            if verdicts[a] != verdicts[b]:
                self.conflicts.add(frozenset((a, b)))
        return all(verdicts.values()) if verdicts else None

    def choose(self, where: str) -> str | None:
        """The field to use, or None if there is none. Raises UserError if it is not clear."""
        paths = sorted(self.columns, key=lambda p: (p.count("."), NAMES.index(_last(p))))
        readable = [p for p in paths if not self.columns[p].unreadable]
        if "success" in readable:
            return "success"
        plain = [p for p in readable if _last(p) not in _WEAK] or readable
        if plain and not any(conflict <= set(plain) for conflict in self.conflicts):
            return plain[0]
        graded = [p for p in paths if p not in readable and _last(p) not in _WEAK]
        graded += [
            p
            for p in paths
            if p not in readable
            and self.columns[p].low < math.inf
            and p not in graded
            and _last(p) == "score"
        ]
        if not readable and not graded:
            return None
        listed = "; ".join(self._described(p) for p in [*readable, *graded])
        raise UserError(
            f"{where}: which field tells success is not clear: {listed}. Name it: --success FIELD "
            "or FIELD>X (--success none: every row is imitated)"
        )

    def _described(self, path: str) -> str:
        column = self.columns[path]
        if not column.unreadable:
            return f"{path} marks {column.failed} of {column.rows} rows as failed"
        if column.low == math.inf:
            return f"{path} is neither yes nor no ({column.example!r:.30})"
        return (
            f"{path} is graded, {column.low:g} to {column.high:g}: {path}>0 marks "
            f"{column.at_most_zero} of {column.rows} rows as failed"
        )


def _last(path: str) -> str:
    return path.rpartition(".")[2].lower()
