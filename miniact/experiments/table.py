"""The table of a comparison: mean ± std over seeds, 95 % intervals, paired differences.

Over the n seeds of a recipe, with t the 97.5 % quantile of Student's distribution, n − 1 degrees:

    mean ± std,   interval mean ± t·std/√n,   difference: the same of (x_seed − baseline_seed)

A seed fixes tasks, held-out states, pairs and the fresh adapter, so differences within a seed are
free of what the seeds differ in. The intervals are over seeds, whose values they take as normal.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from miniact.evaluation.rates import percent
from miniact.experiments.columns import print_columns
from miniact.experiments.metrics import rates
from miniact.experiments.reading import Run, read_run, training_cost
from miniact.experiments.words import compared, main_rows
from miniact.runs.files import write_json, write_text

NO_BREAK = "\u00a0"  # a space at which no line ends


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (n − 1) and 95 % t interval; None where one value says nothing.

    >>> spread = summary([0.1, 0.2, 0.3])
    >>> [round(spread[k], 3) for k in ("mean", "std", "low", "high")]
    [0.2, 0.1, -0.048, 0.448]
    """
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return {"mean": mean, "std": None, "low": None, "high": None, "n": n}
    from scipy.stats import t

    std = statistics.stdev(values)
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return {"mean": mean, "std": std, "low": mean - half, "high": mean + half, "n": n}


def within(spread: dict[str, Any]) -> dict[str, Any]:
    """The summary of a share: no interval reaches under 0 or over 1."""
    if spread["low"] is None:
        return spread
    return {**spread, "low": max(0.0, spread["low"]), "high": min(1.0, spread["high"])}


def measured(run: Run) -> dict[str, float]:
    """Every rate of a run's last evaluation, by the label of its table row."""
    last = run.results[list(run.results)[-1]]
    values = {label: rate["value"] for label, rate in rates(last).items()}
    for split, result in last.get("splits", {}).items():
        values[f"mean score, {split}"] = result.get("score")
    return {label: value for label, value in values.items() if value is not None}


def build(
    folder: Path, labels: dict[str, str], seeds: Sequence[int], baseline: str
) -> dict[str, Any]:
    """comparison.json of finished runs. labels: recipe name → what people read.

    If the baseline itself is not among them, there are no differences.
    """
    runs = {
        name: [read_run(folder / "runs" / name / f"seed{s}", None, name, s) for s in seeds]
        for name in labels
    }
    values = {name: [measured(run) for run in group] for name, group in runs.items()}
    drop_plain_scores(values)
    rows = []
    for name, group in runs.items():
        costs = [training_cost(r.metrics, r.config.get("stage") or {}) for r in group]
        known = [label for label in values[name][0] if all(label in v for v in values[name])]
        metrics = {}
        for label in known:
            over_seeds = [v[label] for v in values[name]]
            metrics[label] = {**within(summary(over_seeds)), "seeds": over_seeds}
        difference = {}
        if name != baseline and baseline in runs:
            for label in known:
                if all(label in v for v in values[baseline]):
                    pairs = zip(values[name], values[baseline])
                    difference[label] = summary([mine[label] - base[label] for mine, base in pairs])
        rows.append({
            "recipe": name,
            "label": labels[name],
            "steps": statistics.fmean(steps for steps, _ in costs),
            "tokens": statistics.fmean(tokens for _, tokens in costs),
            "metrics": metrics,
            "difference": difference,
        })  # fmt: skip
    return {"recipes": list(labels), "seeds": list(seeds), "baseline": baseline, "rows": rows}


def drop_plain_scores(values: dict[str, list[dict[str, float]]]) -> None:
    """Leave out mean scores where reward is all or nothing: they are the success rates again."""
    runs = [run for group in values.values() for run in group]
    for score in {label for run in runs for label in run if label.startswith("mean score")}:
        success = score.replace("mean score", "success")
        if all(run.get(score) == run.get(success) for run in runs):
            for run in runs:
                run.pop(score, None)


def columns(comparison: dict[str, Any]) -> list[str]:
    """The metrics that the table shows; comparison.json has them all."""
    labels = dict.fromkeys(label for row in comparison["rows"] for label in row["metrics"])
    return main_rows(labels)


def _interval(spread: dict[str, Any], sign: bool = False) -> str:
    if spread["low"] is None:
        return ""
    low, high = (percent(spread[end], sign, digits=0) for end in ("low", "high"))
    return f"[{low}, {high}]"


def cell(row: dict[str, Any], label: str) -> list[str]:
    """`mean ± std`, `[interval]` and `Δ difference [interval]`, in percent and points."""
    spread, change = row["metrics"].get(label), row["difference"].get(label)
    if spread is None:
        return ["–"]
    lines = [percent(spread["mean"])]
    if spread["std"] is not None:
        lines = [f"{lines[0]} ± {percent(spread['std'])}", _interval(spread)]
    if change is not None:
        shown = percent(change["mean"], sign=True)
        lines.append(f"Δ {shown} {_interval(change, sign=True)}".rstrip())
    return lines


def _count(n: float) -> str:
    return f"{n / 1e6:.2f} M" if n >= 1e6 else f"{n / 1e3:.0f} k" if n >= 1e4 else f"{n:.0f}"


def _unbroken(text: str) -> str:
    """A difference and its interval on two lines, and no other break: narrow, straight columns."""
    return re.sub(r"(Δ \S+) ", r"\1<br>", text).replace(" ", "&nbsp;")


def markdown(comparison: dict[str, Any]) -> str:
    """The table with everything that it knows."""
    shown = columns(comparison)
    lines = [
        "| recipe | steps | tokens | " + " | ".join(label.strip() for label in shown) + " |",
        "|---|---:|---:|" + "---|" * len(shown),
    ]
    for row in comparison["rows"]:
        name = row["label"] + (" (baseline)" if row["recipe"] == comparison["baseline"] else "")
        cells = ("<br>".join(cell(row, label)) for label in shown)
        start = (name, f"{row['steps']:.0f}", _count(row["tokens"]))
        lines.append(f"| {' | '.join(map(_unbroken, (*start, *cells)))} |")
    return "\n".join(lines) + "\n"


def short_markdown(comparison: dict[str, Any]) -> str:
    """The table for a README: one rounded number a cell, ▲ or ▼ where it differs for sure."""
    labels = [x for x in columns(comparison) if not x.startswith("  stuck")]
    header = ["recipe", "tokens", *(label.strip() for label in labels)]
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    for row in comparison["rows"]:
        cells = [row["label"], _count(row["tokens"]), *(_short(row, label) for label in labels)]
        lines.append(f"| {' | '.join(cell.replace(' ', NO_BREAK) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _short(row: dict[str, Any], label: str) -> str:
    measured, change = row["metrics"].get(label), row["difference"].get(label)
    if measured is None:
        return "–"
    text = percent(measured["mean"], digits=0)
    if measured["std"] is not None:
        text += f" ± {percent(measured['std'], digits=0)}"
    if change is None or change["low"] is None or change["low"] <= 0 <= change["high"]:
        return text
    return f"{text} {'▲' if change['mean'] > 0 else '▼'}"


def short_caption(comparison: dict[str, Any]) -> str:
    """What the short table's cells mean."""
    seeds = ", ".join(map(str, comparison["seeds"]))
    return (
        f"%, held out; mean ± std over seeds {seeds}; ▲ ▼: higher or lower than "
        f"{comparison['baseline']}, where the 95 % interval of the paired difference leaves out 0. "
        "Tokens: those that passed the model in training."
    )


def whole_page(comparison: dict[str, Any]) -> str:
    """comparison.md: the short table, then everything."""
    short = f"{short_markdown(comparison)}\n{short_caption(comparison)}\n"
    return f"{short}\n{markdown(comparison)}\n{caption(comparison)}\n"


def caption(comparison: dict[str, Any]) -> str:
    """What the cells mean, in one sentence or two."""
    seeds = ", ".join(map(str, comparison["seeds"]))
    if len(comparison["seeds"]) == 1:
        return (
            f"%, held out; seed {seeds} alone, so there are no intervals; Δ: difference to "
            f"{comparison['baseline']} in points. Steps are optimizer steps, tokens those that "
            "passed the model in training."
        )
    return (
        f"%, held out; mean ± std over seeds {seeds}, in brackets the 95 % t interval; Δ: paired "
        f"difference to {comparison['baseline']} in points. Steps are optimizer steps, tokens "
        "those that passed the model in training."
    )


def write_comparison(folder: Path, comparison: dict[str, Any]) -> None:
    write_json(folder / "comparison.json", comparison)
    write_text(folder / "comparison.md", whole_page(comparison))


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """The table, in parts where the terminal is narrow; nothing is cut off."""
    rows, shown = comparison["rows"], columns(comparison)
    cells = {
        "steps": [f"{row['steps']:.0f}" for row in rows],
        "tokens": [_count(row["tokens"]) for row in rows],
        **{label.strip(): ["\n".join(cell(row, label)) for row in rows] for label in shown},
    }
    left = [label.strip() for label in shown]
    console.print()
    print_columns(console, "recipe", [row["label"] for row in rows], cells, left)
    console.print(caption(comparison), style="dim", highlight=False)
    console.print()
    for sentence in compared(comparison):
        console.print(sentence, highlight=False, markup=False)
