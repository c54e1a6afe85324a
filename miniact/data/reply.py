"""What an agent wrote → its thought, its calls, its action. Only an agent's own text comes here."""

from __future__ import annotations

import json
import re
from typing import Any

from miniact.data.dialogue import Call

_THINK = "think|thinking|thought|reasoning"
_OPEN = re.compile(rf"^[ \t]*<({_THINK})>", re.MULTILINE)
_CLOSE = re.compile(rf"</({_THINK})>")
_CALL = re.compile(
    r"<(tool_call|function_call|functioncall)>\s*(.*?)\s*"
    r"(?:</(?:tool_call|function_call|functioncall)>|\Z)",  # the end may have been the stop word
    re.DOTALL,
)
_XML_CALL = re.compile(r"<function=([^>\s]+)>(.*?)</function>", re.DOTALL)
_XML_ARGUMENT = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_LISTED = re.compile(r"\[TOOL_CALLS\]()\s*(\[.*\])\s*\Z", re.DOTALL)
_TAG = re.compile(r"<(action|command|execute_bash)>(.*?)</\1>", re.DOTALL)
_ANSWER = re.compile(r"\s*<answer>((?:(?!</?answer>).)*)</answer>\s*", re.DOTALL)
_FINAL = re.compile(r"^[ \t]*Final Answer:", re.MULTILINE | re.IGNORECASE)
_MARK = re.compile(r"^[ \t]*(?:Action|Act):[ \t]*", re.MULTILINE | re.IGNORECASE)
_THOUGHT = re.compile(r"^[ \t]*(?:Thought|Think):", re.MULTILINE | re.IGNORECASE)
_MADE_UP = re.compile(r"^[ \t]*Observation:.*", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^```[\w+-]*[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def split_think(text: str) -> tuple[str, str, bool]:
    """A text → (thought, the rest, whether every thought ends). Tags inside a line are content.

    >>> split_think("<think>cold</think> open fridge 1")
    ('cold', 'open fridge 1', True)
    >>> split_think("it is cold</think>open fridge 1")  # the template wrote the opening tag
    ('it is cold', 'open fridge 1', True)
    >>> split_think("<think>it is co")
    ('it is co', '', False)
    """
    thoughts = []
    while True:
        opening, closing = _OPEN.search(text), _CLOSE.search(text)
        if opening and (not closing or closing.start() < opening.start()):
            thoughts.append(text[opening.end() :].strip())
            return "\n".join(thoughts), text[: opening.start()].strip(), False
        if not closing or not (opening or _is_orphan(text, closing)):
            return "\n".join(thoughts), text.strip(), True
        before = text[: opening.start()] if opening else ""
        start = opening.end() if opening else 0
        thoughts += [part for p in (before, text[start : closing.start()]) if (part := p.strip())]
        text = text[closing.end() :]


def _is_orphan(text: str, closing: re.Match) -> bool:
    """Whether a closing tag has no opening one before it, not even inside a line."""
    return f"<{closing[1]}>" not in text[: closing.start()]


def find_calls(text: str) -> tuple[str, list[Call]]:
    """A text → (what stands beside its calls, the calls that are written in it).

    >>> find_calls('I look. <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>')
    ('I look.', [Call(name='f', arguments={'a': 1}, id=None)])
    >>> find_calls("<function=f><parameter=a>1</parameter></function>")
    ('', [Call(name='f', arguments={'a': '1'}, id=None)])
    """
    calls: list[Call] = []

    def take(match: re.Match) -> str:
        inside = match[2]
        if xml := _XML_CALL.search(inside):
            take_xml(xml)
        else:
            calls.extend(_from_json(inside))
        return ""

    def take_xml(match: re.Match) -> str:
        calls.append(Call(match[1], dict(_XML_ARGUMENT.findall(match[2]))))
        return ""

    rest = _XML_CALL.sub(take_xml, _LISTED.sub(take, _CALL.sub(take, text)))
    return (rest.strip(), calls) if calls else (text, [])


def _from_json(text: str) -> list[Call]:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return [Call("tool_call", text)]  # unreadable: shown, not imitated
    found = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return [Call("tool_call", text)]
        found.append(Call(call["name"], as_arguments(call.get("arguments", call.get("args")))))
    return found


def as_arguments(value: Any) -> dict | str:
    """The arguments of a call as an object, or their text if they are none. None means none."""
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            parsed = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            return value
        value = {} if parsed is None else parsed
    return value if isinstance(value, dict) else json.dumps(value, ensure_ascii=False)


def split_action(text: str, code_block: bool = False) -> tuple[str, str, str]:
    """A text without <think> → (action, thought, why it is no action or "").

    An <action> tag, what follows "Action:", the one code block (on request, or after "Thought:"),
    or else all of it.

    >>> split_action("Thought: cold.\\nAction: open fridge 1")
    ('open fridge 1', 'Thought: cold.', '')
    >>> split_action("Cold. <action>open fridge 1</action>")
    ('open fridge 1', 'Cold.', '')
    >>> split_action("Action: write\\nAction: is a word")  # a payload is not cut
    ('write\\nAction: is a word', '', '')
    """
    tags = list(_TAG.finditer(text))
    if len(tags) > 1:
        return text, "", "several <action> tags in one turn"
    if tags:
        beside = _TAG.sub("", text).strip()
        return tags[0][2].strip(), beside, ""
    if answer := _ANSWER.fullmatch(text):
        return answer[1].strip(), "", ""
    if text.lstrip().startswith("<action>"):
        return text, "", "an <action> tag that never ends"
    if mark := last_mark(text):
        action = _MADE_UP.sub("", text[mark.end() :]).strip()
        return action, text[: mark.start()].strip(), ""
    thinks = _THOUGHT.match(text)
    if thinks and (final := _FINAL.search(text)):
        return text[final.start() :].strip(), text[: final.start()].strip(), ""
    if (code_block or thinks) and (block := the_block(text)):
        return block
    if thinks:
        return text, "", "a thought without an action"
    return text.strip(), "", ""


def last_mark(text: str) -> re.Match | None:
    """The "Action:" that counts: the first one, or the first after the last "Thought:"."""
    marks = list(_MARK.finditer(text))
    thoughts = [t.start() for t in _THOUGHT.finditer(text)]
    for start in reversed([0, *thoughts]):
        after = [m for m in marks if m.start() >= start]
        if after:
            return after[0]
    return None


def the_block(text: str) -> tuple[str, str, str] | None:
    """The one fenced code block of a text with prose beside it, as `split_action` gives it."""
    blocks = list(_FENCE.finditer(text))
    if len(blocks) != 1:
        return None
    beside = (text[: blocks[0].start()] + text[blocks[0].end() :]).strip()
    return blocks[0][1].strip("\n"), beside, ""
