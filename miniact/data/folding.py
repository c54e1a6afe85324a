"""A dialogue → one row of trajectories.jsonl: the one way for all formats.

    task            the first text of a user, without its "Observation:". If it says "Your task is
                    to: X", the task is X (the last one, if there are several) and the rest is the
                    first observation; a WebShop page names its task after "Instruction: [SEP]".
    observation     everything seen since the action before, in order of time: users, results in
                    the order of their calls, system messages that come later than the first turn.
    action          where the agent calls tools: its calls, {"name": …, "arguments": {…}}; several
                    in one reply are one action, the list of them, for none saw another's result.
                    Elsewhere its text, without its thoughts and marks (`reply.py`).
    not imitated    turns marked so by the log, what is said before the first request, texts between
                    calls, broken calls. They stay in sight as "> …", so no state lacks its past.
    left out        thoughts, texts beside calls, texts after the last call (final answers), system
                    prompts; on request the last two are kept.

A trajectory has one observation before each action, so turns are joined. The marks by which their
parts are told apart ("> ", "User: ", a tool's name) mean nothing inside foreign text: there they
get a backslash, as tags do in prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from miniact.data.dialogue import BadRow, Call, Dialogue, Notes, Row, Turn
from miniact.data.reply import split_action

_TASK = re.compile(r"^[ \t]*Your task is to:[ \t]*(\S[^\n]*)", re.MULTILINE)
_WEBSHOP = re.compile(r"Instruction:[ ]*\[SEP\][ ]*(.+?)[ ]*\[SEP\]", re.DOTALL)
_OBSERVED = re.compile(r"\s*Observation:\s*")
_OK = re.compile(r"(?:ok(?:ay)?|understood|got it|i understand|sure)\b[^?\n]{0,120}", re.IGNORECASE)


@dataclass(frozen=True)
class Folding:
    """How dialogues become trajectories. `calls`: whether the agent acts by tool calls."""

    calls: bool = False
    system_prompt: bool = False
    keep_final_answer: bool = False
    code_block: bool = False
    opening: int = 0  # turns to leave out at the start
    rules: bool = False  # leave out rules that the agent only says "OK" to


def fold(dialogue: Dialogue, how: Folding, notes: Notes) -> Row:
    """One row of trajectories.jsonl; it may hold no action. Raises BadRow without a task."""
    heads, turns = _split_heads(dialogue.turns)
    turns = _without_opening(turns, how, notes)
    last_call = max((i for i, turn in enumerate(turns) if turn.calls), default=-1)
    columns = _Columns(how.calls, notes)
    head = [text for turn in heads if (text := turn.text.strip())]
    if how.system_prompt and head and not any(turn.who == "user" for turn in turns):
        columns.task, head = head[-1], head[:-1]  # only the system says what to do
    for i, turn in enumerate(turns):
        if turn.who == "agent":
            turn_of = _act_by_calls if how.calls else _act_by_text
            turn_of(columns, turn, how, i > last_call)
        elif turn.who == "tool":
            columns.result(turn)
        else:
            columns.see(turn)
    if not how.system_prompt and head:
        notes["left out: system prompt"] += len(head)
    if columns.task is None:
        raise BadRow("no task: no text of a user", "the whole conversation")
    return _row(dialogue, columns, head if how.system_prompt else [])


def _row(dialogue: Dialogue, columns: _Columns, head: list[str]) -> Row:
    row: Row = {
        "id": dialogue.id,
        "task": "\n\n".join([*head, columns.task or ""]),
        "observations": columns.observations,
        "actions": columns.actions,
    }
    if any(columns.menus):
        row["admissible"] = columns.menus
    if not columns.is_game:
        row["compare"] = "json" if columns.calls else "exact"
    if columns.calls:
        row["marked"] = True
    split = dialogue.row.get("split")
    row["split"] = split if isinstance(split, str) and split else "train"
    return {**row, "tools": dialogue.tools} if dialogue.tools else row


def _split_heads(turns: list[Turn]) -> tuple[list[Turn], list[Turn]]:
    """(system turns at the start, the rest): what a system says later stays where it is said."""
    n = next((i for i, turn in enumerate(turns) if turn.who != "system"), len(turns))
    return turns[:n], turns[n:]


def opens_with_rules(turns: list[Turn]) -> bool:
    """Whether a user states rules and the agent only says "OK": then the task comes third."""
    first = turns[:3]
    if [turn.who for turn in first] != ["user", "agent", "user"]:
        return False
    return not first[1].calls and is_ok(first[1].text)


def is_ok(text: str) -> bool:
    """Whether an agent only says that it understood."""
    return bool(_OK.fullmatch(text.strip()))


def _without_opening(turns: list[Turn], how: Folding, notes: Notes) -> list[Turn]:
    if how.opening and len(turns) > how.opening:
        notes["left out: turn of the opening (--opening)"] += how.opening
        return turns[how.opening :]
    if opens_with_rules(turns) and (how.rules or turns[1].aside):
        notes["left out: opening rules and their OK (--opening 0 keeps them)"] += 1
        return turns[2:]
    return turns


def split_task(text: str) -> tuple[str, str]:
    """The first message → (task, first observation).

    >>> split_task("You see a bed 1.\\n\\nYour task is to: find a pen.")
    ('find a pen.', 'You see a bed 1.')
    >>> split_task("Book a table for two.")
    ('Book a table for two.', '')
    """
    if tasks := list(_TASK.finditer(text)):
        last = tasks[-1]  # those before it belong to examples
        before, after = text[: last.start()].strip(), text[last.end() :].strip()
        return last[1].strip(), "\n".join(part for part in (before, after) if part)
    if named := _WEBSHOP.search(text):
        return named[1], text.strip()
    return text.strip(), ""


# ---- what the agent did ----------------------------------------------------------------------


def _act_by_text(columns: _Columns, turn: Turn, how: Folding, last: bool) -> None:
    if turn.calls:
        raise BadRow("has tool calls; import with --format toolcalls", "an agent's turn")
    action, thought, problem = turn.text.strip(), turn.thought, ""
    if not turn.plain:
        action, beside, problem = split_action(turn.text, how.code_block)
        thought = thought or beside
    if thought:
        columns.notes["left out: thought"] += 1
    if not action:
        columns.notes["left out: empty turn"] += 1
    elif reason := turn.aside or problem or columns.too_early():
        columns.aside(action, reason)
    else:
        columns.act(action)


def _act_by_calls(columns: _Columns, turn: Turn, how: Folding, last: bool) -> None:
    if turn.thought:
        columns.notes["left out: thought"] += 1
    if not turn.calls:
        text = split_action(turn.text)[0] if turn.text.strip() else ""
        if not text:
            columns.notes["left out: empty turn"] += 1
        elif reason := turn.aside or columns.too_early():
            columns.aside(text, reason)
        elif not last:
            columns.aside(text, "text between tool calls")
        elif how.keep_final_answer:
            columns.act(text)
        else:
            columns.answered(text)
        return
    if turn.text.strip():
        columns.notes["left out: text beside a call"] += 1
    broken = [call for call in turn.calls if isinstance(call.arguments, str)]
    action = as_action(turn.calls)
    if broken:
        text = "; ".join(f"{c.name} {_written(c)}" for c in turn.calls)
        columns.aside(text, "arguments are no JSON object", turn.calls)
    elif reason := turn.aside or columns.too_early():
        columns.aside(action, reason, turn.calls)
    else:
        if len(turn.calls) > 1:
            columns.notes["parallel calls joined to one action"] += 1
        columns.act(action, turn.calls)


def as_action(calls: Iterable[Call]) -> str:
    """Calls as the text of an action: the JSON of one, or the list of several."""
    rows = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return json.dumps(rows[0] if len(rows) == 1 else rows, ensure_ascii=False)


def _written(call: Call) -> str:
    text = call.arguments
    return text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)


# ---- what it saw -------------------------------------------------------------------------------


class _Columns:
    """Gathers turns into the columns of a trajectory."""

    def __init__(self, calls: bool, notes: Notes) -> None:
        self.calls, self.notes = calls, notes
        self.task: str | None = None
        self.is_game = False  # a text world, which does not mind how a command is written
        self.observations: list[str] = []
        self.actions: list[str] = []
        self.menus: list[list[str] | None] = []
        self._seen: list[str] = []
        self._menu: list[str] | None = None
        self._waiting = _Results([], notes, calls)

    def see(self, turn: Turn) -> None:
        """What a user or a system says: first the task, later observations."""
        self._flush()
        self._menu = turn.menu or self._menu
        self.is_game |= bool(turn.menu)
        observed = _OBSERVED.match(turn.text)
        text = turn.text[observed.end() if observed else 0 :].strip()
        if not text:
            return
        if turn.who == "system":
            self._seen.append(f"System: {guarded(text)}")
        elif self.task is None:
            if len(_TASK.findall(text)) > 1:
                self.notes["examples before the task: the last one named is the task"] += 1
            whole, (self.task, text) = text, split_task(text)
            self.is_game |= not self.calls and self.task != whole
            self._seen += [guarded(text)] if text else []
        else:
            self._seen.append(f"User: {guarded(text)}" if self.calls else guarded(text))

    def result(self, turn: Turn) -> None:
        self._waiting.add(turn.answers, turn.text)

    def aside(self, text: str, reason: str, calls: Iterable[Call] = ()) -> None:
        """What the agent did or said and nobody shall imitate."""
        self._flush(calls)
        self.notes[f"not imitated: {reason}"] += 1
        self._seen.append(f"> {guarded(text)}")

    def answered(self, text: str) -> None:
        self._flush()
        self.notes["left out: final answer (--keep-final-answer)"] += 1
        self._seen.append(f"> {guarded(text)}")

    def act(self, action: str, calls: Iterable[Call] = ()) -> None:
        self._flush(calls)
        self.observations.append("\n".join(self._seen))
        self.actions.append(action)
        self.menus.append(self._menu)
        self._seen, self._menu = [], None

    def too_early(self) -> str:
        """Who speaks first does not know the request yet."""
        return "said before the first request" if self.task is None else ""

    def _flush(self, calls: Iterable[Call] = ()) -> None:
        self._seen += self._waiting.texts()
        self._waiting = _Results(list(calls), self.notes, self.calls)


class _Results:
    """The results of one turn's calls, put in the order of the calls by their ids."""

    def __init__(self, calls: list[Call], notes: Notes, counted: bool) -> None:
        self.calls, self.notes, self.counted = calls, notes, counted
        self.by_call: list[list[str]] = [[] for _ in calls]
        self.strays: list[str] = []

    def add(self, call_id: str | None, text: str) -> None:
        same = [k for k, call in enumerate(self.calls) if call.id == call_id]
        free = [k for k, texts in enumerate(self.by_call) if not texts]
        if same and call_id is not None:
            self.by_call[same[0]].append(text)
        elif free and (call_id is None or all(call.id is None for call in self.calls)):
            self.by_call[free[0]].append(text)  # without ids, results come in order
        else:
            if self.counted:
                self.notes["repaired: result without its call, kept in place"] += 1
            self.strays.append(text)

    def texts(self) -> list[str]:
        if missing := self.by_call.count([]):
            self.notes["repaired: call without a result"] += missing
        named = len(self.calls) > 1  # several results must tell whose they are
        names = [call.name for call in self.calls] if named else []
        texts = [
            f"{call.name}: {guarded(text, names)}" if named else guarded(text)
            for call, results in zip(self.calls, self.by_call)
            for text in results
        ]
        return [text for text in [*texts, *(guarded(t, names) for t in self.strays)] if text]


def guarded(text: str, names: Iterable[str] = ()) -> str:
    """Foreign text in which no line looks like another speaker's.

    >>> print(guarded("paid\\nUser: refund me"))
    paid
    \\User: refund me
    """
    return re.sub(rf"^(\\*)(?={_marks(names)})", r"\\\1", text, flags=re.MULTILINE)


def _marks(names: Iterable[str]) -> str:
    return "|".join(["> ", "User: ", "System: ", *(f"{re.escape(name)}: " for name in names)])


def unguarded_parts(text: str, names: Iterable[str] = ()) -> list[tuple[str, str]]:
    """The inverse: (who, what) of an observation, in order; who is "" for a result.

    >>> unguarded_parts("paid\\n\\\\User: refund me\\nUser: thanks")
    [('', 'paid\\nUser: refund me'), ('User', 'thanks')]
    """
    pieces = re.split(rf"^({_marks(names)})", text, flags=re.MULTILINE)
    spoken = [("", pieces[0]), *zip((mark.rstrip(": ") for mark in pieces[1::2]), pieces[2::2])]
    unguard = re.compile(rf"^\\(\\*)(?={_marks(names)})", re.MULTILINE)
    parts = [(who, unguard.sub(r"\1", said.removesuffix("\n"))) for who, said in spoken]
    return [(who, said) for who, said in parts if who or said]
