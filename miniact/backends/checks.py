"""What `miniact doctor` finds out about a device: one small check each, alike for both backends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Check:
    """What was seen. ok: None where something is missing that not everybody needs."""

    name: str
    ok: bool | None
    seen: str
    remedy: str = ""
    seconds: float = 0.0


def tried(name: str, remedy: str, look: Callable[[], tuple[bool | None, str]]) -> Check:
    """look() tells whether it is well and what was seen; whatever it raises is a failed check."""
    start = time.perf_counter()
    try:
        ok, seen = look()
    except Exception as error:  # a doctor reports what is broken, he does not fall ill himself
        ok, seen = False, " ".join(f"{type(error).__name__}: {error}".split())[:300]
    ok = None if ok is None else bool(ok)  # numpy has bools of its own
    return Check(name, ok, seen, remedy if ok is False else "", time.perf_counter() - start)


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
