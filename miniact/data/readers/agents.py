"""Coding agents that write out their own events: OpenHands, SWE-agent."""

from __future__ import annotations

from typing import Any

from miniact.data.dialogue import BadRow, Call, Dialogue, Notes, Row, Turn
from miniact.data.messages import as_call, read_messages, text_of
from miniact.data.readers.rows import as_tools, own_id
from miniact.data.reply import as_arguments

# ---- OpenHands ------------------------------------------------------------------------------

_BOOKKEEPING = {"change_agent_state", "recall", "condensation", "null", "agent_state_changed"}
_NOT_ARGUMENTS = set(
    "thought confirmation_state security_risk hidden blocking is_static is_input cwd "
    "image_urls file_urls wait_for_response impl_source view_range_is_set final_thought".split()
)


def is_openhands(row: Any) -> bool:
    if not isinstance(row, dict) or "source" not in row:
        return False
    return "kind" in row or any(isinstance(row.get(k), str) for k in ("action", "observation"))


def has_openhands(row: Row) -> bool:
    """A row of an evaluation: its history holds events, or pairs of them."""
    history = row.get("history")
    if not isinstance(history, list) or not history:
        return False
    first = history[0]
    return is_openhands(first[0] if isinstance(first, list) and first else first)


def read_openhands_row(row: Row, notes: Notes) -> list[Dialogue]:
    if not isinstance(row.get("history"), list):
        raise BadRow("must be a list of events", "history")
    events = [e for x in row["history"] for e in (x if isinstance(x, list) else [x])]
    (dialogue,) = read_openhands(events, notes)
    if not any(t.who == "user" for t in dialogue.turns) and isinstance(row.get("instruction"), str):
        dialogue.turns.insert(0, Turn("user", row["instruction"]))
    dialogue.row, dialogue.id = row, own_id(row)
    return [dialogue]


def read_openhands(events: list[Any], notes: Notes) -> list[Dialogue]:
    """Actions of the agent are calls, observations their results, messages are messages."""
    dialogue = Dialogue([], {})
    for number, event in enumerate(events, start=1):
        where = f"event {number}"
        if not is_openhands(event):
            raise BadRow("no event of OpenHands", where)
        if "kind" in event:
            _new_event(event, dialogue, where, notes)
        else:
            _event(event, dialogue, where, notes)
    return [dialogue]


def _event(event: Row, dialogue: Dialogue, where: str, notes: Notes) -> None:
    args: Any = event.get("args")
    args = args if isinstance(args, dict) else {}
    kind = str(event.get("action") or event.get("observation"))
    if kind in _BOOKKEEPING:
        notes[f"left out: event {kind!r:.40}"] += 1
    elif kind == "system":
        dialogue.turns.append(Turn("system", text_of(args.get("content"), where)))
        dialogue.tools = as_tools(args["tools"], notes) if args.get("tools") else []
    elif kind == "message" and "action" in event:
        who = "agent" if event["source"] == "agent" else "user"
        text = args.get("content", event.get("message"))
        if args.get("image_urls"):
            notes["left out: image, sound or file"] += len(args["image_urls"])
        dialogue.turns += read_messages(
            [{"role": "human" if who == "user" else "ai", "content": text}], where, notes
        )
    elif "action" in event:
        if event["source"] != "agent":
            notes[f"left out: action {kind!r:.40} of the {event['source']!s:.20}"] += 1
            return
        thought = text_of(args.get("thought"), where)
        call = _native_call(event, where) or Call(
            str(kind),
            {k: v for k, v in args.items() if k not in _NOT_ARGUMENTS and v not in (None, "")},
        )
        call = Call(call.name, call.arguments, str(event.get("id")))
        dialogue.turns.append(Turn("agent", thought, [call]))
    else:
        text = event.get("content")
        text = text_of(text if text is not None else event.get("message"), where)
        cause = event.get("cause")
        dialogue.turns.append(Turn("tool", text, answers=None if cause is None else str(cause)))


def _native_call(event: Row, where: str) -> Call | None:
    """The call as the model wrote it, which OpenHands keeps beside its own action."""
    meta = event.get("tool_call_metadata")
    if not isinstance(meta, dict):
        return None
    response: Any = meta.get("model_response")
    try:
        calls = response["choices"][0]["message"]["tool_calls"]
        raw = next(c for c in calls if c.get("id") == meta.get("tool_call_id"))
    except (TypeError, KeyError, IndexError, AttributeError, StopIteration):
        return None
    return as_call(raw, where)


def _new_event(event: Row, dialogue: Dialogue, where: str, notes: Notes) -> None:
    """Events of OpenHands' later SDK, told apart by `kind`."""
    kind = event["kind"]
    if kind == "SystemPromptEvent":
        dialogue.turns += read_messages(
            [{"role": "system", "content": _parts(event.get("system_prompt"))}], where, notes
        )
        dialogue.tools = as_tools(event["tools"], notes) if event.get("tools") else []
    elif kind == "MessageEvent":
        message = event.get("llm_message")
        dialogue.turns += read_messages([message], where, notes)
    elif kind == "ActionEvent":
        message = {"role": "assistant", "content": event.get("thought")}
        message["reasoning_content"] = event.get("reasoning_content")
        (turn,) = read_messages([message], where, notes)
        call: Any = event.get("tool_call")
        if isinstance(call, dict):
            turn.calls = [as_call(call, where)]
        else:
            arguments = as_arguments(event.get("action"))
            turn.calls = [Call(str(event.get("tool_name")), arguments, event.get("tool_call_id"))]
        dialogue.turns.append(turn)
    elif kind in ("ObservationEvent", "AgentErrorEvent", "UserRejectObservation"):
        seen: Any = event.get("observation", event.get("error", event.get("rejection_reason")))
        if isinstance(seen, dict):
            seen = _parts(seen.get("content", seen.get("output")))
        message = {"role": "tool", "content": seen, "tool_call_id": event.get("tool_call_id")}
        dialogue.turns += read_messages([message], where, notes)
    else:
        notes[f"left out: event {kind!r:.40}"] += 1


def _parts(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


# ---- SWE-agent ----------------------------------------------------------------------------


def is_swe_agent(row: Row) -> bool:
    if isinstance(row.get("history"), list) and "trajectory" in row:
        return True
    steps = row.get("trajectory")
    return isinstance(steps, list) and bool(steps) and _is_step(steps[0])


def _is_step(step: Any) -> bool:
    return isinstance(step, dict) and "action" in step and "observation" in step


def read_swe_agent(row: Row, notes: Notes) -> list[Dialogue]:
    """The history with its thoughts and actions apart; without one, the steps."""
    history = row.get("history")
    turns = _history(history, notes) if history else _steps(row, notes)
    environment = row.get("instance_id") or row.get("environment")
    id_ = None if environment in (None, "main") else str(environment)
    return [Dialogue(turns, row, id_)]


def _history(history: Any, notes: Notes) -> list[Turn]:
    if not isinstance(history, list) or not all(isinstance(m, dict) for m in history):
        raise BadRow("must be a list of objects", "history")
    turns = []
    for i, message in enumerate(history):
        if message.get("message_type") == "demonstration":
            message = {**message, "is_demo": True}
        acts = message.get("role") == "assistant" and isinstance(message.get("action"), str)
        new = read_messages([message], f"history[{i}] of", notes)
        if acts and new and not new[0].calls and message["action"].strip():
            new[0].text, new[0].plain = message["action"].strip(), True
            new[0].thought = text_of(message.get("thought"), f"history[{i}].thought")
        turns += new
    return turns


def _steps(row: Row, notes: Notes) -> list[Turn]:
    """Without a history: the steps alone, and the task from the row or the first query."""
    task = next(
        (row[n] for n in ("problem_statement", "task", "query") if isinstance(row.get(n), str)),
        None,
    )
    turns = [Turn("user", task)] if task else []
    steps = row.get("trajectory")
    if not isinstance(steps, list):
        raise BadRow("must be a list of steps", "trajectory")
    for i, step in enumerate(steps):
        where = f"trajectory[{i}]"
        if not _is_step(step):
            raise BadRow("must hold action and observation", where)
        if not turns and isinstance(step.get("query"), list):
            turns = read_messages(step["query"], f"{where}.query", notes)
        action, thought = text_of(step["action"], where), text_of(step.get("thought"), where)
        if action.strip():
            turns.append(Turn("agent", action.strip(), thought=thought, plain=True))
        turns.append(Turn("user", text_of(step["observation"], where)))
    return turns
