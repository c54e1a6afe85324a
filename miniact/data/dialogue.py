"""The one form between every log and a trajectory: who said, called or answered what, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
Notes = Any  # a Counter of what was left out, repaired or not imitated, by kind


class BadRow(Exception):
    """A conversation that cannot be converted. `reason` is counted, `detail` says where."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{detail}: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call. `arguments` is an object, or the text that should have been one."""

    name: str
    arguments: Row | str
    id: str | None = None


@dataclass(slots=True)
class Turn:
    """What one speaker did at once."""

    who: str  # "system" | "user" | "agent" | "tool"
    text: str = ""
    calls: list[Call] = field(default_factory=list)
    thought: str = ""  # reasoning, apart from the text
    answers: str | None = None  # of a tool: the id of the call
    aside: str = ""  # of the agent: why nobody shall imitate it
    menu: list[str] | None = None  # the actions that were possible, if the log lists them
    plain: bool = False  # the text is an action as it stands: no marks to look for


@dataclass(slots=True)
class Dialogue:
    """The turns of one episode, and the row that they came in, which holds outcome and split."""

    turns: list[Turn]
    row: Row
    id: str | None = None
    tools: list[Row] = field(default_factory=list)  # definitions, in OpenAI's form
