"""How far the expert itself gets: `miniact eval CONFIG --policy expert`, no model needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from miniact import UserError
from miniact.config import Config
from miniact.envs import Env, make_env
from miniact.evaluation.evaluate import percent, percent_of, rate
from miniact.runs.files import write_json
from miniact.runs.progress import Bar


def play(env: Env, task_id: str) -> dict[str, Any]:
    """One episode of the expert, until it ends or the expert knows no further."""
    _, turn = env.reset(task_id)
    steps = 0
    while not turn.done and (action := env.expert_action()) is not None:
        turn = env.step(action)
        steps += 1
    return {"task": task_id, "success": turn.success, "score": turn.score, "steps": steps}


def evaluate_expert(config: Config, out: Path | None, console: Console) -> dict[str, Any]:
    """Success, mean score and mean length of the expert per split; written to out/expert.json.

    `eval.episodes` episodes of every split that the environment has, and the tasks that it failed.
    """
    if config.env.name == "none":
        raise UserError("--policy expert: env.name is none; expected an environment")
    env = make_env(config.env.name, **config.env.options)
    found: dict[str, Any] = {}
    try:
        for split in env.splits:
            tasks, played = env.tasks(split, config.eval.episodes, config.seed), []
            with Bar(console, split) as bar:
                bar.start(len(tasks))
                for task in tasks:
                    played.append(play(env, task))
                    bar.advance()
            n = max(1, len(played))
            found[split] = {
                "success": rate([p["success"] for p in played]),
                "score": sum(p["score"] for p in played) / n,
                "steps": sum(p["steps"] for p in played) / n,
                "failed": [p["task"] for p in played if not p["success"]],
            }
    finally:
        env.close()
    if out:
        write_json(out / "expert.json", found)
    console.print(table(config.env.name, found))
    return found


def table(name: str, found: dict[str, Any]) -> Table:
    out = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("environment", "split", "success %", "score %", "steps", "n"):
        out.add_column(column, justify="left" if column in ("environment", "split") else "right")
    for split, result in found.items():
        success, score = percent_of(result["success"]), percent(result["score"])
        n = str(result["success"]["n"])
        out.add_row(name, split, success, score, f"{result['steps']:.1f}", n)
    return out
