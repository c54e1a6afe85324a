"""The end of a run: results.json, a table for the terminal, and curves.png."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from miniact.evaluation.rates import percent, percent_of
from miniact.experiments.columns import print_columns
from miniact.experiments.metrics import rates
from miniact.experiments.reading import name_of_start, read_metrics
from miniact.experiments.words import meanings, sentences
from miniact.runs.files import read_json, write_json, write_text


def print_results(results: dict[str, Any], console: Console) -> None:
    """One column per stage, one row per rate: percent with its 95 % interval."""
    measured = [rates(evaluation) for evaluation in results.values()]
    labels = list(dict.fromkeys(label for rows in measured for label in rows))
    columns = {
        stage: [percent_of(rows.get(label)) for label in labels]
        for stage, rows in zip(results, measured)
    }
    for split in next(iter(results.values())).get("splits", {}):
        parts = {stage: ev["splits"][split] for stage, ev in results.items()}
        scores = {stage: part["score"] for stage, part in parts.items()}
        if all(part["score"] == part["success"]["value"] for part in parts.values()):
            continue  # solved or not is all that this world knows
        labels.append(f"mean score, {split}")
        for stage, score in scores.items():
            columns[stage].append("–" if score is None else percent(score))
    print_columns(console, "%, held out", labels, columns)


def write_report(folder: Path, outcome: dict[str, Any]) -> None:
    """Write results.json, results.txt and curves.png."""
    if (folder / "results.json").is_file():  # keep the timings of the parts that ran before
        before = read_json(folder / "results.json").get("seconds", {})
        outcome = {**outcome, "seconds": {**before, **outcome["seconds"]}}
    plain = Console(width=80, record=True, file=io.StringIO())
    print_results(_named(folder, outcome["results"]), plain)
    write_text(folder / "results.txt", plain.export_text())
    draw_curves(folder, outcome["results"])
    write_json(folder / "results.json", outcome)  # the last: it says that the run is done


def _named(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    """The results with the adapter's name for `base`, where the run began with an adapter."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    start = name_of_start(config)
    return {start if stage == "base" else stage: ev for stage, ev in results.items()}


def print_report(folder: Path, console: Console, verbose: bool = False) -> None:
    """The end of a run: its words and their meaning, the table, what it says, what to do next."""
    outcome = read_json(folder / "results.json")
    results, seconds = _named(folder, outcome["results"]), outcome["seconds"]
    console.print()
    for word, meaning in meanings(results).items():
        _print_wrapped(f"{word}: {meaning}", console, "  ", style="dim")
    console.print()
    print_results(results, console)
    console.print()
    for sentence in sentences(results):
        _print_wrapped(sentence, console, "")
    console.print()
    for command, does in next_commands(folder, results):
        console.print(f"{command}\n    {does}", highlight=False, markup=False, soft_wrap=True)
    if verbose:
        spent = ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items())
        console.print(f"\ntime: {spent}", highlight=False, soft_wrap=True)


def _print_wrapped(text: str, console: Console, indent: str, style: str = "") -> None:
    filled = textwrap.fill(text, console.width, subsequent_indent=indent, break_on_hyphens=False)
    console.print(filled, style=style, highlight=False, markup=False)


def next_commands(folder: Path, results: dict[str, Any]) -> list[tuple[str, str]]:
    """(command, what it does) for whoever has just seen a run end."""
    numbered = (name.partition("-") for name in list(results)[1:])
    stages = [name for number, _, name in numbered if number.isdigit()]
    without = [stage for stage in stages if stage != "act"]
    commands = [
        (
            f"miniact report {folder}",
            "one HTML page: the verdict, a quiz, episodes, the table, curves",
        ),
        (
            f"miniact show {folder} episode",
            "an episode; also pair, group (answers and rewards), thoughts",
        ),
    ]
    if stages:
        last = folder / "stages" / list(results)[-1] / "adapter"
        commands += [
            (f"miniact ask {folder} < state.json", "the next action in a state of your own"),
            (f"miniact export {last} --to merged --out {folder}-model",
             "a model of its own, to serve: docs/serve.md"),
        ]  # fmt: skip
        rows = [",".join(row) for row in ([without] if without != stages else []) + [stages] if row]
        asked = f'--recipes "{"; ".join(rows)}" --seeds 0-4 --out {folder}-seeds'
        compare = f"miniact compare {folder / 'config.yaml'} {asked}"
        commands.append((compare, "the same over five seeds, with and without act" if len(rows) > 1
                         else "the same over five seeds"))  # fmt: skip
    return commands


def draw_curves(folder: Path, results: dict[str, Any]) -> None:
    """One panel per stage with its learning curve, and one with the success after each stage."""
    from matplotlib.figure import Figure  # no pyplot: a notebook's plots stay its own

    stages = read_metrics(folder)
    panels = len(stages) + 1
    figure = Figure(figsize=(3.6 * panels, 3.2), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis, (name, rows) in zip(axes, stages.items()):
        _draw_stage(axis, name, rows)
    _draw_results(axes[-1], results)
    figure.savefig(folder / "curves.part.png", dpi=130)
    (folder / "curves.part.png").replace(folder / "curves.png")


def _smooth(values: list[float], window: int) -> list[float]:
    return [
        sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))
    ]


def _draw_stage(axis: Any, name: str, rows: list[dict[str, Any]]) -> None:
    if "reward" in rows[0]:
        shown = {"correct": "C0", "valid": "C2", "zero_variance": "C7"}
    else:
        shown = {"loss": "C3"}
    window = max(1, len(rows) // 12)
    for metric, colour in shown.items():
        steps = [r["step"] for r in rows if metric in r]
        values = [r[metric] for r in rows if metric in r]
        axis.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
        label = metric.replace("_", " ")
        axis.plot(steps, _smooth(values, window), color=colour, label=label)
    if "reward" in rows[0]:
        axis.set_ylim(-0.02, 1.02)
    else:
        axis.set_ylim(bottom=0)
    axis.set_title(name)
    axis.set_xlabel("step")
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.2)


def _draw_results(axis: Any, results: dict[str, Any]) -> None:
    """Rates after each stage, with their 95 % intervals."""
    names = list(results)
    measured = [rates(evaluation) for evaluation in results.values()]
    shown = [x for x in measured[0] if not x.startswith("  ") or "given valid" in x]
    shown = [x for x in shown if x != "judgement"]  # "right, given valid" is free of format
    for offset, label in enumerate(shown):
        points = [(i, column[label]) for i, column in enumerate(measured) if label in column]
        points = [(i, rate) for i, rate in points if rate["value"] is not None]
        xs = [i + 0.06 * offset for i, _ in points]
        ys = [100 * rate["value"] for _, rate in points]
        spread = [
            [max(0, y - 100 * rate["low"]) for y, (_, rate) in zip(ys, points)],
            [max(0, 100 * rate["high"] - y) for y, (_, rate) in zip(ys, points)],
        ]
        axis.errorbar(xs, ys, spread, marker="o", markersize=4, capsize=2, label=label.strip())
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(0, 100)
    axis.set_ylabel("%, held out, 95 % interval")
    axis.set_title("after each stage")
    if shown:
        axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.grid(alpha=0.2)
