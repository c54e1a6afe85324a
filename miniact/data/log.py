"""Files of logs → dialogues: each file's format is found, its rows are read one by one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from miniact import UserError
from miniact.data import containers
from miniact.data.dialogue import BadRow, Dialogue, Row
from miniact.data.readers import FORMATS, Format, as_row, recognise, shape

FIRST = 50  # rows that are looked at to find the format


@dataclass(frozen=True)
class Source:
    """A dialogue and where it comes from. `notes`: what its reader left out, counted."""

    dialogue: Dialogue
    form: Format
    file: Path
    where: str
    number: int
    notes: Counter


class Log:
    """Some files, of one kind of log or of several.

    form: the name of a format for all of them, or None to find each one's. skip_bad_rows: count
    what cannot be read in `counts` rather than stop with a UserError.
    """

    def __init__(self, files: list[Path], form: str | None, skip_bad_rows: bool) -> None:
        if form is not None and form not in FORMATS:
            raise UserError(f"--format {form}: expected one of {', '.join(FORMATS)}")
        self.files, self.form, self.skip_bad_rows = files, form, skip_bad_rows

    def dialogues(self, counts: Counter) -> Iterator[Source]:
        """Every dialogue of every file."""
        for file in self.files:
            try:
                form = self.find_format(file)
            except UserError:
                if not self.skip_bad_rows or len(self.files) == 1:
                    raise
                counts["dropped: file of no known kind"] += 1
                continue
            yield from self._dialogues(file, form, counts)

    def find_format(self, file: Path) -> Format:
        """The format of a file, by its first rows."""
        if self.form is not None:
            return FORMATS[self.form]
        first = None
        for _, _, item in islice(containers.read_items(file), FIRST):
            try:
                row = item if isinstance(item, dict) else json.loads(item)
            except (ValueError, RecursionError):
                continue
            if form := recognise(row):
                return form
            first = row if first is None else first
        if first is None:
            return FORMATS["chat"]  # empty or damaged: reading it will say so
        raise UserError(f"{file}: {shape(first)}")

    def _dialogues(self, file: Path, form: Format, counts: Counter) -> Iterator[Source]:
        rows = []
        for where, number, item in containers.read_items(file):
            try:
                row = _parsed(item)
                if form.whole:
                    rows.append(row)
                    continue
                yield from _read(form, row, file, where, number)
            except BadRow as error:
                self.bad(where, error, counts)
        try:
            if rows:
                yield from _read(form, rows, file, str(file), 1)
        except BadRow as error:
            self.bad(str(file), error, counts)

    def bad(self, where: str, error: BadRow, counts: Counter) -> None:
        """Stop at a bad row, or count it."""
        if not self.skip_bad_rows:
            raise UserError(f"{where}: {error}; mend it or pass --skip-bad-rows") from None
        counts[f"dropped: {error.reason}"] += 1


def _read(form: Format, row: Any, file: Path, where: str, number: int) -> Iterator[Source]:
    notes: Counter = Counter()
    for k, dialogue in enumerate(form.read(row, notes)):
        at = number + k if form.whole else number
        yield Source(dialogue, form, file, where, at, notes)
        notes = Counter()  # what the reader counted goes with the first dialogue


def _parsed(item: bytes | dict) -> Row:
    """One item of a log as an object. Raises BadRow."""
    if isinstance(item, dict):
        return item
    try:
        row = as_row(json.loads(item))
    except (ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise BadRow("not a complete JSON value", f"{item[:40]!r}… ({problem:.80})") from None
    if not isinstance(row, dict):
        raise BadRow("a conversation must be a JSON object", f"got {item[:40]!r}")
    return row
