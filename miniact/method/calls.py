"""Tool calls as text: the JSON of an action, and the forms in which models write them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from miniact.data.dialogue import Call


def calls_of(action: str) -> list[Call]:
    """The calls that an action is, in order; [] for one that is text.

    >>> calls_of('{"name": "look", "arguments": {}}')
    [Call(name='look', arguments={}, id=None)]
    """
    if not action.lstrip().startswith(("{", "[")):
        return []
    try:
        value = json.loads(action)
    except (ValueError, RecursionError):
        return []
    rows = value if isinstance(value, list) else [value]
    if not rows or not all(isinstance(r, dict) and set(r) == {"name", "arguments"} for r in rows):
        return []
    if not all(isinstance(r["name"], str) and isinstance(r["arguments"], dict) for r in rows):
        return []
    return [Call(r["name"], r["arguments"]) for r in rows]


def deep(change: Callable[[str], str], value: Any) -> Any:
    """The same value with every text in it changed, names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(name)): deep(change, v) for name, v in value.items()}
    return [deep(change, v) for v in value] if isinstance(value, (list, tuple)) else value


def hermes(calls: Sequence[Call]) -> str:
    rows = ({"name": call.name, "arguments": call.arguments} for call in calls)
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    return "\n".join(f"<tool_call>\n{line}\n</tool_call>" for line in lines)


def json_rows(text: str) -> list[dict[str, Any]]:
    """The objects at the start of a text: one after the other, or in one list."""
    rows: list[dict[str, Any]] = []
    decoder, at = json.JSONDecoder(), 0
    while (start := re.compile(r"[\s,;]*(?=[\[{])").match(text, at)) is not None:
        try:
            value, at = decoder.raw_decode(text, start.end())
        except (ValueError, RecursionError):
            break
        rows += [row for row in (value if isinstance(value, list) else [value])
                 if isinstance(row, dict)]  # fmt: skip
    return rows


def typed(arguments: Any) -> dict[str, Any]:
    """Arguments that were written as bare text: numbers, lists and objects are what they look."""
    values = {}
    for name, text in arguments.items():
        try:
            values[name] = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            values[name] = text
    return values
