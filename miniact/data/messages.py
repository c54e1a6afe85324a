"""One vocabulary for the messages and the content parts of all formats → turns.

A message is OpenAI's {role, content, tool_calls}, Anthropic's blocks, LangChain's {type, content},
ShareGPT's {from, value}, Gemini's {role, parts} or an item of the Responses API; they may be mixed.
What is not known here is content that would be lost: it stops, named, or is counted.
"""

from __future__ import annotations

import json
import re
from typing import Any

from miniact.data.dialogue import BadRow, Call, Notes, Row, Turn
from miniact.data.reply import as_arguments, find_calls, split_think

ROLES = {
    **dict.fromkeys(["system", "developer", "SystemMessage", "SystemPromptEvent"], "system"),
    **dict.fromkeys(["user", "human", "HumanMessage"], "user"),
    **dict.fromkeys(["assistant", "gpt", "ai", "model", "AIMessage", "AIMessageChunk"], "agent"),
    **dict.fromkeys(["tool", "function", "observation", "tool_response", "ToolMessage"], "tool"),
    **dict.fromkeys(["FunctionMessage", "environment", "ipython", "toolResult"], "tool"),
    **dict.fromkeys(["function_call", "tool_call"], "call"),
}
_TEXT = {"text", "input_text", "output_text", "summary_text", "refusal"}
_THOUGHT = {"thinking", "reasoning", "thought", "redacted_thinking", "reasoning_content"}
_CALL = {"tool_use", "tool_call", "toolCall", "function_call", "server_tool_use", "mcp_tool_use"}
_RESULT = {"tool_result", "tool_call_response", "tool_response", "mcp_tool_result"}
_BY_FIELD = {
    **dict.fromkeys(["functionCall", "toolUse"], "tool_use"),
    **dict.fromkeys(["functionResponse", "toolResult"], "tool_result"),
}
_IDS = ("tool_use_id", "tool_call_id", "call_id", "toolCallId", "toolUseId", "id")
_MEDIA = re.compile("image|audio|video|file|document|media|inline_?data|blob", re.IGNORECASE)
_WEIGHTS = ("weight", "loss", "loss_weight", "mask", "train", "trainable")
_WRAPPED = re.compile(r"\s*(?:<tool_response>\s*(.*?)\s*</tool_response>\s*)+", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
# read here, or about the message rather than of it
_KNOWN = set(
    "role type from content value text parts system_prompt tool_calls function_call tool_call_id "
    "tool_use_id call_id id name thought_signature thought thinking reasoning reasoning_content "
    "additional_kwargs is_demo output input arguments args action summary data lc kwargs "
    "timestamp created_at created date time model usage usage_metadata response_metadata status "
    "stop_reason stop_sequence finish_reason agent message_type tags cache_control example "
    "index seq turn_idx logprobs encrypted_content tool_call_ids requestor phase parsed".split()
) | set(_WEIGHTS)


def read_messages(messages: Any, where: str, notes: Notes) -> list[Turn]:
    """The turns of a list of messages, in order. Raises BadRow naming the message."""
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        messages = parsed(messages, where)
    if not isinstance(messages, list):
        raise BadRow("must be a list of objects", where)
    turns: list[Turn] = []
    joinable = False  # items of one reply of the Responses API come one by one
    for i, message in enumerate(messages):
        here = f"{where}[{i}]"
        if isinstance(message, str):
            message = parsed(message, here)
        if not isinstance(message, dict):
            raise BadRow("must be a list of objects", where)
        if message.get("is_demo"):
            notes["left out: message of a demonstration"] += 1
            continue
        reader = _Message(unwrapped(message), here, notes, _wrote_calls(turns))
        item = reader.read_item() or reader.read()
        new = reader.turns
        if item and joinable and new and turns and turns[-1].who == new[0].who == "agent":
            join(turns[-1], new.pop(0))
        turns += new
        joinable = item
    return turns


def _wrote_calls(turns: list[Turn]) -> bool:
    """Whether the agent's last calls are part of its text: then results may be tagged, too."""
    last = next((turn for turn in reversed(turns) if turn.who == "agent"), None)
    return last is not None and bool(last.calls) and all(call.id is None for call in last.calls)


def join(turn: Turn, more: Turn) -> None:
    """Make the second turn of an agent a part of the first: both are one reply."""
    turn.text = "\n".join(part for part in (turn.text, more.text) if part)
    turn.thought = "\n".join(part for part in (turn.thought, more.thought) if part)
    turn.calls, turn.aside = turn.calls + more.calls, turn.aside or more.aside


def parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow("a text that is no JSON, expected messages", f"{where} {text!r:.40}") from None


def unwrapped(message: Row) -> Row:
    """LangChain's two ways to write a message out → its fields, with `type`."""
    if isinstance(message.get("kwargs"), dict) and isinstance(message.get("id"), list):
        return {"type": message["id"][-1] if message["id"] else None, **message["kwargs"]}
    if isinstance(message.get("data"), dict) and "content" in message["data"]:
        return {**message["data"], "type": message.get("type")}
    return message


def role_of(message: Row, where: str) -> str:
    field = next((f for f in ("role", "from", "type") if message.get(f) is not None), "role")
    role = message.get(field)
    known = ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise BadRow("unknown role", f"{where}.{field} {role!r:.40}")
    return known


class _Message:
    """Reads one message into `turns`."""

    def __init__(self, message: Row, where: str, notes: Notes, tagged: bool) -> None:
        self.message, self.where, self.notes = message, where, notes
        self.tagged = tagged  # whether <tool_response> means a result
        self.turns: list[Turn] = []

    def read(self) -> bool:
        m = self.message
        role = role_of(m, self.where)
        content = _first(m, "content", "value", "text", "parts")
        if content is None and role == "system":
            content = m.get("system_prompt")
        who = "agent" if role == "call" else role
        self.turn(who)
        if role == "call":
            self._written_call(content)
        else:
            self._content(content, who, f"{self.where}.content")
        if who == "agent":
            self._beside(m)
        for turn in self.turns:
            if turn.who == "tool" and turn.answers is None:
                turn.answers = _id(_first(m, "tool_call_id", "tool_use_id", "call_id"))
        for name, value in m.items():
            if name not in _KNOWN and value not in (None, "", [], {}):
                self.notes[f"left out: field {name!r:.40} of a message"] += 1
        # the first turn stands for the message itself; others came from its parts
        if len(self.turns) > 1 and self.turns[0] == Turn(who):
            del self.turns[0]
        return False

    def turn(self, who: str) -> Turn:
        """The turn that is being read, if it is of that speaker, or a new one."""
        if not self.turns or self.turns[-1].who != who:
            self.turns.append(Turn(who))
        return self.turns[-1]

    # ---- content ---------------------------------------------------------------------------

    def _content(self, content: Any, who: str, where: str) -> None:
        if isinstance(content, dict) and ("type" in content or "parts" in content):
            content = content.get("parts", [content])
        if content is None or isinstance(content, str):
            self._text(content or "", who)
            return
        if who == "tool" and isinstance(content, dict):
            self.turn(who).text = json.dumps(content, ensure_ascii=False)
            return
        if not isinstance(content, list):
            raise BadRow("must be a text, a list of parts or null", where)
        for i, part in enumerate(content):
            if isinstance(part, str):
                self._text(part, who)
            elif isinstance(part, dict):
                self._part(part, who, f"{where}[{i}]")
            else:
                raise BadRow("must be a text or an object", f"{where}[{i}] {part!r:.40}")

    def _part(self, part: Row, who: str, where: str) -> None:
        kind = part.get("type")
        if kind is None:  # Gemini and Bedrock name the kind by the field
            kind = next((k for k in (*_BY_FIELD, "text") if k in part), None)
            kind = kind or next((k for k in part if _MEDIA.search(k)), None)
            inner = part.get(kind) if kind in _BY_FIELD else None
            part = inner if isinstance(inner, dict) else part
            kind = _BY_FIELD.get(str(kind), kind)
        if not isinstance(kind, str):
            raise BadRow("unknown kind of content", f"{where}.type {kind!r:.40}")
        kind = kind.replace("-", "_")
        if kind in _TEXT:
            if part.get("thought") is True:
                self._thought(part.get("text"))
            else:
                self._text(text_of(_first(part, "text", "content", "refusal"), where), who)
        elif kind in _THOUGHT:
            self._thought(_first(part, "thinking", "reasoning", "text", "content", "summary"))
        elif kind in _CALL:
            self.turn("agent").calls.append(as_call(part, where))
        elif kind in _RESULT or kind.endswith("_tool_result"):
            name = _first(part, *_IDS)
            self.turns.append(Turn("tool", answers=_id(name)))
            result = _first(part, "content", "result", "response", "output")
            self._content(as_parts(result), "tool", f"{where}.content")
        elif _MEDIA.search(kind):
            self.notes["left out: image, sound or file"] += 1
            self._text("[image]" if "image" in kind.lower() else f"[{kind}]", who)
        else:
            raise BadRow("unknown kind of content", f"{where}.type {kind!r:.40}")

    def _text(self, text: str, who: str) -> None:
        if who == "agent":
            thought, text, whole = split_think(text)
            self._thought(thought)
            if not whole:
                self.notes["left out: thought that never ends"] += 1
            text, calls = find_calls(text)
            self.turn(who).calls.extend(calls)
        elif (
            self.tagged
            and "<tool_response>" in text
            and (who == "tool" or _WRAPPED.fullmatch(text))
        ):
            for result in _RESPONSE.findall(text):
                self.turns.append(Turn("tool", result))
            self.turns = [t for t in self.turns if t != Turn("tool")]
            return
        turn = self.turn(who)
        turn.text = f"{turn.text}\n{text}" if turn.text and text else turn.text or text

    def _thought(self, given: Any) -> None:
        if isinstance(given, list):  # the summary of a Responses item
            given = "\n".join(str(p.get("text", "")) for p in given if isinstance(p, dict))
        if isinstance(given, str) and given.strip():
            turn = self.turn("agent")
            turn.thought = f"{turn.thought}\n{given}" if turn.thought else given

    # ---- calls -----------------------------------------------------------------------------

    def _written_call(self, content: Any) -> None:
        """ShareGPT: the whole text is the call, or the list of calls."""
        calls = content
        if isinstance(content, str):
            try:
                calls = json.loads(content)
            except (ValueError, RecursionError):
                calls = [Call("function_call", content)]
        for k, call in enumerate(calls if isinstance(calls, list) else [calls]):
            self.turn("agent").calls.append(
                call if isinstance(call, Call) else as_call(call, f"{self.where}.value[{k}]")
            )

    def _beside(self, m: Row) -> None:
        """What a message of an agent has beside its content."""
        for name in ("reasoning_content", "reasoning", "thinking"):
            self._thought(m.get(name))
        more: Any = m.get("additional_kwargs")
        more = more if isinstance(more, dict) else {}
        calls = m.get("tool_calls") or more.get("tool_calls") or []
        if isinstance(calls, str):
            calls = parsed(calls, f"{self.where}.tool_calls") or []
        if not isinstance(calls, list):
            raise BadRow("must be a list", f"{self.where}.tool_calls {calls!r:.20}")
        old = m.get("function_call") or (more.get("function_call") if not calls else None)
        agent = next((t for t in reversed(self.turns) if t.who == "agent"), None) or self.turn(
            "agent"
        )
        known = {c.id for c in agent.calls if c.id}  # LangChain has Anthropic's calls twice
        for k, call in enumerate([*calls, *([old] if old else [])]):
            call = as_call(call, f"{self.where}.tool_calls[{k}]")
            if call.id is None or call.id not in known:
                agent.calls.append(call)
        for name in _WEIGHTS:
            if name in m and m[name] is not None and m[name] in (0, False):
                agent.aside = f"{name} is {'false' if m[name] is False else 0}"

    # ---- items of the Responses API ----------------------------------------------------------

    def read_item(self) -> bool:
        """Read an item that is no message; false if it is one."""
        m, kind = self.message, self.message.get("type")
        if not isinstance(kind, str) or "role" in m or "from" in m or "value" in m:
            if (
                kind == "message"
                and m.get("role") == "assistant"
                and isinstance(m.get("content"), list)
            ):
                self.read()
                return True
            return False
        if kind == "reasoning":
            self.turn("agent")
            self._thought(m.get("summary"))
            self._thought(m.get("content"))
        elif kind.endswith(("_call_output", "_call_result")):
            self.turns.append(Turn("tool", answers=_id(_first(m, "call_id", "id"))))
            self._content(as_parts(m.get("output")), "tool", f"{self.where}.output")
        elif kind.endswith("_call"):
            self.turn("agent").calls.append(as_call(m, self.where))
            if m.get("output") is not None:  # the server ran it: mcp_call, code_interpreter_call
                self.turns.append(Turn("tool", answers=_id(_first(m, "call_id", "id"))))
                self._content(as_parts(m["output"]), "tool", f"{self.where}.output")
        elif kind in ROLES:
            return False
        else:
            raise BadRow("unknown kind of item", f"{self.where}.type {kind!r:.40}")
        return True


def as_call(raw: Any, where: str) -> Call:
    """A call as any format writes it: an object, or the JSON text of one."""
    if isinstance(raw, str):
        raw = parsed(raw, where)
    if not isinstance(raw, dict):
        raise BadRow("must hold function.name", where)
    inner = next((raw[k] for k in ("function", "custom") if isinstance(raw.get(k), dict)), raw)
    name, kind = _first(inner, "name", "toolName"), raw.get("type")
    if name is None and isinstance(kind, str) and kind.endswith("_call") and kind not in _CALL:
        name = kind.removesuffix("_call")  # local_shell_call, web_search_call
    if not isinstance(name, str) or not name:
        raise BadRow("must hold function.name", where)
    given = _first(inner, "arguments", "args", "input", "parameters", "action", "code")
    if kind in ("custom", "custom_tool_call") and isinstance(given, str):
        given = {"input": given}
    if "code" in inner and given is inner["code"]:
        given = {"code": given}
    if isinstance(given, dict) and "action" in raw and "type" in given:
        given = {k: v for k, v in given.items() if k != "type"}
    id_ = _first(raw, *_IDS)
    return Call(name, as_arguments(given), _id(id_))


def as_parts(result: Any) -> Any:
    """A result as content: what is neither text nor parts is shown as JSON."""
    if isinstance(result, list) and all(
        isinstance(part, dict) and {"type", "text"} & set(part) for part in result
    ):
        return result
    if isinstance(result, dict) and set(result) == {"type", "value"}:
        result = result["value"]
    if result is None or isinstance(result, str):
        return result
    return json.dumps(result, ensure_ascii=False)


def text_of(value: Any, where: str) -> str:
    if isinstance(value, dict):  # the Assistants API: {"value": …}
        value = value.get("value")
    if value is None or isinstance(value, str):
        return value or ""
    raise BadRow("must be a text", f"{where}.text {value!r:.40}")


def _first(row: Any, *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _id(value: Any) -> str | None:
    return None if value is None else str(value)
