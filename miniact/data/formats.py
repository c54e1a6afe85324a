"""One conversation of a foreign log → one row of trajectories.jsonl.

What becomes what:

    task            the first user (human) message, without its "Observation:". If it says "Your
                    task is to: X", the task is X and the rest is the first observation; a WebShop
                    page names its task between "Instruction: [SEP]" and the next "[SEP]".
    observation     everything seen since the action before: user messages, tool results in the
                    order of their calls. The first one is empty if all was task.
    action          one assistant message: what follows its last "Action:", without its thoughts
                    (<think>…</think>, "Thought:"); in `chat` the whole text if it has no "Action:".
                    In `toolcalls` the call as {"name": …, "arguments": {…}}; several calls in one
                    message are one action, the JSON list of them, for none saw another's result.
                    Text beside a call is its thought.
    not imitated    `loss: false` and `weight: 0`, calls whose arguments are no JSON object, ETO and
                    AgentTraj turns without "Action:", text between tool calls. They stay in sight:
                    the next observation begins with "> …", so no state lacks its past.
    left out        the opening instruction and its "OK" (ETO, AgentTraj); system and developer
                    messages (or at the head of the task, on request); text after the last tool
                    call: as a free text it equals no other, so no reward could compare it; tool
                    definitions; images and other parts without text; what follows the last action.
    admissible      AgentTraj's "AVAILABLE ACTIONS: a,b" at the end of an observation.
    id, success     the row's own, if it has them, and `split`. Published ids repeat, so the item's
                    number is added to them. WebShop's `reward` is no success: ETO imitates them
                    all.

A Trajectory has one observation before each action and no marks for single turns: that is why turns
are joined as above, and why an agent so trained is not taught when to stop calling tools.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

_TASK = re.compile(r"[ \t]*Your task is to:[ \t]*(\S[^\n]*)")
_WEBSHOP = re.compile(r"Instruction:[ ]*\[SEP\][ ]*(.+?)[ ]*\[SEP\]", re.DOTALL)
_OBSERVED = re.compile(r"\s*Observation:\s*")
_MENU = "AVAILABLE ACTIONS:"
_ACTION = re.compile(r"^[ \t]*Action:[ \t]*", re.MULTILINE | re.IGNORECASE)
_HALLUCINATED = re.compile(r"^[ \t]*Observation:.*", re.MULTILINE | re.DOTALL)

Row = dict[str, Any]


class BadRow(Exception):
    """A conversation that cannot be converted. `reason` is counted, `detail` says where."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{detail}: {reason}")
        self.reason = reason


def split_task(text: str) -> tuple[str, str]:
    """The first message → (task, first observation).

    >>> split_task("You see a bed 1.\\n\\nYour task is to: find a pen.")
    ('find a pen.', 'You see a bed 1.')
    >>> split_task("Book a table for two.")
    ('Book a table for two.', '')
    """
    if found := _TASK.search(text):
        before, after = text[: found.start()].strip(), text[found.end() :].strip()
        return found[1].strip(), "\n".join(part for part in (before, after) if part)
    if found := _WEBSHOP.search(text):
        return found[1], text.strip()
    return text.strip(), ""


def split_thought(text: str) -> tuple[str, bool]:
    """A message of an agent → (its action, whether it marked it with "Action:").

    >>> split_thought("Thought: cold.\\nAction: open fridge 1")
    ('open fridge 1', True)
    >>> split_thought("<think>cold</think> open fridge 1")
    ('open fridge 1', False)
    """
    text = text.rpartition("</think>")[2]
    marks = list(_ACTION.finditer(text))
    if not marks:
        return text.strip(), False
    return _HALLUCINATED.sub("", text[marks[-1].end() :]).strip(), True


class Dialogue:
    """Gathers turns into the columns of a trajectory. `changes` counts what was not plain."""

    def __init__(self, changes: Counter) -> None:
        self.changes = changes
        self.task: str | None = None
        self.columns: Row = {"observations": [], "actions": [], "admissible": []}
        self._seen: list[str] = []
        self._menu: list[str] | None = None

    def see(self, text: str) -> None:
        """What the agent is told: first its task, later observations."""
        text, _, menu = text.partition(_MENU)
        if menu:
            self._menu = [a.strip() for a in menu.split(",") if a.strip()]
        found = _OBSERVED.match(text)
        text = text[found.end() if found else 0 :].strip()
        if text and self.task is None:
            self.task, text = split_task(text)
        if text:
            self._seen.append(text)

    def aside(self, text: str, reason: str) -> None:
        """What the agent did or said and nobody shall imitate."""
        self.changes[f"not imitated: {reason}"] += 1
        self._seen.append(f"> {text}")

    def act(self, action: str) -> None:
        self.columns["observations"].append("\n".join(self._seen))
        self.columns["actions"].append(action)
        self.columns["admissible"].append(self._menu)
        self._seen, self._menu = [], None

    def row(self, source: Row, id_: str | None, head: Sequence[str] = ()) -> Row:
        if not self.task:
            raise BadRow("no task: no text of a user", "the whole conversation")
        columns = dict(self.columns)
        if not any(columns["admissible"]):
            del columns["admissible"]
        success, split = source.get("success"), source.get("split")
        return {
            "id": id_,
            "task": "\n\n".join([*head, self.task]),
            **columns,
            "success": success if isinstance(success, bool) else None,
            "split": split if isinstance(split, str) else "train",
        }


def list_of_dicts(row: Row, name: str) -> list[Row]:
    turns = row.get(name)
    if turns is None and "role" in row:
        raise BadRow(f"one message, expected one conversation: {{{name!r}: […]}}", "its keys")
    if turns is None:
        raise BadRow(f"no field {name!r}", f"has {', '.join(map(str, row))[:60] or 'no fields'}")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRow("must be a list of objects", name)
    return turns


# ---- ETO and AgentTraj-L -------------------------------------------------------------------


def from_turns(row: Row, changes: Counter, system_prompt: bool) -> Row:
    """{conversations: [{from, value, loss?}]}: ETO, AgentTraj-L and what is shaped like them."""
    turns = list_of_dicts(row, "conversations")
    speakers = []
    for i, turn in enumerate(turns):
        speaker, value = turn.get("from"), turn.get("value")
        if speaker not in ("human", "gpt", "system"):
            raise BadRow("must be human, gpt or system", f"conversations[{i}].from {speaker!r:.20}")
        if not isinstance(value, str):
            raise BadRow("must be a text", f"conversations[{i}].value {value!r:.20}")
        speakers.append((speaker, value, turn.get("loss")))
    heads = [value for speaker, value, _ in speakers if speaker == "system"]
    speakers = [turn for turn in speakers if turn[0] != "system"]
    if _opens_with_instruction(speakers):
        heads.append(speakers[0][1])
        speakers = speakers[2:]
    dialogue = Dialogue(changes)
    for speaker, value, loss in speakers:
        if speaker == "human":
            dialogue.see(value)
            continue
        action, marked = split_thought(value)
        if not action:
            changes["left out: empty turn"] += 1
        elif loss is False:
            dialogue.aside(action, "loss is false")
        elif not marked:
            dialogue.aside(action, 'a turn without "Action:"')
        else:
            dialogue.act(action)
    return dialogue.row(row, _published_id(row), heads if system_prompt else ())


def _opens_with_instruction(speakers: list[tuple[str, str, Any]]) -> bool:
    """Whether the dialogue begins with rules and an "OK" that names no action."""
    if [s for s, _, _ in speakers[:3]] != ["human", "gpt", "human"]:
        return False
    return speakers[1][2] is False or not split_thought(speakers[1][1])[1]


def _published_id(row: Row) -> str | None:
    found = row.get("item_id", row.get("id"))
    return None if found is None else str(found)
