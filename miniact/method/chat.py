"""The prompt form `chat`: a dialogue as turns of the model's own template.

    user        the task, and what was seen before the first action
    assistant   an action: a tool call in the model's own form, or a text
    tool, user  what was seen next: the results of the calls, what a user said
    …
    user        what is asked of the critic; of an actor nothing is asked, it is simply its turn

So a model is trained on the very text that an agent loop sends: messages and tools, through the
template. A template that knows no tools gets their definitions as a system message, and calls and
results in tags, as Hermes and Qwen write them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from miniact import UserError
from miniact.data.dialogue import Call
from miniact.data.folding import as_action, unguarded_parts
from miniact.data.reply import as_arguments, find_calls, split_think
from miniact.method.calls import calls_of, deep, hermes, json_rows, typed
from miniact.method.quoting import escape_calls, unescape_calls
from miniact.method.template import Message, Template
from miniact.types import State

_PROBE = Call("probe_name", {"probe_argument": "probe value"})
_TOOLS = "You can call these tools:\n<tools>\n{}\n</tools>\nA call is written as\n{}"
_WORD = "probe text"


class Chat:
    """Messages for one template, and the form in which its model writes calls.

    own_calls, own_tools, own_results: whether the template writes calls, definitions and results;
    what it does not know is written as text.
    """

    def __init__(self, template: Template, harmless: Callable[[str], str]) -> None:
        if not template.exists:
            raise UserError(
                "prompt.form: chat needs a model with a chat template, and "
                f"{template.tokenizer.name_or_path!r} has none; use tags or plain"
            )
        self.template, self.safe = template, harmless  # of foreign text
        user = {"role": "user", "content": _WORD}
        self._two_users = self._shows([user, user], _WORD)
        self.own_calls = False
        head, found, tail = self._reply({"role": "assistant", "content": _WORD}).partition(_WORD)
        self._head, self._tail = head, tail if found else ""
        self._json: tuple[str, str, str] | None = None  # before a call, its name, its arguments
        self._untyped = False  # whether arguments are written without their types
        self.own_calls = self._writes_calls()
        two = as_action([_PROBE, _PROBE])
        self._one_by_one = self.own_calls and not self._shows([user, self._acted(two, 0, str)], "")
        result = {"role": "tool", "tool_call_id": "call00000", "name": "f", "content": _WORD}
        asked = [{"role": "user", "content": "?"}, self._acted(as_action([_PROBE]), 0, str), result]
        self.own_results = self.own_calls and self._shows(asked, _WORD)
        tool = {"name": "probe_name", "description": _WORD, "parameters": _NO_PARAMETERS}
        tools = [{"type": "function", "function": tool}]
        known = self._shows([{"role": "user", "content": "?"}], _WORD, tools)
        self.own_tools = self.own_calls and known  # else they would ask for another form of calls

    # ---- writing -------------------------------------------------------------------------------

    def tools(self, state: State) -> list[dict[str, Any]]:
        return deep(self.safe, list(state.tools))

    def messages(self, state: State, past: int, left_out: str, question: str) -> list[Message]:
        """The dialogue with the last `past` turns. left_out: says that there were others."""
        turns = state.history[len(state.history) - past :]
        seen = [observation for observation, _ in turns] + [state.observation]
        head = "\n\n".join(text for text in (self.safe(state.task), left_out) if text)
        messages: list[Message] = [{"role": "user", "content": head}]
        if state.tools and not self.own_tools:
            messages.insert(0, {"role": "system", "content": self._definitions(state)})
        calls: list[Call] = []
        number = 0  # of the calls so far
        for k, observation in enumerate(seen):
            for message in self._seen(state, observation, calls, number - len(calls)):
                _append(messages, message)
            if k < len(turns):
                _append(messages, self._acted(turns[k][1], number, self.safe))
                calls = calls_of(turns[k][1])
                number += len(calls)
        if self._one_by_one:
            messages = list(_apart(messages))
        if question and (self._two_users or messages[-1]["role"] != "user"):
            messages.append({"role": "user", "content": question})
        elif question:
            _append(messages, {"role": "user", "content": question})
        return messages

    def _seen(
        self, state: State, observation: str, calls: Sequence[Call], first: int
    ) -> list[Message]:
        """What came after an action: results in the order of its calls, then the rest.

        first: the number of the first of the calls.
        """
        names = [call.name for call in calls] if len(calls) > 1 else []
        parts = unguarded_parts(observation, names) if state.marked else [("", observation)]
        results: list[list[str]] = [[] for _ in calls]
        rest: list[Message] = []
        for who, text in parts:
            if who == "" and calls and not rest:
                results[0].append(text)
            elif who in names and not rest:
                same = [k for k, call in enumerate(calls) if call.name == who]
                results[next((k for k in same if not results[k]), same[-1])].append(text)
            elif text:
                role = "assistant" if who == ">" else "user"
                spoken = f"System: {text}" if who == "System" else text
                rest.append({"role": role, "content": self.safe(spoken)})
        answers = (self._result(call, "\n".join(texts), first + k)
                   for k, (call, texts) in enumerate(zip(calls, results)))  # fmt: skip
        return [*answers, *rest]

    def _acted(self, action: str, number: int, change: Callable[[str], str]) -> Message:
        """An action as a message, its texts changed. number: of its first call."""
        calls = [Call(change(c.name), deep(change, c.arguments)) for c in calls_of(action)]
        if not calls or not self.own_calls:
            return {"role": "assistant", "content": hermes(calls) if calls else change(action)}
        rows = [
            {
                "id": f"call{number + k:05d}",  # of nine letters, as Mistral wants it
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for k, call in enumerate(calls)
        ]
        return {"role": "assistant", "content": "", "tool_calls": rows}

    def _result(self, call: Call, text: str, number: int) -> Message:
        if not self.own_results:
            content = f"<tool_response>\n{self.safe(text)}\n</tool_response>"
            return {"role": "user", "content": content}
        about = {"tool_call_id": f"call{number:05d}", "name": self.safe(call.name)}
        return {"role": "tool", **about, "content": self.safe(text)}

    def _definitions(self, state: State) -> str:
        lines = (json.dumps(tool, ensure_ascii=False) for tool in self.tools(state))
        return _TOOLS.format("\n".join(lines), hermes([Call("NAME", {"ARGUMENT": "VALUE"})]))

    # ---- replies -------------------------------------------------------------------------------

    def render(self, action: str) -> str:
        """An action as the model writes it, from where its turn starts to where it ends."""
        calls = calls_of(action)
        if not calls or not self.own_calls:
            return self._acted(action, 0, escape_calls)["content"]
        if not self._one_by_one:
            return self._inside(action)
        return "\n".join(self._inside(as_action([call])) for call in calls)

    def parse(self, reply: str) -> str | None:
        """The action in a reply: its calls, or else all of its text; None if it holds neither."""
        _, text, ended = split_think(reply)
        rest, calls = self._find(text)
        if not ended or any(isinstance(call.arguments, str) for call in calls):
            return None
        if not calls:
            return unescape_calls(rest.strip()) or None
        if self._untyped:
            calls = [Call(c.name, typed(c.arguments)) for c in calls]
        return as_action(
            Call(unescape_calls(c.name), deep(unescape_calls, c.arguments)) for c in calls
        )

    def _find(self, text: str) -> tuple[str, list[Call]]:
        rest, calls = find_calls(text)
        if calls or self._json is None:
            return rest, calls
        before, name, arguments = self._json
        start = text.find(before) if before else 0
        if start < 0:
            return text, []
        rows = json_rows(text[start + len(before) :])
        if not rows or not all(isinstance(row.get(name), str) for row in rows):
            return text, []
        return text[:start].strip(), [Call(r[name], as_arguments(r.get(arguments))) for r in rows]

    # ---- what the template knows -----------------------------------------------------------------

    def _reply(self, message: Message) -> str:
        """An assistant's message as the template writes it, after a user's."""
        asked = {"role": "user", "content": "?"}
        whole = self.template.render([asked, message], generation=False)
        start = self.template.render([asked], generation=False)
        return whole[len(start) :] if whole.startswith(start) else whole

    def _inside(self, action: str) -> str:
        """What stands between the head and the tail of an assistant's turn."""
        whole = self._reply(self._acted(action, 0, escape_calls))
        end = len(whole) - len(self._tail) if whole.endswith(self._tail) else len(whole)
        return whole[len(self._head) : end] if whole.startswith(self._head) else whole[:end]

    def _writes_calls(self) -> bool:
        """Whether the template writes calls in a form that can be read back."""
        self.own_calls, action = True, as_action([_PROBE])
        try:
            text = self._inside(action)
        except UserError:
            return False
        if self.parse(text) != action and (at := text.find("{")) >= 0:
            before = text[:at].rstrip("[ \n")
            for row in json_rows(text[at:])[:1]:
                names = [key for key, value in row.items() if value == _PROBE.name]
                given = [key for key, value in row.items() if value == _PROBE.arguments]
                if names and given:
                    self._json = (before, names[0], given[0])
        if self.parse(text) != action:
            return False
        number = as_action([Call("probe_name", {"probe_argument": 1})])
        self._untyped = self.parse(self._inside(number)) != number
        return True

    def _shows(self, messages: list[Message], word: str, tools: Any = None) -> bool:
        try:
            return word in self.template.render(messages, tools=tools)
        except UserError:
            return False


_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


def _append(messages: list[Message], message: Message) -> None:
    """Add a message; to one of the same speaker, its text: templates want turns to alternate."""
    last = messages[-1]
    if last["role"] != message["role"] or message["role"] == "tool" or "tool_calls" in last:
        messages.append(message)
        return
    content = "\n\n".join(text for text in (last["content"], message["content"]) if text)
    messages[-1] = {**last, **message, "content": content}


def _apart(messages: Sequence[Message]) -> Iterator[Message]:
    """Calls that were made at once, one after the other, each with its result."""
    results: dict[str, Message] = {m["tool_call_id"]: m for m in messages if m["role"] == "tool"}
    for message in messages:
        for call in message.get("tool_calls", ()):
            yield {**message, "tool_calls": [call]}
            if call["id"] in results:
                yield results[call["id"]]
        if "tool_calls" not in message and message["role"] != "tool":
            yield message
