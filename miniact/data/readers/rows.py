"""Rows that hold whole dialogues as messages, under any of the names that tools give them."""

from __future__ import annotations

from typing import Any

from miniact.data.dialogue import BadRow, Dialogue, Notes, Row, Turn
from miniact.data.messages import as_parts, parsed, read_messages

# where the messages of a row lie: field, or field of a field
PLACES = tuple(
    tuple(name.split("."))
    for name in "messages conversations conversation dialogue dialog traj trajectory history items "
    "turns contents values.messages channel_values.messages request.messages inputs.messages "
    "kwargs.messages state.messages body.messages input prompt request.input".split()
)
ANSWERS = ("completion", "response", "output", "outputs", "choices")  # what followed them
_TOOLS = ("tools", "functions", "request.tools", "tool_definitions", "metadata.tools")


def read_row(row: Row, notes: Notes) -> list[Dialogue]:
    """The dialogue of one row: its messages, and the reply if that stands apart."""
    name, messages = find_messages(row)
    if isinstance(row.get("intermediate_steps"), list):
        messages = _executor_messages(messages, row["intermediate_steps"])
    if name is None:
        if "role" in row:
            raise BadRow("one message, expected one conversation: {'messages': […]}", "its keys")
        fields = ", ".join(map(str, row))[:60] or "no fields"
        raise BadRow("no field 'messages'", f"has {fields}")
    asks = name.endswith(("prompt", "input"))  # what followed stands elsewhere
    if asks and isinstance(messages, str) and not messages.lstrip().startswith("["):
        messages = [{"role": "user", "content": messages}]  # a prompt as plain text
    turns = read_messages(messages, name, notes)
    answer = next((a for a in ANSWERS if row.get(a) not in (None, [], {}, "")), None)
    if answer and name != answer and (asks or not turns or turns[-1].who != "agent"):
        turns += read_answer(row[answer], answer, notes)
    elif answer and name != answer:
        notes[f"left out: field {answer!r} of a row"] += 1
    if isinstance(row.get("system"), (str, list)):  # Anthropic keeps it apart
        text = row["system"]
        turns = read_messages([{"role": "system", "content": text}], "system", notes) + turns
    elif isinstance(row.get("instructions"), str) and row["instructions"]:  # Responses
        turns.insert(0, Turn("system", row["instructions"]))
    return [Dialogue(turns, row, own_id(row), read_tools(row, notes))]


def _executor_messages(asked: Any, steps: list) -> list[Any]:
    """LangChain's executor: an input, and steps of [{tool, tool_input, log}, observation]."""
    messages: list[Any] = list(asked) if isinstance(asked, list) else []
    messages += [{"role": "user", "content": asked}] if isinstance(asked, str) else []
    for i, step in enumerate(steps):
        if not (isinstance(step, list) and len(step) == 2 and isinstance(step[0], dict)):
            raise BadRow("must be [action, observation]", f"intermediate_steps[{i}]")
        action = step[0].get("kwargs", step[0])
        given = action.get("tool_input") if isinstance(action, dict) else None
        arguments = given if isinstance(given, dict) else {"input": given}
        call = {"name": action.get("tool"), "args": arguments}
        log = str(action.get("log") or "").partition("\nAction:")[0]
        messages.append({"role": "assistant", "content": log, "tool_calls": [call]})
        messages.append({"role": "tool", "content": as_parts(step[1])})
    return messages


def find_messages(row: Row) -> tuple[str | None, Any]:
    """(field, its value) of the first place that holds messages, or (None, None)."""
    for path in PLACES:
        value: Any = row
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None and (path[-1] != "input" or isinstance(value, (list, str))):
            return ".".join(path), value
    return None, None


def read_answer(answer: Any, where: str, notes: Notes) -> list[Turn]:
    """A reply that stands apart: a text, a message, messages, or an API's whole response."""
    if isinstance(answer, str) and not answer.lstrip().startswith(("[{", "{")):
        return read_messages([{"role": "assistant", "content": answer}], where, notes)
    if isinstance(answer, str):
        try:
            answer = parsed(answer, where)
        except BadRow:
            return read_messages([{"role": "assistant", "content": answer}], where, notes)
    if isinstance(answer, dict):
        for name in ("choices", "output", "messages", "generations"):
            if isinstance(answer.get(name), list):
                return read_answer(answer[name], f"{where}.{name}", notes)
        if isinstance(answer.get("message"), dict):
            answer = answer["message"]
        answer = [answer]
    if isinstance(answer, list) and answer and isinstance(answer[0], list):
        answer = answer[0]  # LangChain: one list for each prompt
    if isinstance(answer, list) and len(answer) > 1 and _are_choices(answer):
        notes["left out: second answer to the same prompt"] += len(answer) - 1
        answer = answer[:1]
    if isinstance(answer, list):
        answer = [
            m["message"] if isinstance(m, dict) and isinstance(m.get("message"), dict) else m
            for m in answer
        ]
        answer = [
            {"role": "assistant", **m}
            if isinstance(m, dict) and not {"role", "type", "from", "lc"} & set(m)
            else m
            for m in answer
        ]
    return read_messages(answer, where, notes)


def _are_choices(answers: list) -> bool:
    return all(isinstance(a, dict) and "message" in a for a in answers)


def own_id(row: Row) -> str | None:
    names = ("id", "traj_id", "instance_id", "task_id", "session_id", "trace_id", "example_id")
    return next((str(row[n]) for n in names if isinstance(row.get(n), (str, int))), None)


# ---- tools ---------------------------------------------------------------------------------


def read_tools(row: Row, notes: Notes) -> list[Row]:
    """The tool definitions of a row in OpenAI's form; what is none is counted."""
    for place in _TOOLS:
        value: Any = row
        for name in place.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value:
            return as_tools(value, notes)
    return []


def as_tools(given: Any, notes: Notes) -> list[Row]:
    if isinstance(given, str):
        try:
            given = parsed(given, "tools")
        except BadRow:
            given = [given]
    tools = []
    for tool in given if isinstance(given, list) else [given]:
        if isinstance(tool, str):
            try:
                tool = parsed(tool, "tools")
            except BadRow:
                tool = None
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            notes["left out: tool definition of an unknown form"] += 1
            continue
        names = ("parameters", "input_schema", "inputSchema", "args_schema")
        schema: Row = next((function[n] for n in names if isinstance(function.get(n), dict)), {})
        tools.append(
            {
                "type": "function",
                "function": {
                    "name": function["name"],
                    "description": str(function.get("description") or ""),
                    "parameters": schema,
                },
            }
        )
    return tools


# ---- rows with more than one dialogue --------------------------------------------------------


def read_tau(row: Row, notes: Notes) -> list[Dialogue]:
    """τ-bench: {traj, reward}; τ²-bench: {simulations: [{messages, reward_info}]}."""
    if "simulations" not in row:
        return read_row(row, notes)
    simulations = row["simulations"]
    if not isinstance(simulations, list) or not all(isinstance(s, dict) for s in simulations):
        raise BadRow("must be a list of objects", "simulations")
    found = []
    for i, simulation in enumerate(simulations):
        messages = simulation.get("messages")
        if isinstance(messages, list):  # the simulated user has tools of its own
            messages = [m for m in messages if not _of_the_user(m)]
            notes["left out: tool call of the simulated user"] += len(simulation["messages"]) - len(
                messages
            )
        turns = read_messages(messages, f"simulations[{i}].messages", notes)
        found.append(Dialogue(turns, simulation, own_id(simulation)))
    return found


def _of_the_user(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    if message.get("role") == "tool":
        return message.get("requestor") == "user"
    return message.get("role") == "user" and bool(message.get("tool_calls"))


def read_lines(rows: list[Row], notes: Notes) -> list[Dialogue]:
    """One message a line: the file is the dialogue. The first line may be about it."""
    about = {} if {"role", "type", "from"} & set(rows[0]) else rows[0]
    messages = rows[1:] if about else rows
    return [Dialogue(read_messages(messages, "message", notes), about, own_id(about))]


_USED = {path[0] for path in PLACES} | set(ANSWERS) | {t.partition(".")[0] for t in _TOOLS}
_USED |= set(
    "id split system instructions model timestamp created created_at usage item_id".split()
)
_USED |= set(
    "intermediate_steps traj_id instance_id task_id session_id trace_id example_id".split()
)


def unused_fields(row: Row) -> list[str]:
    """The fields of a row that hold something and that nobody reads."""
    return [
        str(name) for name, v in row.items() if name not in _USED and v not in (None, "", [], {})
    ]
