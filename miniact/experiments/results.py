"""The end of a run: results.json, a table for the terminal, and curves.png."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from miniact.experiments.reading import rate_paths, read_metrics
from miniact.runs.files import read_json, write_json, write_text


def _percent(rate: dict[str, Any] | None) -> str:
    if not rate or rate["value"] is None:
        return "–"
    low, high = 100 * rate["low"], 100 * rate["high"]
    return f"{100 * rate['value']:.1f} [{low:.0f}–{high:.0f}]"


def _at(result: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for part in path:
        result = result[part]
    return result


def results_table(results: dict[str, Any]) -> Table:
    """One column per stage, one row per rate: percent with its 95 % interval."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("%, held out", no_wrap=True)
    for name in results:
        table.add_column(name, justify="right", no_wrap=True)
    for label, path in rate_paths(results).items():
        table.add_row(label, *(_percent(_at(result, path)) for result in results.values()))
    for split in next(iter(results.values())).get("splits", {}):
        scores = [result["splits"][split]["score"] for result in results.values()]
        shown = ("–" if score is None else f"{100 * score:.1f}" for score in scores)
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
    shown = {k: v for k, v in rate_paths(results).items() if not k.startswith("  ")}
    shown |= {k.strip(): v for k, v in rate_paths(results).items() if "given valid" in k}
    shown.pop("judgement", None)  # "right, given valid" tells judging and format apart
    for offset, (label, path) in enumerate(shown.items()):
        found = [_at(results[name], path) for name in names]
        xs = [i + 0.06 * offset for i, f in enumerate(found) if f["value"] is not None]
        seen = [f for f in found if f["value"] is not None]
        ys = [100 * f["value"] for f in seen]
        spread = [
            [max(0, y - 100 * f["low"]) for y, f in zip(ys, seen)],
            [max(0, 100 * f["high"] - y) for y, f in zip(ys, seen)],
        ]
        axis.errorbar(xs, ys, spread, marker="o", markersize=4, capsize=2, label=label)
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(0, 100)
    axis.set_ylabel("%, held out, 95 % interval")
    axis.set_title("after each stage")
    if shown:
        axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.grid(alpha=0.2)
