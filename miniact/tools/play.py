"""Looking at what a run made, and acting in a world by hand."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from miniact import UserError
from miniact.backends.protocol import load_policy
from miniact.config import Config
from miniact.envs import Env, make_env
from miniact.evaluation.episodes import PlayOptions, play_episodes
from miniact.experiments.table import print_comparison
from miniact.method.pairs import read_pairs
from miniact.method.prompts import Prompter
from miniact.runs.files import read_json, read_jsonl
from miniact.runs.folder import number_of
from miniact.tools.thoughts import show_thoughts
from miniact.types import Question


def _entry(
    stages: dict[str, Path], folder: Path, what: str, stage: str | None, number: int | None
) -> tuple[str, dict[str, Any]]:
    """A stage and line `number` of its file; of the last stage that has one, if none is named.

    Without a number it is the first that shows something: see `_tells`.
    """
    in_order = sorted(stages, key=number_of)
    written = {name: stages[name] for name in in_order if stages[name].stat().st_size}
    if stage is None and written:
        stage = list(written)[-1]
    if stage not in written:
        has = ", ".join(written) or "none"
        raise UserError(f"{folder}: no {what} of stage {stage}; has {has}")
    rows = [row for _, _, row in read_jsonl(written[stage])]
    if number is None:
        number = next((i for i, row in enumerate(rows) if _tells(row)), 0)
    if number >= len(rows):
        raise UserError(f"{written[stage]}: has no entry {number}; count from 0")
    return f"{stage}, number {number} of {len(rows)} (-n)", rows[number]


def _tells(row: dict[str, Any]) -> bool:
    """A group with something to learn from: answers whose rewards differ. An episode: a solved."""
    if "answers" in row:
        return len({answer["reward"] for answer in row["answers"]}) > 1
    return bool(row.get("success"))


def show_item(
    folder: Path, what: str, stage: str | None, number: int | None, console: Console
) -> None:
    """Print one pair, group or episode, or the table. Foreign text is never markup."""
    if (folder / "compare.yaml").is_file():
        _show_comparison(folder, what, console)
    elif what == "results":
        file = folder / "results.txt"
        if not file.is_file():
            raise UserError(
                f"{file}: not there; the run is not finished: miniact run --resume {folder}"
            )
        console.print(Text(file.read_text()))
    elif what == "pair":
        pairs = read_pairs(folder / "pairs.jsonl")
        if (number or 0) >= len(pairs):
            raise UserError(
                f"{folder}: has {len(pairs)} pairs, none numbered {number}; count from 0"
            )
        _show_pair(pairs[number or 0], console)
    elif what == "thoughts":
        show_thoughts(folder, number, console)
    elif what == "group":
        stages = {file.stem: file for file in folder.glob("samples/*.jsonl")}
        _show_group(*_entry(stages, folder, what, stage, number), console)
    else:
        stages = {file.parent.name: file for file in folder.glob("stages/*/episodes.jsonl")}
        _show_episode(*_entry(stages, folder, what, stage, number), console)


def _show_comparison(folder: Path, what: str, console: Console) -> None:
    """The table of a comparison; all else is in its runs."""
    if what == "results":
        if not (folder / "comparison.json").is_file():
            raise UserError(f"{folder}: no comparison.json; finish it by the same miniact compare")
        print_comparison(read_json(folder / "comparison.json"), console)
        return
    runs = sorted(file.parent for file in folder.glob("runs/*/*/results.json"))
    first = runs[0] if runs else "RUN"
    raise UserError(
        f"{folder}: is a comparison of {len(runs)} finished runs; a {what} is in one of them, for "
        f"example miniact show {first} {what}"
    )


def _show_pair(pair: Question, console: Console) -> None:
    state = pair.state
    lines = Text()
    for observation, action in state.history:
        lines.append(f"{observation}\n", style="dim")
        lines.append(f"> {action}\n")
    lines.append(state.observation)
    console.print(Panel(lines, title=Text(state.task), title_align="left"))
    console.print(Text.assemble(("expert       ", "green"), pair.expert))
    console.print(Text.assemble(("alternative  ", "red"), pair.alternative))
    console.print(Text(f"{state.id}  split {pair.split}  {pair.provenance}", style="dim"))


def _show_group(stage: str, row: dict[str, Any], console: Console) -> None:
    title = Text(f"{stage}, step {row['step']}")
    console.print(Panel(Text(row["prompt"]), title=title, title_align="left"))
    if len({answer["reward"] for answer in row["answers"]}) == 1:
        console.print("all rewards are equal: nothing is learned from this group", style="dim")
    for answer in row["answers"]:
        colour = "green" if answer["advantage"] > 0 else "red" if answer["advantage"] < 0 else "dim"
        head = f"reward {answer['reward']:.2f}  advantage {answer['advantage']:+.2f}  "
        console.print(Text.assemble((head, colour), answer["reply"].strip() or "(empty)"))


def _show_episode(policy: str, row: dict[str, Any], console: Console) -> None:
    console.print(Text(f"{policy}: {row['task']}   ({row['task_id']})", style="bold"))
    for move in row["moves"]:
        console.print(Text(move["observation"], style="dim"))
        mark = "" if move["applied"] else "   ← did not apply"
        action = move["action"] or f"(unparseable) {move['reply']}"
        console.print(Text.assemble("> ", action, (mark, "red")))
    end = f"{row['stop']} after {len(row['moves'])} actions, score {row['score']:.2f}"
    console.print(Text(end, style="green" if row["success"] else "red"))


def play_task(config: Config, watch: bool, split: str, number: int, console: Console) -> None:
    """Play one task: by hand, or let the config's policy play it."""
    with closing(make_env(config.env.name, **config.env.options)) as env:
        tasks = env.tasks(split, number + 1, config.seed)
        if number >= len(tasks):
            raise UserError(f"--task {number}: split {split} has {len(tasks)} tasks; count from 0")
        if watch:
            _watch(config, env, tasks[number], console)
        else:
            _play_by_hand(env, tasks[number], console)


def _play_by_hand(env: Env, task_id: str, console: Console) -> None:
    task, turn = env.reset(task_id)
    console.print(Text(f"Your task: {task}", style="bold"))
    console.print("help: the actions that apply now; hint: the expert's; quit.", style="dim")
    while not turn.done:
        console.print(Text(turn.observation))
        while (action := console.input("> ").strip()) in ("help", "hint"):
            listed = ", ".join(env.admissible() or ("not listed here",))
            answer = listed if action == "help" else str(env.expert_action())
            console.print(Text(answer, style="cyan"))
        if action == "quit":
            return
        turn = env.step(action)
    console.print(Text(turn.observation))
    console.print(f"{'Solved!' if turn.success else 'Not solved.'} Score {turn.score:.2f}")


def _watch(config: Config, env: Env, task_id: str, console: Console) -> None:
    how = config.measuring(config.thinks())
    policy = load_policy(config.model, config.seed)
    options = PlayOptions(how.temperature, how.max_tokens, bool(how.thinking), config.seed)
    prompter = Prompter(policy.tokenizer, config.prompt)
    (episode,) = play_episodes(policy, prompter, [env], [task_id], options)
    _show_episode(config.model.start or config.model.path, asdict(episode), console)
