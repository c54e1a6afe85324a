"""How far the expert itself gets: `miniact eval CONFIG --policy expert`, no model needed."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from miniact import UserError
from miniact.config import Config
from miniact.envs import Env, make_env
from miniact.evaluation.rates import percent, percent_of, rate
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


def evaluate_expert(config: Config, out: Path, console: Console) -> None:
    """Success, mean score and mean length of the expert per split; written to out/expert.json.

    `eval.episodes` episodes of every split that the environment has, and the tasks that it failed.
    """
    if config.env.name == "none":
        raise UserError("--policy expert: env.name is none; expected an environment")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("environment", "split", "success %", "score %", "steps", "n"):
        table.add_column(column, justify="left" if column in ("environment", "split") else "right")
    results: dict[str, Any] = {}
    with closing(make_env(config.env.name, **config.env.options)) as env:
        for split in env.splits:
            tasks, played = env.tasks(split, config.eval.episodes, config.seed), []
            with Bar(console, split) as bar:
                bar.start(len(tasks))
                for task in tasks:
                    played.append(play(env, task))
                    bar.advance()
            n = len(played)
            success = rate([p["success"] for p in played])
            score, steps = (sum(p[k] for p in played) / max(1, n) for k in ("score", "steps"))
            failed = [p["task"] for p in played if not p["success"]]
            results[split] = {"success": success, "score": score, "steps": steps, "failed": failed}
            shown = (percent_of(success), percent(score), f"{steps:.1f}", str(n))
            table.add_row(config.env.name, split, *shown)
    write_json(out / "expert.json", results)
    console.print(table)
