"""The end of a run: results.json, a table for the terminal, and curves.png."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from miniact.evaluation.evaluate import percent, percent_of
from miniact.experiments.metrics import labelled, rates
from miniact.experiments.reading import read_metrics
from miniact.runs.files import read_json, write_json, write_text


def results_table(results: dict[str, Any]) -> Table:
    """One column per stage, one row per rate: percent with its 95 % interval."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("%, held out", no_wrap=True)
    for name in results:
        table.add_column(name, justify="right", no_wrap=True)
    measured = [rates(evaluation) for evaluation in results.values()]
    for label in measured[0]:
        table.add_row(label, *(percent_of(column.get(label)) for column in measured))
    for split in next(iter(results.values())).get("splits", {}):
        scores = [evaluation["splits"][split]["score"] for evaluation in results.values()]
        shown = ("–" if score is None else percent(score) for score in scores)
        table.add_row(f"mean score, {split}", *shown)
    return table


def write_report(folder: Path, outcome: dict[str, Any]) -> None:
    """Write results.json, results.txt and curves.png."""
    if (folder / "results.json").is_file():  # keep the timings of the parts that ran before
        before = read_json(folder / "results.json").get("seconds", {})
        outcome = {**outcome, "seconds": {**before, **outcome["seconds"]}}
    table = results_table(outcome["results"])
    plain = Console(width=200, record=True, file=io.StringIO())
    plain.print(table)
    write_text(folder / "results.txt", plain.export_text())
    draw_curves(folder, outcome["results"])
    write_json(folder / "results.json", outcome)  # the last: it says that the run is done


def print_report(folder: Path, console: Console) -> None:
    """Print the table of results.json and where everything is."""
    outcome = read_json(folder / "results.json")
    console.print()
    console.print(results_table(outcome["results"]))
    console.print()
    shown = labelled(next(iter(outcome["results"].values())))
    for metric in dict.fromkeys(metric for label, (metric, _) in shown.items() if label[0] != " "):
        about = f"{metric.label}: {metric.meaning}"
        console.print(about, style="dim", highlight=False, soft_wrap=True)
    spent = ", ".join(f"{k} {v:.0f} s" for k, v in outcome["seconds"].items())
    console.print(f"\ntime: {spent}", highlight=False, soft_wrap=True)
    console.print(f"run folder: {folder}  (results.json, curves.png, metrics.jsonl, samples/)")


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
