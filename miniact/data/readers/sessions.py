"""Sessions of coding agents: one event a line, one file a session (Claude Code, Codex)."""

from __future__ import annotations

import json
from typing import Any

from miniact.data.dialogue import BadRow, Dialogue, Notes, Row, Turn
from miniact.data.messages import join, read_messages

_CODEX = {"session_meta", "response_item", "event_msg", "turn_context", "compacted"}
# what Codex writes in a user's name before the user says anything
_CODEX_CONTEXT = ("<environment_context>", "<user_instructions>", "# AGENTS.md instructions")


# ---- Codex -----------------------------------------------------------------------------------


def is_codex(row: Row) -> bool:
    return str(row.get("type")) in _CODEX and isinstance(row.get("payload"), dict)


def read_codex(rows: list[Row], notes: Notes) -> list[Dialogue]:
    """The response items of a rollout file, in order; its events repeat them and are left out."""
    items: list[Row] = []
    meta: Row = {}
    for number, row in enumerate(rows, start=1):
        kind, payload = str(row.get("type")), row.get("payload")
        if kind not in _CODEX or not isinstance(payload, dict):
            raise BadRow("no line of a Codex session", f"line {number}, type {kind!r:.40}")
        if kind == "response_item":
            if payload.get("type") == "ghost_snapshot":
                continue
            items.append(_plain_output(payload))
        elif kind == "session_meta":
            meta = meta or payload
        elif kind == "compacted":
            notes["left out: a summary of what the session forgot"] += 1
        else:
            notes[f"left out: line of type {kind}"] += 1
    turns = read_messages(items, "payload", notes)
    for turn in turns:
        if turn.who == "user" and turn.text.lstrip().startswith(_CODEX_CONTEXT):
            turn.who = "system"
    if isinstance(meta.get("instructions"), str) and meta["instructions"]:
        turns.insert(0, Turn("system", meta["instructions"]))
    id_ = meta.get("id")
    return [Dialogue(turns, meta, None if id_ is None else str(id_))]


def _plain_output(item: Row) -> Row:
    """Older sessions wrap the text of a result: {"output": "…", "metadata": …} as a text."""
    output = item.get("output")
    if isinstance(output, str) and output.startswith('{"output":'):
        try:
            inner = json.loads(output)
        except (ValueError, RecursionError):
            return item
        if isinstance(inner, dict) and isinstance(inner.get("output"), str):
            return {**item, "output": inner["output"]}
    return item


# ---- Claude Code -------------------------------------------------------------------------------


def is_claude_code(row: Row) -> bool:
    return ("sessionId" in row or "parentUuid" in row or "leafUuid" in row) and "type" in row


def read_claude_code(rows: list[Row], notes: Notes) -> list[Dialogue]:
    """The main line of each session in the file, and each sub-agent as a dialogue of its own."""
    lines: dict[tuple[str, str], _Line] = {}
    for number, row in enumerate(rows, start=1):
        kind = row.get("type")
        if kind not in ("user", "assistant"):
            notes[f"left out: line of type {kind!r:.30}"] += 1
            continue
        message = row.get("message")
        if not isinstance(message, dict):
            raise BadRow("must be an object", f"line {number}, message {message!r:.40}")
        agent = row.get("agentId") or "sub-agent" if row.get("isSidechain") else ""
        key = (str(row.get("sessionId")), str(agent))
        line = lines.setdefault(key, _Line(notes))
        line.add(row, message, f"line {number}")
    return [
        Dialogue(line.turns, {}, "/".join(part for part in key if part and part != "None") or None)
        for key, line in lines.items()
    ]


class _Line:
    """One line of talk. A user who goes back and asks anew leaves a branch behind."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.turns: list[Turn] = []
        self.ends: dict[str, int] = {}  # uuid → how many turns there were after it
        self.replies: dict[str, Turn] = {}  # a reply's id → its turn: replies come in pieces

    def add(self, row: Row, message: Row, where: str) -> None:
        if row.get("isMeta"):
            self.notes["left out: note of the program in the user's name"] += 1
            self._remember(row)
            return
        new = read_messages([{"role": row["type"], **message}], where, self.notes)
        parent = row.get("parentUuid")
        if any(turn.who == "user" for turn in new) and parent in self.ends:
            self._go_back(self.ends[parent])
        reply = message.get("id")
        if row["type"] == "assistant" and reply is not None and new:
            begun: Any = self.replies.get(str(reply))
            if begun is not None and begun in self.turns and new[0].who == "agent":
                join(begun, new.pop(0))
            elif new[0].who == "agent":
                self.replies[str(reply)] = new[0]
        self.turns += new
        self._remember(row)

    def _go_back(self, end: int) -> None:
        left = self.turns[end:]
        if any(turn.who == "agent" for turn in left):
            self.notes["left out: turn of a branch that the user went back from"] += len(left)
            del self.turns[end:]

    def _remember(self, row: Row) -> None:
        if isinstance(row.get("uuid"), str):
            self.ends[row["uuid"]] = len(self.turns)
