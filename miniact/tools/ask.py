"""`miniact ask`: states in, actions out; or which of two actions is better, and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from miniact import UserError
from miniact.runs.files import write_text
from miniact.tools.agent import Agent, load_agent, prompt_of, read_states, state_of
from miniact.types import State

Item = tuple[State, tuple[str, ...]]  # a state, and the actions that stand beside it


@dataclass(frozen=True)
class Asked:
    """The options of the command."""

    task: str | None = None
    observation: str = ""
    judge: bool = False
    candidate: tuple[str, ...] = ()
    temperature: float = 0.0
    show_prompt: bool = False
    model: str = ""


def ask_all(where: Path, file: Path | None, asked: Asked) -> Iterator[str]:
    """The lines to print: an action, a judgement or a prompt for each state."""
    states = list(_states(file, asked))  # what cannot be read is told before a model is loaded
    if asked.show_prompt:
        for state, _ in states:
            yield json.dumps(prompt_of(where, state, asked.model), ensure_ascii=False, indent=2)
        return
    agent = load_agent(where, asked.model)
    for state, actions in states:
        if asked.judge:
            yield from _judged(agent, state, (*actions, *asked.candidate), asked.temperature)
        else:
            action = agent.act(state, asked.temperature)
            yield "(no action could be read)" if action is None else action


def _states(file: Path | None, asked: Asked) -> Iterator[Item]:
    if asked.task is not None:
        yield state_of({"task": asked.task, "observation": asked.observation}, "--task")
    elif file is not None and str(file) != "-":
        yield from read_states(file)
    else:
        yield from _from_stdin()


def _from_stdin() -> Iterator[Item]:
    """The standard input may hold all that a file may: it becomes one for the moment."""
    from tempfile import TemporaryDirectory

    text = sys.stdin.read()
    if not text.strip():
        raise UserError(
            "ask: nothing to read; expected FILE, JSON on the standard input, or --task"
        )
    with TemporaryDirectory() as folder:
        file = Path(folder) / "stdin.jsonl"
        write_text(file, text)
        yield from read_states(file)


def _judged(
    agent: Agent, state: State, actions: tuple[str, ...], temperature: float
) -> Iterator[str]:
    """The actions, what was thought, and the choice. Beside a single action stands its own."""
    if not actions:
        raise UserError("--judge: expected an action; --candidate, or actions in the state")
    if len(actions) == 1:
        own = agent.act(state, temperature)
        if own is None or own in actions:
            yield f"its own action is the same: {own}" if own else "(no action could be read)"
            return
        actions = (*actions, own)
    judgement = agent.judge(state, actions, temperature)
    for number, action in enumerate(judgement.actions, start=1):
        yield f"{number}: {action}"
    if judgement.reasoning:
        yield f"\n{judgement.reasoning}\n"
    if judgement.choice is None:
        yield f"no choice could be read: {judgement.reply.strip()}"
    else:
        yield f"better: {judgement.choice + 1}"
