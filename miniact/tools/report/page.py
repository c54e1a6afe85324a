"""`miniact report`: one HTML file of a run or of a comparison, to open from disk and show around.

A run is a comparison of one recipe with one seed, so there is one way through this file:

    folder ──reading.py──▶ runs ──gather──▶ plain data ──page──▶ page.html

Everything that is seen (tables, curves, samples) is drawn by app.js from that data.
Text of models and environments is never markup: it travels as JSON in which every `<` is escaped,
app.js inserts it as text only, and the page's content policy lets no script run but app.js itself.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable
from importlib import metadata
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from miniact.experiments.metrics import TRAINING, labelled, rates
from miniact.experiments.reading import Run, name_of_start, read_folder, training_cost
from miniact.experiments.words import compared, sentences
from miniact.runs.files import write_asked
from miniact.tools.report.quiz import quiz
from miniact.tools.report.samples import Samples

POINTS = 60  # a curve has at most so many points; each is the mean over the steps between two


# ---- numbers -----------------------------------------------------------------------------------


def over_seeds(rates: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
    """A rate over the seeds: mean and min–max; for one seed its own 95 % interval.

    `counts`: how many episodes, states or answers each seed's value rests on. None: not measured.
    """
    known = [rate for rate in rates if rate and rate.get("value") is not None]
    if not known:
        return None
    values = [rate["value"] for rate in known]
    low, high = min(values), max(values)
    if len(known) == 1:
        low, high = known[0]["low"], known[0]["high"]
    counts = [rate["n"] for rate in known]
    return {"mean": fmean(values), "low": low, "high": high, "seeds": values, "counts": counts}


def evaluations(group: list[Run], labels: Iterable[str]) -> list[dict[str, Any]]:
    """What was measured after each stage of one recipe, over its seeds.

    positions: judgement by the position of the right answer (first, second, …).
    """
    stages = []
    for stage in group[0].results:
        measured = [rates(run.results.get(stage) or {}) for run in group]
        merged = {x.strip(): over_seeds(column.get(x) for column in measured) for x in labels}
        positions = {x[7:]: rate for x, rate in merged.items() if x.startswith("expert ")}
        stages.append({"stage": stage, "rates": merged, "positions": positions})
    return stages


def curve(seeds: list[dict[int, float]]) -> dict[str, list[float]]:
    """One metric over steps. seeds: per seed, step → value. Steps are put together in bins.

    Returns x (first step of each bin) and, over the seeds' means in it, y (mean), low and high.
    """
    width = math.ceil((max(map(max, seeds)) + 1) / POINTS)
    shown: dict[str, list[float]] = {"x": [], "y": [], "low": [], "high": []}
    for start in sorted({step // width * width for s in seeds for step in s}):
        bins = [[v for step, v in s.items() if step // width * width == start] for s in seeds]
        means = [fmean(values) for values in bins if values]
        for name, value in zip(shown, (start, fmean(means), min(means), max(means))):
            shown[name].append(float(f"{value:.5g}"))
    return shown


def curves(group: list[Run]) -> list[dict[str, Any]]:
    """Every training metric of one recipe, by stage."""
    charts = []
    for stage in dict.fromkeys(stage for run in group for stage in run.metrics):
        rows = [run.metrics[stage] for run in group if stage in run.metrics]
        names = dict.fromkeys(name for per_seed in rows for row in per_seed for name in row)
        for name in names:
            if name in ("stage", "step", "time"):
                continue
            seeds = [
                {int(r["step"]): r[name] for r in per_seed if isinstance(r.get(name), (int, float))}
                for per_seed in rows
            ]
            seeds = [s for s in seeds if s]
            if seeds:
                charts.append({"stage": stage, "metric": name, "n": len(seeds), **curve(seeds)})
    return charts


def recipe_rows(
    groups: list[list[Run]], labels: Iterable[str], comparison: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """One row per recipe: its evaluations, its curves, its cost and, if compared, its row."""
    rows = []
    for number, group in enumerate(groups):
        parts = dict.fromkeys(part for run in group for part in run.seconds)
        row = comparison["rows"][number] if comparison else {}
        costs = [training_cost(run.metrics, run.config.get("stage") or {}) for run in group]
        rows.append({
            "name": group[0].name,
            "label": group[0].label,
            "seeds": [run.seed for run in group],
            "evaluations": evaluations(group, labels),
            "curves": curves(group),
            "seconds": {part: fmean(run.seconds.get(part, 0) for run in group) for part in parts},
            "steps": row.get("steps", fmean(steps for steps, _ in costs)),
            "tokens": row.get("tokens", fmean(tokens for _, tokens in costs)),
            "compared": {k.strip(): v for k, v in (row.get("metrics") or {}).items()},
            "difference": {k.strip(): v for k, v in (row.get("difference") or {}).items()},
        })  # fmt: skip
    return rows


# ---- the page ----------------------------------------------------------------------------------


def gather(folder: Path) -> dict[str, Any]:
    """All that the page shows, as plain data."""
    notes: list[str] = []
    runs, comparison = read_folder(folder, notes)
    groups = [list(group) for _, group in groupby(runs, lambda run: run.name)]
    shown = labelled(next(iter(runs[0].results.values())))
    return {
        "folder": folder.resolve().name,
        "compared": comparison is not None,
        "baseline": comparison.get("baseline") if comparison else None,
        "recipes": recipe_rows(groups, shown, comparison),
        "metrics": [{"label": x.strip(), "main": not x.startswith(" ")} for x in shown],
        "meanings": {
            **{x.strip(): metric.meaning for x, (metric, _) in shown.items()},
            **{f"{stage}/{m.name}": m.meaning for m in TRAINING for stage in m.stages},
        },
        "runs": [
            {
                "recipe": number,
                "seed": run.seed,
                "model": (run.config.get("model") or {}).get("path"),
                "world": (run.config.get("env") or {}).get("name"),
                "seconds": {p: s for p, s in run.seconds.items() if p not in run.shared},
                "environment": run.environment,
            }
            for number, group in enumerate(groups)
            for run in group
        ],
        "verdict": compared(comparison) if comparison else sentences(named_results(runs[0])),
        "start": name_of_start(runs[0].config),
        "quiz": quiz(runs, notes),
        "samples": Samples(runs, notes).gather(),
        "notes": notes,
        "version": metadata.version("miniact"),
    }


def named_results(run: Run) -> dict[str, Any]:
    """Its results, with the adapter's name for `base` where it began with one."""
    start = name_of_start(run.config)
    return {start if stage == "base" else stage: ev for stage, ev in run.results.items()}


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def page(data: dict[str, Any]) -> str:
    """The whole file. Only the one script and the one style with these hashes may take effect."""
    assets = Path(__file__).parent
    style, script = ((assets / n).read_text("utf-8") for n in ("style.css", "app.js"))
    rules = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",  # setting innerHTML is an error
        "trusted-types": "'none'",
    }
    parts = {
        "policy": "; ".join(f"{name} {value}" for name, value in rules.items()),
        "title": html.escape(f"{data['folder']} – miniact report"),
        "style": style,
        "script": script,
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    template = (assets / "page.html").read_text("utf-8")
    return re.sub(r"{{(\w+)}}", lambda m: parts[m[1]], template)


def write_html(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder or a comparison folder; returns where it is.

    Raises UserError where there is nothing to report yet, or where the file cannot be written.
    """
    out = out or folder / "report.html"
    write_asked(out, page(gather(folder)))
    return out
