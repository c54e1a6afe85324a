"""{conversations: [{from, value}]}: ShareGPT, and the agents' logs of ETO and AgentTraj-L."""

from __future__ import annotations

from miniact.data.dialogue import BadRow, Dialogue, Notes, Row
from miniact.data.messages import read_messages
from miniact.data.readers.rows import find_messages, read_row
from miniact.data.reply import last_mark, split_action

_MENU = "AVAILABLE ACTIONS:"


def read_eto(row: Row, notes: Notes) -> list[Dialogue]:
    """Turns of human and gpt, in which a turn of gpt acts only by "Action:".

    The opening instruction and its "OK" become system text. AgentTraj's "AVAILABLE ACTIONS: a,b"
    at the end of an observation is the menu.
    """
    given = row.get("conversations")
    if given is None:
        has = ", ".join(map(str, row))[:60] or "no fields"
        raise BadRow("no field 'conversations'", f"has {has}")
    if not isinstance(given, list) or not all(isinstance(turn, dict) for turn in given):
        raise BadRow("must be a list of objects", "conversations")
    for i, turn in enumerate(given):
        speaker, value = turn.get("from"), turn.get("value")
        if speaker not in ("human", "gpt", "system"):
            raise BadRow("must be human, gpt or system", f"conversations[{i}].from {speaker!r:.20}")
        if not isinstance(value, str):
            raise BadRow("must be a text", f"conversations[{i}].value {value!r:.20}")
    given = _without_opening(given, notes)
    turns = read_messages(given, "conversations", notes)
    for turn in turns:
        if turn.who == "user":
            turn.text, _, menu = turn.text.partition(_MENU)
            turn.menu = [a.strip() for a in menu.split(",") if a.strip()] or None
        elif turn.who == "agent" and turn.text:
            marked = last_mark(turn.text) is not None
            turn.text, turn.thought, problem = split_action(turn.text)
            turn.plain = True
            turn.aside = turn.aside or problem or ("" if marked else 'a turn without "Action:"')
    id_ = row.get("item_id", row.get("id"))
    return [Dialogue(turns, row, None if id_ is None else str(id_))]


def _without_opening(turns: list[Row], notes: Notes) -> list[Row]:
    """Rules and an "OK" that names no action become system text, as they are in later formats."""
    speakers = [t for t in turns if t["from"] != "system"]
    if [t["from"] for t in speakers[:3]] != ["human", "gpt", "human"]:
        return turns
    reply = speakers[1]
    if reply.get("loss") is not False and last_mark(reply["value"]):
        return turns
    notes["left out: opening rules and their OK"] += 1
    heads = [t for t in turns if t["from"] == "system"]
    return [*heads, {**speakers[0], "from": "system"}, *speakers[2:]]


def read_sharegpt(row: Row, notes: Notes) -> list[Dialogue]:
    """human, gpt, function_call, observation; ETO's way if the turns of gpt say "Action:"."""
    name, turns = find_messages(row)
    if name == "conversations" and isinstance(turns, list) and acts_by_marks(turns):
        return read_eto(row, notes)
    return read_row(row, notes)


def acts_by_marks(turns: list) -> bool:
    """Whether only human and gpt speak and gpt marks what it does, as ETO and AgentTraj do."""
    if not all(
        isinstance(t, dict)
        and t.get("from") in ("human", "gpt", "system")
        and isinstance(t.get("value"), str)
        for t in turns
    ):
        return False
    replies = [t["value"] for t in turns if t["from"] == "gpt"]
    return any(last_mark(reply) for reply in replies)
