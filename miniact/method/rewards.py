"""Rewards: pure functions of a parsed reply. Only the answer is scored, never the reasoning."""

from __future__ import annotations

import json
import math
import numbers
import re
from typing import Any

from miniact import UserError
from miniact.config.plugins import resolve
from miniact.data.reply import as_arguments, find_calls
from miniact.types import Reply

_SPACE = re.compile(r"\s+")
_TAIL = ".!?,;: \t\r\n"


def _tool_call(text: str) -> str | None:
    """The one form of a JSON object or array (sorted keys, 1.0 → 1, no space), or None."""
    if not text.startswith(("{", "[")):
        return None
    try:
        value = _plain_numbers(json.loads(text, parse_constant=float))
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None


def _plain_numbers(value: object) -> object:
    if isinstance(value, dict):
        return {k: _plain_numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(v) for v in value]
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value


def canonical(action: str, rule: str = "words") -> str:
    """The form in which two actions are compared; applying it twice changes nothing.

    words   text games: lower case, single spaces, no trailing punctuation. A JSON tool call: sorted
            keys, numbers in one form, no insignificant space; the case of its strings counts.
    exact   shell, code, what people type: every character but the space around it.
    json    tool calls, also inside <tool_call> tags: as above, an argument that is null is absent,
            and the order of parallel calls is free. What is no call: exact.

    >>> canonical("  Go to  Shelf 1. ")
    'go to shelf 1'
    >>> canonical('{"b": 1.0, "a": [2]}') == canonical('{"a":[2],"b":1}')
    True
    >>> canonical(" git add . ", "exact")
    'git add .'
    >>> canonical('<tool_call>{"name": "f", "arguments": {"a": null}}</tool_call>', "json")
    '{"arguments":{},"name":"f"}'
    """
    if rule == "json":
        return _calls(action) or _exact(action)
    if rule == "exact":
        return _exact(action)
    stripped = action.strip().rstrip(_TAIL)
    text = _SPACE.sub(" ", stripped).lower().strip().rstrip(_TAIL)
    return _tool_call(stripped) or _tool_call(text) or text


def _exact(action: str) -> str:
    """Without the space around it; the first of several lines keeps its indentation."""
    text = action.replace("\r\n", "\n").strip("\n").rstrip()
    return text if "\n" in text else text.strip()


def _calls(action: str) -> str | None:
    """The one form of a call or of several, written as JSON or in tags; None if it is none."""
    text = action.strip()
    beside, tagged = find_calls(text)
    if tagged and not beside:
        value: Any = [{"name": call.name, "arguments": call.arguments} for call in tagged]
    else:
        try:
            value = json.loads(text, parse_constant=float)
        except (ValueError, RecursionError):
            return None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in calls):
        return _tool_call(text)
    whole = [{**call, "arguments": as_arguments(call.get("arguments"))} for call in calls]
    forms = sorted(
        json.dumps(_without_nulls(_plain_numbers(call)), sort_keys=True, separators=(",", ":"))
        for call in whole
    )
    return forms[0] if len(forms) == 1 else f"[{','.join(forms)}]"


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def same_action(a: str, b: str, rule: str = "words") -> bool:
    """Whether two actions are equal after canonicalisation."""
    return canonical(a, rule) == canonical(b, rule)


def mix_format(correct: float, well_formed: bool, weight: float) -> float:
    """r = (1 − w)·correct + w·well_formed, with w < 0.5 so that form can never outrank correctness.

    >>> mix_format(1.0, True, 0.1), mix_format(0.0, True, 0.1), mix_format(0.0, False, 0.1)
    (1.0, 0.1, 0.0)
    """
    return (1 - weight) * correct + weight * float(well_formed)


def judged(function: str, reply: Reply) -> float:
    """What `module:function` of one's own says of a reply; without one, `reply.reward`."""
    if not function:
        return reply.reward
    value = resolve("reward", function)(reply)
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(
            f"reward: {function} returned {value!r:.60} for the reply {reply.text!r:.60}; expected "
            "a finite number"
        )
    return float(value)


def choice_reward(choice: int | None, right: int, *, format_weight: float = 0.0) -> float:
    """Critic: 1 if the chosen position is the expert action's, else 0 (unparseable: None → 0)."""
    return mix_format(float(choice == right), choice is not None, format_weight)


def action_reward(
    action: str | None,
    expert: str,
    admissible: tuple[str, ...] | None = None,
    rule: str = "words",
    *,
    format_weight: float = 0.0,
    admissible_credit: float = 0.0,
) -> float:
    """1 if canonical(action) = canonical(expert); else the credit if admissible; else 0."""
    if action is None:
        return 0.0
    correct = float(same_action(action, expert, rule))
    if not correct and admissible_credit and admissible is not None:
        listed = any(same_action(action, a, rule) for a in admissible)
        correct = admissible_credit * float(listed)
    return mix_format(correct, True, format_weight)
