"""How the two sample logs were made: python dev/make_logs.py

The household world is played by its own expert; one episode in twelve by a player at random, who
fails (success: false), as some agents in any real log do. Both logs are in OpenAI's chat format,
one conversation a line, and hold no more than a log would: no state of the world, no admissible
actions, no splits.

    household-chat.jsonl          the agent writes its command as text
    household-toolcalls.jsonl     the agent acts by tool calls, and ends with a text to the user
    household-trajectories.jsonl  what `miniact import --format chat` makes of the first

Same seed, same bytes; a test makes them again and compares.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import miniact
from miniact.data.importing import import_log
from miniact.envs.household import Household
from miniact.runs.files import write_jsonl

SEED = 2026
EPISODES = {"chat": 88, "toolcalls": 22}
RULES = "You are a household robot. Solve the user's task, one command at a time."
_PATTERNS = {  # command of the world → tool, with the names of its arguments
    r"go to (?P<place>.+)": "go_to",
    r"take (?P<object>.+) from (?P<place>.+)": "take",
    r"move (?P<object>.+) to (?P<place>.+)": "put",
    r"(?P<how>clean|heat|cool) (?P<object>.+) with (?P<place>.+)": "treat",
    r"open (?P<place>.+)": "open",
    r"close (?P<place>.+)": "close",
    r"use (?P<object>.+)": "use",
    r"examine (?P<thing>.+)": "examine",
    r"look": "look",
    r"inventory": "inventory",
}

Turns = list[tuple[str, str]]  # (observation, command)


def episodes(n: int, seed: int) -> Iterator[tuple[str, str, Turns, bool]]:
    """(id, task, turns, solved) of n episodes on train tasks."""
    env = Household(max_steps=20)
    for number, task_id in enumerate(env.tasks("train", n, seed)):
        rng = random.Random(f"{task_id}/{seed}")
        task, turn = env.reset(task_id)
        turns: Turns = []
        while not turn.done:
            lost = number % 12 == 11
            command = rng.choice(env.admissible()) if lost else env.expert_action()
            turns.append((turn.observation, command or "look"))
            turn = env.step(turns[-1][1])
        yield task_id.replace("/", "-"), task, turns, turn.success


def tool_call(command: str) -> tuple[str, dict[str, str]]:
    for pattern, name in _PATTERNS.items():
        if match := re.fullmatch(pattern, command):
            return name, match.groupdict()
    raise AssertionError(f"no tool for {command!r}")


def chat_row(id_: str, task: str, turns: Turns, solved: bool) -> dict[str, Any]:
    messages = [{"role": "system", "content": RULES}]
    for number, (observation, command) in enumerate(turns):
        seen = observation if number else f"Your task is to: {task}\n\n{observation}"
        messages.append({"role": "user", "content": seen})
        messages.append({"role": "assistant", "content": command})
    return {"id": id_, "success": solved, "messages": messages}


def tool_row(id_: str, task: str, turns: Turns, solved: bool) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": RULES}]
    messages.append({"role": "user", "content": f"Your task is to: {task}\n\n{turns[0][0]}"})
    for number, (observation, command) in enumerate(turns):
        if number:
            before = f"call_{number - 1}"
            messages.append({"role": "tool", "tool_call_id": before, "content": observation})
        name, arguments = tool_call(command)
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    last = {"role": "tool", "tool_call_id": f"call_{len(turns) - 1}", "content": "OK."}
    farewell = "Done." if solved else "I could not do it."
    messages += [last, {"role": "assistant", "content": farewell}]
    return {"id": id_, "success": solved, "messages": messages}


def make(folder: Path) -> None:
    rows = {"chat": chat_row, "toolcalls": tool_row}
    for form, n in EPISODES.items():
        file = folder / f"household-{form}.jsonl"
        write_jsonl(file, (rows[form](*episode) for episode in episodes(n, SEED)))
    chat = folder / "household-chat.jsonl"
    import_log(chat, "chat", folder / "household-trajectories.jsonl")


if __name__ == "__main__":
    make(Path(miniact.__file__).parent / "data" / "samples")
