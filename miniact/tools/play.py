"""Looking at what a run made, and acting in a world by hand."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from miniact import UserError
from miniact.config import Config
from miniact.envs import make_env
from miniact.method.pairs import read_pairs
from miniact.runs.files import read_jsonl


def _row(file: Path, number: int, hint: str) -> dict[str, Any]:
    """Line `number` of a JSONL file."""
    if not file.is_file():
        raise UserError(f"{file}: not there; {hint}")
    _, _, row = next(islice(read_jsonl(file), number, None), (0, 0, None))
    if row is None:
        raise UserError(f"{file}: has no entry {number}; count from 0")
    return row


def _stage_of(folder: Path, stage: str | None, needs: str) -> str:
    """The named stage, or the last one that has what is needed."""
    pattern = "samples/*.jsonl" if needs == "group" else "stages/*/episodes.jsonl"
    found = sorted(folder.glob(pattern))
    names = [f.stem if needs == "group" else f.parent.name for f in found if f.stat().st_size]
    if stage is None and names:
        return names[-1]
    if stage not in names:
        raise UserError(f"{folder}: no {needs} of stage {stage}; has {', '.join(names) or 'none'}")
    return stage


def show_item(folder: Path, what: str, stage: str | None, number: int, console: Console) -> None:
    """Print one pair, group or episode, or the table. Foreign text is never markup."""
    if what == "results":
        file = folder / "results.txt"
        if not file.is_file():
            raise UserError(
                f"{file}: not there; the run is not finished: miniact run --resume {folder}"
            )
        console.print(Text(file.read_text()))
    elif what == "pair":
        pairs = read_pairs(folder / "pairs.jsonl")
        if number >= len(pairs):
            raise UserError(
                f"{folder}: has {len(pairs)} pairs, none numbered {number}; count from 0"
            )
        _show_pair(pairs[number], console)
    elif what == "group":
        name = _stage_of(folder, stage, "group")
        row = _row(folder / "samples" / f"{name}.jsonl", number, "il has no groups; try --stage")
        _show_group(name, row, console)
    else:
        name = _stage_of(folder, stage, "episode")
        row = _row(folder / "stages" / name / "episodes.jsonl", number, "run an evaluation first")
        _show_episode(name, row, console)


def _show_pair(pair: Any, console: Console) -> None:
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


def _show_group(name: str, row: dict[str, Any], console: Console) -> None:
    title = Text(f"{name}, step {row['step']}")
    console.print(Panel(Text(row["prompt"]), title=title, title_align="left"))
    for answer in row["answers"]:
        colour = "green" if answer["advantage"] > 0 else "red" if answer["advantage"] < 0 else "dim"
        head = f"reward {answer['reward']:.2f}  advantage {answer['advantage']:+.2f}  "
        console.print(Text.assemble((head, colour), answer["reply"].strip() or "(empty)"))


def _show_episode(name: str, row: dict[str, Any], console: Console) -> None:
    console.print(Text(f"{name}: {row['task']}   ({row['task_id']})", style="bold"))
    for move in row["moves"]:
        console.print(Text(move["observation"], style="dim"))
        mark = "" if move["applied"] else "   ← did not apply"
        console.print(
            Text.assemble("> ", move["action"] or f"(unparseable) {move['reply']}", (mark, "red"))
        )
    console.print(
        Text(
            f"{row['stop']} after {len(row['moves'])} actions, score {row['score']:.2f}",
            style="green" if row["success"] else "red",
        )
    )


def play_task(config: Config, watch: bool, split: str, number: int, console: Console) -> None:
    """Play one task: by hand, or let the config's policy play it."""
    env = make_env(config.env.name, **config.env.options)
    try:
        tasks = env.tasks(split, number + 1, config.seed)
        if number >= len(tasks):
            raise UserError(f"--task {number}: split {split} has {len(tasks)} tasks; count from 0")
        if watch:
            _watch(config, env, tasks[number], console)
        else:
            _play_by_hand(env, tasks[number], console)
    finally:
        env.close()


def _play_by_hand(env: Any, task_id: str, console: Console) -> None:
    task, turn = env.reset(task_id)
    console.print(Text(f"Your task: {task}", style="bold"))
    console.print("help: the actions that apply now; hint: the expert's; quit.", style="dim")
    while not turn.done:
        console.print(Text(turn.observation))
        action = console.input("> ").strip()
        while action in ("help", "hint"):
            console.print(
                Text(
                    ", ".join(env.admissible() or ("not listed here",))
                    if action == "help"
                    else str(env.expert_action()),
                    style="cyan",
                )
            )
            action = console.input("> ").strip()
        if action == "quit":
            return
        turn = env.step(action)
    console.print(Text(turn.observation))
    console.print(f"{'Solved!' if turn.success else 'Not solved.'} Score {turn.score:.2f}")


def _watch(config: Config, env: Any, task_id: str, console: Console) -> None:
    from dataclasses import asdict

    from miniact.backends.protocol import load_policy
    from miniact.evaluation.episodes import PlayOptions, play_episodes
    from miniact.method.prompts import Prompter

    policy = load_policy(config.model, config.seed)
    options = PlayOptions(
        config.eval.temperature, config.eval.max_tokens, config.eval.thinking, config.seed
    )
    prompter = Prompter(policy.tokenizer, config.prompt)
    (episode,) = play_episodes(policy, prompter, [env], [task_id], options)
    _show_episode(config.model.start or config.model.path, asdict(episode), console)
