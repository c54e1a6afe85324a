"""Traces of model calls: OpenTelemetry GenAI, Langfuse, LangSmith.

Each model call holds the dialogue up to it. All are read, in order of time; the importer then keeps
the longest of those that repeat each other, so that a trace becomes one dialogue for each agent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from miniact.data.dialogue import Dialogue, Notes, Row, Turn
from miniact.data.messages import parsed, read_messages
from miniact.data.readers.rows import as_tools, find_messages, read_answer

_MARKS = ("gen_ai.", "llm.", "traceloop.")
_PROMPTS = (  # attribute of the messages that a model got, attribute of those that it gave
    ("gen_ai.input.messages", "gen_ai.output.messages"),
    ("gen_ai.prompt", "gen_ai.completion"),
    ("llm.input_messages", "llm.output_messages"),
)
_EVENT = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message|gen_ai\.(choice)")


def is_trace(row: Row) -> bool:
    """A span, an observation of Langfuse, a run of LangSmith, or a document of them."""
    if "resourceSpans" in row or "scopeSpans" in row or _is_run(row):
        return True
    if isinstance(row.get("observations"), list) and any(
        isinstance(o, dict) and "type" in o for o in row["observations"]
    ):
        return True
    return isinstance(row.get("attributes"), (dict, list)) and (
        any(str(name).startswith(_MARKS) for name in _attributes(row))
        or any(name in row for name in ("spanId", "span_id", "traceId", "trace_id", "context"))
    )


def _is_run(row: Row) -> bool:
    known = {"GENERATION", "SPAN", "EVENT", "AGENT", "TOOL", "CHAIN"}
    if str(row.get("type")) in known and ("input" in row or "output" in row):
        return True
    return isinstance(row.get("run_type"), str) and ("inputs" in row or "outputs" in row)


def read_trace(row: Row, notes: Notes) -> list[Dialogue]:
    """The dialogue of every model call in a row, the earliest first."""
    calls = sorted(_calls(row, notes), key=lambda call: str(call[0]))
    return [dialogue for _, dialogue in calls]


def _calls(row: Row, notes: Notes) -> Iterator[tuple[Any, Dialogue]]:
    """(time, dialogue) of every model call."""
    for name in ("resourceSpans", "scopeSpans", "spans"):
        if isinstance(row.get(name), list):
            for inner in row[name]:
                if isinstance(inner, dict):
                    yield from _calls(inner, notes)
            return
    if isinstance(row.get("observations"), list):
        for inner in row["observations"]:
            if isinstance(inner, dict):
                about: Row = {k: row[k] for k in ("scores", "metadata", "tags") if k in row}
                yield from _calls({**about, "traceId": row.get("id"), **inner}, notes)
        return
    time = next((row[n] for n in _TIMES if row.get(n) is not None), "")
    dialogue = _span(row, notes) if "attributes" in row else _run(row, notes)
    if dialogue is None:
        notes["left out: span that is no model call"] += 1
    else:
        for child in _list(row.get("child_runs")):
            yield from _calls(child, notes)
        yield time, dialogue


_TIMES = ("startTimeUnixNano", "start_time", "startTime", "start_time_unix_nano", "timestamp")


def _trace_id(row: Row) -> str | None:
    names = ("traceId", "trace_id", "trace", "id", "run_id")
    context = row.get("context")
    row = {**row, **context} if isinstance(context, dict) else row
    return next((str(row[n]) for n in names if isinstance(row.get(n), (str, int))), None)


def _scored(row: Row) -> Row:
    """Langfuse's scores, a list of {name, value}, as fields: what an outcome is looked for in."""
    scores = row.get("scores")
    if not isinstance(scores, list):
        return row
    named = {str(s["name"]): s.get("value") for s in scores if isinstance(s, dict) and "name" in s}
    return {**row, "scores": named}


# ---- Langfuse and LangSmith -----------------------------------------------------------------


def _run(row: Row, notes: Notes) -> Dialogue | None:
    if row.get("type", "GENERATION") != "GENERATION" or row.get("run_type", "llm") != "llm":
        return None
    given = row.get("input", row.get("inputs"))
    answer = row.get("output", row.get("outputs"))
    if isinstance(given, str) and given.lstrip().startswith(("[", "{")):
        given = parsed(given, "input")
    tools: list[Row] = []
    if isinstance(given, dict):
        tools = as_tools(given["tools"], notes) if given.get("tools") else []
        found = find_messages(given)[1]
        given = [given] if found is None and "role" in given else found
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], list):
        given = given[0]  # LangChain: one list for each prompt
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if given is None:
        return None
    turns = read_messages(given, "input", notes)
    if answer not in (None, "", [], {}):
        turns += read_answer(answer, "output", notes)
    return Dialogue(turns, _scored(row), _trace_id(row), tools)


# ---- OpenTelemetry --------------------------------------------------------------------------


def _span(row: Row, notes: Notes) -> Dialogue | None:
    attributes = _attributes(row)
    turns: list[Turn] = []
    for given, answer in _PROMPTS:
        if (messages := _messages(attributes, given)) is None:
            continue
        turns = read_messages(messages, given, notes)
        if more := _messages(attributes, answer):
            turns += read_messages([{"role": "assistant", **m} for m in more], answer, notes)
        break
    else:
        turns = _from_events(row, notes)
    if not turns:
        return None
    if isinstance(system := attributes.get("gen_ai.system_instructions"), (str, list)):
        text = parsed(str(system), "system") if str(system).startswith("[") else system
        turns = read_messages([{"role": "system", "content": text}], "system", notes) + turns
    definitions = attributes.get("gen_ai.tool.definitions") or attributes.get("gen_ai.tools")
    tools = as_tools(definitions, notes) if definitions else []
    return Dialogue(turns, row, _trace_id(row), tools)


def _messages(attributes: Row, name: str) -> list[Row] | None:
    """Messages as one JSON text, as a list, or spread over numbered attributes."""
    value = attributes.get(name)
    if isinstance(value, str):
        value = parsed(value, name)
    if value is None:
        value = _unspread(attributes, name + ".")
    if not isinstance(value, list) or not value:
        return None
    return [
        m["message"] if isinstance(m.get("message"), dict) else m
        for m in value
        if isinstance(m, dict)
    ]


def _unspread(attributes: Row, prefix: str) -> Any:
    """{"p.0.role": "user", "p.0.tool_calls.0.name": …} → [{"role": "user", "tool_calls": […]}]."""
    tree: Row = {}
    for name, value in attributes.items():
        if name.startswith(prefix):
            *path, last = name[len(prefix) :].split(".")
            node = tree
            for key in path:
                node = node.setdefault(key, {})
                if not isinstance(node, dict):
                    break
            else:
                node[last] = value
    return _listed(tree)


def _listed(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if tree and all(key.isdigit() for key in tree):
        return [_listed(tree[key]) for key in sorted(tree, key=int)]
    inner = {key: _listed(value) for key, value in tree.items()}
    return inner["tool_call"] if set(inner) == {"tool_call"} else inner


def _from_events(row: Row, notes: Notes) -> list[Turn]:
    messages = []
    for event in _list(row.get("events")):
        found = _EVENT.fullmatch(str(event.get("name"))) if isinstance(event, dict) else None
        if found:
            body = _attributes(event)
            if isinstance(body.get("message"), str):
                body = parsed(body["message"], "events")
            body = body.get("message", body) if isinstance(body, dict) else {}
            role = found[1] or "assistant"
            messages.append({**{k: v for k, v in body.items() if "." not in k}, "role": role})
    return read_messages(messages, "events", notes) if messages else []


def _attributes(row: Row) -> Row:
    """Attributes as a plain object; OTLP writes a list of {key, value: {stringValue: …}}."""
    given = row.get("attributes")
    if isinstance(given, dict):
        return given
    pairs = [a for a in _list(given) if isinstance(a, dict) and isinstance(a.get("key"), str)]
    return {a["key"]: _otlp(a.get("value")) for a in pairs}


def _otlp(value: Any) -> Any:
    if not isinstance(value, dict) or len(value) != 1:
        return value
    ((kind, inner),) = value.items()
    if kind == "arrayValue" and isinstance(inner, dict):
        return [_otlp(v) for v in _list(inner.get("values"))]
    if kind == "kvlistValue" and isinstance(inner, dict):
        pairs = [p for p in _list(inner.get("values")) if isinstance(p, dict)]
        return {str(p.get("key")): _otlp(p.get("value")) for p in pairs}
    return inner


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []
