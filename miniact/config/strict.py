"""Frozen dataclasses from nested mappings, strictly: what is unknown or of a wrong type is refused.

It knows no key of miniact. A section may have a method `check(where)` for rules of its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
import typing
from collections.abc import Iterable
from dataclasses import field
from typing import Any

from miniact import UserError

BOUNDS = {  # as in key(…, low=0): what holds then, and what a value is that breaks it
    "low": (operator.ge, "small, expected at least"),
    "high": (operator.le, "large, expected at most"),
    "below": (operator.lt, "large, expected under"),
}


def key(default: Any, doc: str, *, choices: tuple = (), **bounds: float) -> Any:
    """A dataclass field that knows its meaning, its bounds (see BOUNDS) and its choices."""
    metadata = {"doc": doc, "choices": choices, **bounds}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def suggestion(name: Any, known: Iterable[str]) -> str:
    """For a message on an unknown name: the one that was meant, or all there are."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _coerce(value: Any, declared: Any, where: str) -> Any:
    """Bring a YAML or command-line value to its declared type, or say what was expected."""
    if declared == bool | None:  # a switch that may be left to the program
        if value is None or str(value).lower() == "auto":
            return None
        declared = bool
    try:
        if declared is bool:
            if isinstance(value, bool):
                return value
            return {"true": True, "false": False}[str(value).lower()]
        if declared is int and not isinstance(value, bool):
            number = value if isinstance(value, int) else float(value)
            if number != int(number):
                raise ValueError
            return int(number)
        if declared is float and not isinstance(value, bool):
            return float(value)  # PyYAML reads 1e-5 as a string
        if declared is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        if declared is list and isinstance(value, (str, list, tuple)):
            items = value.split(",") if isinstance(value, str) else value
            return [str(item).strip() for item in items if item != ""]
        if declared is dict and isinstance(value, dict):
            return dict(value)
    except (KeyError, ValueError, TypeError, OverflowError):
        pass
    raise UserError(f"{where}: expected {declared.__name__}, got {value!r}")


def _check(value: Any, meta: typing.Mapping, where: str) -> None:
    if meta["choices"] and value not in meta["choices"]:
        raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, meta['choices']))}")
    for name, (holds, broken) in BOUNDS.items():
        if name in meta and not holds(value, meta[name]):
            raise UserError(f"{where}: {value} is too {broken} {meta[name]}")
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise UserError(f"{where}: {value} is not a finite number")


def build(cls: type, data: Any, where: str) -> Any:
    """Build dataclass `cls` from nested mappings; refuse unknown keys with a suggestion."""
    if not isinstance(data, dict):
        raise UserError(f"{where or 'config'}: expected a section of keys, got {data!r}")
    declared = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for name, value in data.items():
        path = f"{where}.{name}" if where else str(name)
        if name not in fields:
            raise UserError(f"{path}: unknown key; {suggestion(name, fields)}")
        if dataclasses.is_dataclass(declared[name]):
            values[name] = build(declared[name], value, path)  # type: ignore[arg-type]
        else:
            values[name] = _coerce(value, declared[name], path)
            _check(values[name], fields[name].metadata, path)
    section = cls(**values)
    if hasattr(section, "check"):
        section.check(where)
    return section
