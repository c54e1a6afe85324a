"""A trained model put to use: `miniact ask`, and `load_agent` for a loop of one's own.

    agent = miniact.load_agent("runs/mine")
    action = agent.act(state)

A run folder, the adapter of one of its stages, or a model that `miniact export --to merged` wrote:
each knows how its prompts were written, and is asked in the same way.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from miniact import UserError
from miniact.backends.common import read_adapter_config
from miniact.backends.protocol import Policy, load_policy
from miniact.config import Config, load_config
from miniact.config.load import with_overrides
from miniact.config.plugins import short
from miniact.data.containers import read_items
from miniact.data.dialogue import BadRow, Call, Dialogue, Turn
from miniact.data.folding import Folding, fold
from miniact.data.messages import read_messages
from miniact.data.readers.rows import read_tools
from miniact.data.trajectories import from_row
from miniact.experiments.settle import open_prompter
from miniact.method.pairs import state_from
from miniact.method.prompts import Prompter
from miniact.runs.folder import number_of
from miniact.tools.export import KEPT
from miniact.types import State


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the critic says of candidate actions. `choice`: an index, None if none can be read."""

    actions: tuple[str, ...]
    choice: int | None
    reasoning: str
    reply: str


@dataclass(frozen=True)
class Agent:
    """A policy with the prompts that it was trained on. Greedy, unless a temperature is given."""

    policy: Policy
    prompter: Prompter
    config: Config
    thinks: bool  # before it acts
    judges: bool = field(default=False)  # whether it thinks before it judges

    def act(self, state: State, temperature: float = 0.0, seed: int = 0) -> str | None:
        """The next action; None where the reply holds none."""
        prompt, most = self.prompter.action(state, self.thinks), self.config.eval.max_tokens
        ((answer,),) = self.policy.sample([prompt.tokens], 1, most, temperature, seed)
        return self.prompter.action_in(answer)

    def judge(
        self, state: State, actions: Sequence[str], temperature: float = 0.0, seed: int = 0
    ) -> Judgement:
        """Which of the actions is better, and what was thought before the choice."""
        if len(actions) < 2:
            raise UserError(f"judge: {len(actions)} actions; expected at least two")
        prompt = self.prompter.critic(state, actions, self.judges)
        most = self.config.eval.judge_max_tokens
        ((answer,),) = self.policy.sample([prompt.tokens], 1, most, temperature, seed)
        choice = self.prompter.parse_choice(answer.text, actions, state.compare)
        thought = re.split("</think>|<choice>", answer.text, maxsplit=1)[0].replace("<think>", "")
        bare = choice is None or self.config.prompt.form == "plain"
        reasoning = "" if bare else thought.strip()
        return Judgement(tuple(actions), choice, reasoning, answer.text)


def load_agent(path: str | Path, model: str = "") -> Agent:
    """The agent of a run folder (its last stage), an adapter of one, or an exported model.

    model: the base model, if it no longer lies where it was. UserError for anything else.
    """
    config, thinks = config_of(Path(path), model)
    policy = load_policy(config.model, config.seed)
    how = config.measuring(thinks)
    return Agent(
        policy,
        Prompter(policy.tokenizer, config.prompt),
        config,
        bool(how.thinking),
        bool(how.judge_thinking),
    )


def config_of(path: Path, model: str = "") -> tuple[Config, bool]:
    """(the config under which what lies there is asked, whether it thinks before it acts)."""
    if (path / "model.safetensors").is_file() and (path / KEPT).is_file():  # exported
        config = load_config(path / KEPT, saved=True)
        settings = [f"model.path={path}", "model.start=", "model.adapter=lora"]
        return with_overrides(config, settings), config.thinks(config.recipe[-1])
    adapter = _last_adapter(path) if (path / "config.yaml").is_file() else path
    run = next((p for p in adapter.absolute().parents if (p / "config.yaml").is_file()), None)
    if run is None or not adapter.is_dir():
        raise UserError(
            f"{path}: no run folder, no adapter in one, and no model with {KEPT}; expected what "
            "miniact run or miniact export --to merged wrote"
        )
    config = load_config(run / "config.yaml", saved=True)
    settings = [f"model.start={adapter}"] if adapter != run else []
    settings += [f"model.path={model}"] if model else []
    if (run / "wording.txt").is_file():
        settings.append(f"prompt.wording={run / 'wording.txt'}")
    stage = adapter.parent.name.partition("-")[2]
    named = next((name for name in config.recipe if short(name) == stage), "")
    if adapter.name == "adapter" and config.model.adapter != "full" and not model:
        read_adapter_config(adapter)
    return with_overrides(config, settings), bool(named) and config.thinks(named)


def _last_adapter(run: Path) -> Path:
    """The adapter of a run's last finished stage."""
    stages = [path for path in run.glob("stages/*/adapter") if path.is_dir()]
    if not stages:
        raise UserError(f"{run}: no stage is trained yet; miniact run --resume {run}")
    return max(stages, key=lambda path: number_of(path.parent.name))


# ---- states ------------------------------------------------------------------------------------


def read_states(file: Path) -> Iterator[tuple[State, tuple[str, ...]]]:
    """Every state of a JSON or JSONL file, with the candidate actions that stand beside it."""
    for where, _, item in read_items(file):
        try:
            row = item if isinstance(item, (dict, list)) else json.loads(item)
        except (ValueError, RecursionError):
            raise UserError(f"{where}: not a complete JSON value: {item[:40]!r}…") from None
        yield state_of(row, where)


def state_of(row: Any, where: str) -> tuple[State, tuple[str, ...]]:
    """A state as a state or as a running dialogue: {"messages": […], "tools": […]}."""
    row = {"messages": row} if isinstance(row, list) else row
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a state with task and observation, or messages")
    actions = row.get("actions") or row.get("candidates") or []
    if not isinstance(actions, list) or not all(isinstance(a, str) for a in actions):
        raise UserError(f"{where}: actions must be a list of texts")
    if "messages" in row:
        return _running(row, where), tuple(actions)
    given = {"id": where, "history": [], "observation": ""} | row
    try:
        return state_from({"state": given}), tuple(actions)
    except ValueError as error:
        raise UserError(f"{where}: {error}; or give messages, as an agent loop does") from None


def _running(row: dict[str, Any], where: str) -> State:
    """The state at the end of a dialogue, as the import would make it of the finished one."""
    notes = Counter[str]()
    try:
        turns, tools = read_messages(row["messages"], "messages", notes), read_tools(row, notes)
        calls = bool(tools) or any(turn.calls for turn in turns)
        here = Turn("agent", "pending", [Call("pending", {})] if calls else [], plain=not calls)
        folded = fold(Dialogue([*turns, here], row, tools=tools), Folding(calls), notes)
    except BadRow as error:
        raise UserError(f"{where}: {error}") from None
    trajectory = from_row(folded, where)
    return replace(trajectory.state(len(trajectory.steps) - 1), id=where)


def prompt_of(path: Path, state: State, model: str = "") -> dict[str, Any]:
    """What a server must be sent so that the model sees what it was trained on; loads no weights.

    messages, tools, chat_template_kwargs: for /v1/chat/completions; prompt: the same as text, for
    /v1/completions.
    """
    config, thinks = config_of(path, model)
    prompter, _ = open_prompter(config)
    thinking = bool(config.measuring(thinks).thinking)
    messages, tools = prompter.sent(state, thinking)
    prompt = prompter.tokenizer.decode(prompter.action(state, thinking).tokens)
    sent: dict[str, Any] = {"messages": messages}
    sent |= {"tools": tools} if tools else {}
    if switch := prompter.template.switch:
        sent["chat_template_kwargs"] = {switch: thinking}
    return {**sent, "prompt": prompt, "max_tokens": config.eval.max_tokens}
