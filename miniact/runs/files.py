"""Files that appear whole or not at all, and JSON lines, the one format of everything long."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from miniact import UserError

Built = TypeVar("Built")
_HALF = re.compile("[\ud800-\udfff]")  # half of a character: JSON can spell it, UTF-8 cannot


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Yield a file to fill; a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it takes its name only when complete and on the disk."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        readable = part.stat().st_mode & 0o666  # as umask lets it; safetensors writes 0600
        for file in part.rglob("*"):
            if file.is_file():
                file.chmod(readable)
                with file.open("r+b") as handle:  # Windows syncs only what may be written
                    os.fsync(handle.fileno())
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text)


def write_asked(out: Path, text: str) -> None:
    """Write a file to where the user asked for it; UserError where that cannot be."""
    try:
        write_text(out, text)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from None


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _number(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None  # a browser's JSON knows no NaN


def _parse(text: str | bytes) -> Any:
    return json.loads(text, parse_float=_number, parse_constant=lambda name: None)


def read_json(file: Path) -> dict[str, Any]:
    try:
        value = _parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({error}); expected JSON as miniact writes it") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected an object, got {str(value)[:60]}")
    return value


# ---- JSON lines --------------------------------------------------------------------------------


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def jsonl_writer(path: Path) -> Iterator[Callable[[Iterable[dict[str, Any]]], None]]:
    """Yield what writes rows to a file that appears only when all is well at the end."""
    with whole_file(path) as file:
        yield lambda rows: file.writelines(map(_line, rows))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows to a file that appears only when it is complete."""
    with jsonl_writer(path) as write:
        write(rows)


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(map(_line, rows))


def read_jsonl(
    path: Path, bad: list[int] | None = None, remedy: str = "mend it or pass --skip-bad-rows"
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Stream (line number, byte offset, row).

    bad: takes the numbers of damaged lines, which are left out; None: the first one is a UserError.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); expected a .jsonl file"
        ) from None
    offset = 0
    with file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = _parse(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield number, offset, row
                elif bad is None:
                    raise UserError(
                        f"{path}:{number}: expected a JSON object, got {line[:40]!r}…; {remedy}"
                    )
                else:
                    bad.append(number)
            offset += len(line)


def read_objects(
    path: Path, build: Callable[[dict[str, Any]], Built], skip_bad_rows: bool = False
) -> list[Built]:
    """Every row as `build` makes it. UserError naming file, line and `build`'s ValueError."""
    built: list[Built] = []
    bad: list[int] = []
    for number, _, row in read_jsonl(path, bad if skip_bad_rows else None):
        try:
            built.append(build(row))
        except ValueError as error:
            if not skip_bad_rows:
                raise UserError(f"{path}:{number}: {error}") from None
            bad.append(number)
    if bad:
        print(f"note: {path}: {len(bad)} rows skipped as malformed")
    return built


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _HALF.search(value)


def _are_turns(value: Any) -> bool:
    couples = isinstance(value, list) and all(isinstance(v, list) and len(v) == 2 for v in value)
    return couples and all(_is_text(text) for couple in value for text in couple)


_IS: dict[str, Callable[[Any], bool]] = {
    "text": _is_text,
    "a list of texts": lambda v: isinstance(v, list) and all(map(_is_text, v)),
    "[[observation, action], …]": _are_turns,
    "[[action, outcome], …]": _are_turns,
    "a count": lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0,
    "a list of objects": lambda v: (
        isinstance(v, list) and all(isinstance(x, dict) and not _HALF.search(_line(x)) for x in v)
    ),
    "an object": lambda v: isinstance(v, dict) and not _HALF.search(_line(v)),
}


def field(row: dict[str, Any], name: str, expected: str, default: Any = ...) -> Any:
    """A row's field. ValueError where it is not `expected`; null is absent if there is a default.

    >>> field({"task": 3}, "task", "text")
    Traceback (most recent call last):
    ValueError: task: expected text, got 3
    """
    value = row.get(name)
    if value is None and default is not ...:
        return default
    if name not in row:
        raise ValueError(f"no field {name!r}; expected {expected}")
    if not _IS[expected](value):
        raise ValueError(f"{name}: expected {expected}, got {value!r:.60}")
    return value


def keep_rows(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Leave only some rows of a file that may not exist, or may end in half a line after a kill."""
    if path.is_file():
        write_jsonl(path, [row for _, _, row in read_jsonl(path, []) if keep(row)])
