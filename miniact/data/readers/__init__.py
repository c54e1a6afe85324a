"""The formats that are read: how each is recognised, and who reads it. docs/logs.md says more.

A reader turns one row into dialogues; where a file is one dialogue (`whole`), all of its rows.

rows.py       rows that hold whole dialogues as messages, under any of their names
sharegpt.py   {conversations: [{from, value}]}: ShareGPT, ETO, AgentTraj-L
sessions.py   sessions of coding agents, one event a line: Claude Code, Codex
agents.py     agents that write out their own events: OpenHands, SWE-agent
traces.py     traces of model calls: OpenTelemetry GenAI, Langfuse, LangSmith
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from miniact.data.dialogue import Dialogue, Notes, Row
from miniact.data.messages import ROLES
from miniact.data.readers import agents, rows, sessions, sharegpt, traces


@dataclass(frozen=True)
class Format:
    """One kind of log."""

    name: str
    about: str
    fits: Callable[[Row], bool]
    read: Callable[[Any, Notes], list[Dialogue]]
    whole: bool = False  # all rows of a file are read at once
    open: bool = False  # rows may have fields of their users: those that are not read are counted


def _has_messages(row: Row) -> bool:
    return rows.find_messages(row)[0] is not None


def _types(row: Row) -> set[str]:
    """The types of messages and of their parts in a row: what tells vendors apart."""
    found: set[str] = set()
    messages = rows.find_messages(row)[1]
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict):
            parts = message.get("content")
            for part in [message, *(parts if isinstance(parts, list) else [])]:
                if isinstance(part, dict) and isinstance(part.get("type"), str):
                    found.add(part["type"])
    return found


def _is_langchain(row: Row) -> bool:
    messages = rows.find_messages(row)[1]
    first = messages[0] if isinstance(messages, list) and messages else None
    if not isinstance(first, dict) or "role" in first:
        return False
    return "lc" in first or first.get("type") in ("human", "ai", "system", "tool")


def _is_anthropic(row: Row) -> bool:
    return bool(_types(row) & {"tool_use", "tool_result", "thinking"})


def _is_responses(row: Row) -> bool:
    items = {"function_call", "function_call_output", "input_text", "output_text"}
    return bool(_types(row) & items) and not _is_langchain(row)


def _is_tool_calls(row: Row) -> bool:
    messages = rows.find_messages(row)[1]
    return isinstance(messages, list) and any(
        isinstance(m, dict) and (m.get("tool_calls") or m.get("function_call")) for m in messages
    )


def _is_sharegpt(row: Row) -> bool:
    turns = rows.find_messages(row)[1]
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and "from" in first


def _is_eto(row: Row) -> bool:
    turns = row.get("conversations")
    return isinstance(turns, list) and sharegpt.acts_by_marks(turns)


def _is_completion(row: Row) -> bool:
    return "prompt" in row and any(a in row for a in rows.ANSWERS)


def _is_message(row: Row) -> bool:
    speaker = row.get("role") or (row.get("type") if "content" in row else None)
    return isinstance(speaker, str) and speaker in ROLES


FORMATS = {
    form.name: form
    for form in (
        Format("codex", "Codex sessions", sessions.is_codex, sessions.read_codex, whole=True),
        Format(
            "claude-code",
            "Claude Code sessions",
            sessions.is_claude_code,
            sessions.read_claude_code,
            whole=True,
        ),
        Format("openhands", "OpenHands events", agents.is_openhands, agents.read_openhands, True),
        Format(
            "openhands-rows",
            "OpenHands evaluation rows",
            agents.has_openhands,
            agents.read_openhands_row,
        ),
        Format("trace", "OpenTelemetry, Langfuse, LangSmith", traces.is_trace, traces.read_trace),
        Format("swe-agent", "SWE-agent .traj", agents.is_swe_agent, agents.read_swe_agent),
        Format(
            "tau",
            "τ-bench results",
            lambda r: "traj" in r or "simulations" in r,
            rows.read_tau,
            open=True,
        ),
        Format("completion", "prompt + completion", _is_completion, rows.read_row, open=True),
        Format(
            "eto", "ETO", lambda r: _is_eto(r) and "item_id" not in r, sharegpt.read_eto, open=True
        ),
        Format("agenttraj", "AgentTraj-L", _is_eto, sharegpt.read_eto, open=True),
        Format("sharegpt", "ShareGPT", _is_sharegpt, sharegpt.read_sharegpt, open=True),
        Format("langchain", "LangChain, LangGraph", _is_langchain, rows.read_row, open=True),
        Format("anthropic", "Anthropic messages", _is_anthropic, rows.read_row, open=True),
        Format("responses", "OpenAI Responses items", _is_responses, rows.read_row, open=True),
        Format("toolcalls", "chat with tool calls", _is_tool_calls, rows.read_row, open=True),
        Format("chat", "OpenAI chat messages", _has_messages, rows.read_row, open=True),
        Format("messages", "one message a line", _is_message, rows.read_lines, whole=True),
    )
}


def recognise(row: Any) -> Format | None:
    """The first format that a row fits, or None."""
    if isinstance(row, list):
        row = as_row(row)
    if not isinstance(row, dict):
        return None
    return next((form for form in FORMATS.values() if form.fits(row)), None)


def as_row(item: Any) -> Any:
    """A bare list of messages or events as the row that it would be elsewhere."""
    if not isinstance(item, list):
        return item
    return {"history" if item and agents.is_openhands(item[0]) else "messages": item}


def shape(row: Any) -> str:
    """What was recognised in a row that no format fits, for an error.

    >>> shape({"a": 1, "b": 2})[:35]
    'an object with the fields a, b; rea'
    """
    if not isinstance(row, dict):
        return f"a {'list' if isinstance(row, list) else type(row).__name__}"
    if {"task", "actions", "observations"} <= set(row):
        return "trajectories of miniact, which need no import: set env.trajectories to this file"
    about = ", ".join(form.about for form in FORMATS.values())
    fields = ", ".join(map(str, row))[:80]
    return f"an object with the fields {fields}; read are {about} (docs/logs.md)"
