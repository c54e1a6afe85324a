"""Published and own agent logs → trajectories: `miniact import`.

    eto         ETO: one JSON list of {id, conversations: [{from: human|gpt, value}]}
    agenttraj   AgentTraj-L: the same with item_id, and `loss` per turn
    chat        OpenAI chat messages, {"messages": […]} a line; the assistant's text is the action
    toolcalls   the same with tool calls; a call, as JSON, is the action

`data/formats.py` documents which turns become task, observations and actions. Any format may
come as one JSON list or as JSON lines. Files are read a megabyte at a time and converted row by
row, so memory is bounded by the largest conversation, not by the file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from miniact import UserError
from miniact.data.chat import from_chat, from_tool_calls
from miniact.data.formats import BadRow, Row, from_turns
from miniact.data.trajectories import from_row, hold_out, to_row
from miniact.runs.files import write_jsonl
from miniact.types import Trajectory

CHUNK = 1 << 20  # bytes read at once
FORMATS: dict[str, Callable[[Row, Counter, bool], Row]] = {
    "eto": from_turns,
    "agenttraj": from_turns,
    "chat": from_chat,
    "toolcalls": from_tool_calls,
}
PUBLISHED = ("eto", "agenttraj")
MAX_ITEM = 64 << 20  # bytes of one conversation; beyond that a quote or a bracket must be missing
_BOM = b"\xef\xbb\xbf"
# A whole string, or the start of one that the buffer does not hold whole, or a bracket.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)
_OPENING, _CLOSING, _QUOTE = b"[{", b"]}", ord('"')


def import_log(
    file: Path,
    form: str,
    out: Path,
    *,
    heldout_share: float = 0.0,
    system_prompt: bool = False,
    skip_bad_rows: bool = False,
) -> Counter:
    """Convert `file` to trajectories in `out`, which appears only when it is complete.

    form: one of FORMATS. heldout_share: share of the tasks that get split "heldout", by the hash of
    the task; 0 keeps the log's own `split` fields, or else "train". system_prompt: put system
    messages at the head of the task. Returns what was kept, changed and dropped, by reason.

    Raises UserError naming file, line or item, and field of a bad row (unless skip_bad_rows counts
    them), and if nothing usable is left.
    """
    if not 0 <= heldout_share < 1:
        raise UserError(f"--heldout-share: {heldout_share} is not in [0, 1)")
    if file.resolve() == out.resolve():
        raise UserError(f"{out}: is the log itself; choose another --out")
    counts: Counter = Counter(kept=0)
    found = read_log(file, form, counts, system_prompt, skip_bad_rows)
    if heldout_share:
        found = hold_out(found, heldout_share)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(out, map(to_row, found))
    return counts


def read_log(
    file: Path, form: str, counts: Counter, system_prompt: bool = False, skip_bad_rows: bool = False
) -> Iterator[Trajectory]:
    """Stream the trajectories of a log. `counts` is updated as they come."""
    if form not in FORMATS:
        raise UserError(f"--format {form}: expected one of {', '.join(FORMATS)}")
    for where, number, text in split_items(file):
        changes: Counter = Counter()
        try:
            row = _converted(text, form, changes, system_prompt)
            row["source"] = f"{form} {file.name}"
            if form in PUBLISHED and row["id"] is not None:
                row["id"] = f"{row['id']}/{number}"  # theirs repeat
            trajectory = from_row(row, where, default_id=f"{file.stem}-{number}")
        except BadRow as error:
            if not skip_bad_rows:
                raise UserError(f"{where}: {error}; mend it or pass --skip-bad-rows") from None
            counts[f"dropped: {error.reason}"] += 1
            continue
        except UserError:  # raised by from_row, which says where
            if not skip_bad_rows:
                raise
            counts["dropped: text that is not UTF-8, or no list of texts"] += 1
            continue
        counts["kept"] += 1
        counts["actions"] += len(trajectory.steps)
        counts.update(changes)
        yield trajectory
    if not counts["kept"]:
        raise UserError(f"{file}: no usable conversation in format {form} ({describe(counts)})")


def _converted(text: bytes, form: str, changes: Counter, system_prompt: bool) -> Row:
    """One item of a log → one row of trajectories.jsonl. Raises BadRow."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise BadRow("not a complete JSON value", f"{text[:40]!r}… ({problem:.80})") from None
    if not isinstance(row, dict):
        raise BadRow("a conversation must be a JSON object", f"got {text[:40]!r}")
    converted = FORMATS[form](row, changes, system_prompt)
    if not converted["actions"]:
        raise BadRow("no action to imitate", describe(changes) or "no turn of an agent")
    return converted


def describe(counts: Counter) -> str:
    """What was kept, changed and dropped, in one line.

    >>> describe(Counter({"kept": 2, "actions": 9, "dropped: no action to imitate": 1}))
    'kept 2, actions 9, dropped: no action to imitate 1'
    """
    return ", ".join(f"{reason} {n}" for reason, n in counts.items())


# ---- the file, item by item ----------------------------------------------------------------


def split_items(file: Path) -> Iterator[tuple[str, int, bytes]]:
    """Stream (where, number, text) of every item of a JSON list, or of every line of JSON lines."""
    try:
        handle = file.open("rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); expected a log") from None
    with handle:
        head = handle.read(CHUNK).removeprefix(_BOM).lstrip()
        if head.startswith(b"["):
            for number, text in enumerate(_items(file, handle, head[1:]), start=1):
                yield f"{file} item {number}", number, text
            return
        handle.seek(0)
        number = 0
        while line := handle.readline(MAX_ITEM):
            number += 1
            if len(line) == MAX_ITEM:
                raise UserError(f"{file}:{number}: line of more than {MAX_ITEM >> 20} MiB")
            if line := line.removeprefix(_BOM).strip():
                yield f"{file}:{number}", number, line


def _items(file: Path, handle: BinaryIO, buffer: bytes) -> Iterator[bytes]:
    """The items of a top-level JSON list, whose "[" is already read.

    Only strings and brackets are looked at, so a damaged item ends where it seems to end, and the
    next one can be read. Whatever stands between two objects is an item too, and a bad one.
    """
    depth = start = at = 0  # start: of what was not yielded yet; at: where to look on
    while True:
        for match in _TOKEN.finditer(buffer, at):
            byte, at = buffer[match.start()], match.end()
            if byte == _QUOTE:
                if at - match.start() == 1:
                    at = match.start()  # it goes on in the next chunk
                    break
            elif byte in _OPENING:
                if depth == 0 and (between := _bare(buffer[start : match.start()])):
                    yield between
                start = match.start() if depth == 0 else start
                depth += 1
            elif depth == 0:  # the end of the list
                if between := _bare(buffer[start : match.start()]):
                    yield between
                _check_rest(file, buffer[match.end() :] + handle.read(CHUNK))
                return
            else:
                depth -= 1
                if depth == 0:
                    yield buffer[start:at]
                    start = at
        chunk = handle.read(CHUNK)
        if not chunk:
            yield buffer[start:]  # cut short: no complete JSON value
            return
        buffer, at, start = buffer[start:] + chunk, at - start, 0
        if len(buffer) > MAX_ITEM + CHUNK:
            raise UserError(
                f"{file}: an item starting with {buffer[:40]!r} does not end within "
                f"{MAX_ITEM >> 20} MiB; is a quote or a bracket missing?"
            )


def _bare(text: bytes) -> bytes:
    return text.strip(b" \t\r\n,")


def _check_rest(file: Path, rest: bytes) -> None:
    if rest.strip():
        raise UserError(f"{file}: {rest.strip()[:40]!r}… after the end of the list")
