"""OpenAI chat messages, with and without tool calls → one row of trajectories.jsonl.

What becomes what is written at the head of importers_formats.py.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from miniact.data.formats import BadRow, Dialogue, Row, list_of_dicts, split_thought


def _text(message: Row, where: str, changes: Counter) -> str:
    """The text of a message whose content is a text, a list of parts or null."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise BadRow("must be a text, a list of parts or null", f"{where}.content")
    texts = [p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str)]
    if len(texts) < len(content):
        changes["left out: part without text"] += len(content) - len(texts)
    return "\n".join(texts)


def _messages(row: Row, changes: Counter) -> list[tuple[str, str, Row]]:
    """(role, text, message) of each message, the roles of all years brought to today's."""
    modern = {"developer": "system", "function": "tool"}
    found = []
    for i, message in enumerate(list_of_dicts(row, "messages")):
        role = modern.get(str(message.get("role")), message.get("role"))
        if role not in ("system", "user", "assistant", "tool"):
            raise BadRow("unknown role", f"messages[{i}].role {role!r:.20}")
        found.append((role, _text(message, f"messages[{i}]", changes), message))
    return found


def _heads(messages: list[tuple[str, str, Row]], system_prompt: bool) -> list[str]:
    return [text for role, text, _ in messages if role == "system" and text and system_prompt]


def from_chat(row: Row, changes: Counter, system_prompt: bool) -> Row:
    """{messages: [{role, content}]} where the assistant's text is its action."""
    messages, dialogue = _messages(row, changes), Dialogue(changes)
    for i, (role, text, message) in enumerate(messages):
        if message.get("tool_calls") or message.get("function_call"):
            raise BadRow("has tool calls; import with --format toolcalls", f"messages[{i}]")
        if role in ("user", "tool"):
            dialogue.see(text)
        elif role == "assistant":
            action, _ = split_thought(text)
            if not action:
                changes["left out: empty turn"] += 1
            elif message.get("weight") == 0:
                dialogue.aside(action, "weight is 0")
            else:
                dialogue.act(action)
    return dialogue.row(row, _own_id(row), _heads(messages, system_prompt))


def _own_id(row: Row) -> str | None:
    return None if row.get("id") is None else str(row["id"])


def from_tool_calls(row: Row, changes: Counter, system_prompt: bool) -> Row:
    """{messages: […]} where the assistant acts by tool calls (or by the older function_call)."""
    messages, dialogue = _messages(row, changes), Dialogue(changes)
    waiting = _Results([], changes)
    last_call = max((i for i, (_, _, m) in enumerate(messages) if _calls(m)), default=-1)
    for i, (role, text, message) in enumerate(messages):
        if role == "tool":
            waiting.add(message.get("tool_call_id"), text)
            continue
        if role == "system":
            continue
        for result in waiting.texts():
            dialogue.see(result)
        calls = _calls(message) if role == "assistant" else []
        waiting = _Results(calls, changes)
        if role == "user":
            dialogue.see(text if dialogue.task is None or not text else f"User: {text}")
        elif calls:
            _act(dialogue, calls, message, f"messages[{i}]")
        elif i > last_call:
            changes["left out: text after the last tool call"] += 1
        elif text := split_thought(text)[0]:
            dialogue.aside(text, "text between tool calls")
    return dialogue.row(row, _own_id(row), _heads(messages, system_prompt))


def _calls(message: Row) -> list[Row]:
    """[{id, function: {name, arguments}}, …] of a message, in today's form."""
    if message.get("function_call"):
        return [{"id": None, "function": message["function_call"]}]
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise BadRow("must be a list", f"tool_calls {calls!r:.20}")
    return calls


def _act(dialogue: Dialogue, calls: list[Row], message: Row, where: str) -> None:
    actions, broken = [], False
    for k, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("must hold function.name", f"{where}.tool_calls[{k}]")
        arguments = _arguments(function.get("arguments"))
        broken = broken or arguments is None
        actions.append({"name": function["name"], "arguments": arguments})
    if broken:
        text = "; ".join(f"{c['function']['name']} {c['function']['arguments']}" for c in calls)
        dialogue.aside(text, "arguments are no JSON object")
        return
    action = json.dumps(actions[0] if len(actions) == 1 else actions, ensure_ascii=False)
    if message.get("weight") == 0:
        dialogue.aside(action, "weight is 0")
        return
    if len(actions) > 1:
        dialogue.changes["parallel calls joined to one action"] += 1
    dialogue.act(action)


def _arguments(given: Any) -> Row | None:
    """The arguments of a call as an object; None if they are none. No text means no argument."""
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError):
            return None
    if given is None:
        return {}
    return given if isinstance(given, dict) else None


class _Results:
    """The results of one message's calls, put in the order of the calls by their ids."""

    def __init__(self, calls: list[Row], changes: Counter) -> None:
        self.calls, self.changes = calls, changes
        self.found: list[list[str]] = [[] for _ in calls]
        self.strays: list[str] = []

    def add(self, call_id: Any, text: str) -> None:
        same = [k for k, call in enumerate(self.calls) if call.get("id") == call_id]
        free = [k for k, found in enumerate(self.found) if not found]
        if same and call_id is not None:
            self.found[same[0]].append(text)
        elif call_id is None and free:  # before ids existed, results came in order
            self.found[free[0]].append(text)
        else:
            self.changes["repaired: result without its call, kept in place"] += 1
            self.strays.append(text)

    def texts(self) -> list[str]:
        self.changes.update(
            {"repaired: call without a result": n} if (n := self.found.count([])) else {}
        )
        named = len(self.calls) > 1  # several results must tell whose they are
        texts = [
            f"{call['function']['name']}: {text}" if named else text
            for call, found in zip(self.calls, self.found)
            for text in found
        ]
        return texts + self.strays
