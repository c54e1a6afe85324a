"""What a run folder or a comparison folder holds, read for `miniact report`.

Damaged lines of the long files are left out and named; what a report cannot do without is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from miniact import UserError
from miniact.config.plugins import short
from miniact.experiments.metrics import rates
from miniact.runs.files import read_json, read_jsonl


@dataclass(frozen=True)
class Run:
    """One run folder, read. `results` and `metrics` are by stage: base, 1-il, 2-act, …"""

    path: Path
    name: str  # of its recipe: the folder's name in a comparison
    label: str  # the same for people: il → act → rl
    seed: int
    results: dict[str, Any]
    seconds: dict[str, float]  # of every part, those included that another run did
    shared: frozenset[str]  # the parts that another run of the comparison did
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, list[dict[str, Any]]]


def name_of_start(config: dict[str, Any]) -> str:
    """What the column before any training is called: base, or the adapter that the run began with.

    >>> name_of_start({"model": {"start": "runs/il/stages/1-il/adapter"}})
    '1-il'
    """
    start = (config.get("model") or {}).get("start")
    if not start:
        return "base"
    path = Path(str(start))
    return (path.parent if path.name == "adapter" else path).name or "adapter"


def read_rows(file: Path, notes: list[str] | None) -> list[dict[str, Any]]:
    """The rows of a JSONL file; [] if there is none.

    Damaged lines are left out and named in `notes`; if that is None, the first is a UserError.
    """
    if not file.is_file():
        return []
    bad: list[int] = []
    lines = read_jsonl(file, None if notes is None else bad, "mend it, or run this run again")
    rows = [row for _, _, row in lines]
    if notes is not None and bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        first = ", ".join(map(str, bad[:5]))
        notes.append(f"{file}: damaged and left out: line {first}{more}")
    return rows


def read_metrics(folder: Path, notes: list[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """metrics.jsonl by stage, in order. Damaged lines as in `read_rows`."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(folder / "metrics.jsonl", notes):
        if isinstance(row.get("step"), int):
            stages.setdefault(str(row.get("stage")), []).append(row)
    return stages


def training_cost(metrics: dict[str, list[dict[str, Any]]], stages: Any) -> tuple[int, int]:
    """(optimizer steps, tokens that passed the model) of all training steps in metrics.jsonl.

    stages: the config's section `stage`. A GRPO step without a live group updates nothing.
    """
    steps = tokens = 0
    for stage, logged in metrics.items():
        section = stages.get(stage.partition("-")[2]) or stages.get("plugin") or {}
        updates = section.get("updates", 1)
        steps += updates * sum("grad_norm" in row for row in logged)
        counted = (row.get("tokens") for row in logged)
        tokens += sum(int(n) for n in counted if isinstance(n, (int, float)))
    return steps, tokens


def read_run(path: Path, notes: list[str] | None, name: str = "", seed: int | None = None) -> Run:
    """Read a run folder; `name` and `seed` as a comparison calls it, `notes` as in `read_rows`.

    Raises UserError where there are no results yet, or where they cannot be understood.
    """
    if not (path / "results.json").is_file():
        then = ", then compare again" if name else ""
        raise UserError(
            f"{path}: no results.json: this run is not finished; go on with "
            f"miniact run --resume {path}{then}"
        )
    outcome = read_json(path / "results.json")
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        stages = [short(str(stage)) for stage in config["recipe"]]
        number = int(config["seed"]) if seed is None else seed
        results = dict(outcome["results"])
        if not results:
            raise ValueError("no evaluation")
        for evaluation in results.values():
            rates(evaluation)
    except (OSError, yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: config.yaml or results.json is not as expected ({reason})"
        ) from None
    there = (path / "environment.json").is_file()
    taken = path / "shared.json"
    seconds = outcome.get("seconds") or {}
    return Run(
        path,
        name or "-".join(stages),
        " → ".join(stages) if name in ("", "-".join(stages)) else name,
        number,
        results,
        {part: s for part, s in seconds.items() if "/" not in part},  # a/b is a part of a
        frozenset(read_json(taken).get("seconds") or ()) if taken.is_file() else frozenset(),
        config,
        read_json(path / "environment.json") if there else {},
        read_metrics(path, notes),
    )


def read_folder(folder: Path, notes: list[str]) -> tuple[list[Run], dict[str, Any] | None]:
    """The runs in a folder, and its comparison.json (None for a run folder)."""
    if (folder / "config.yaml").is_file():
        return [read_run(folder, notes)], None
    file = folder / "comparison.json"
    if not file.is_file() and not (folder / "runs").is_dir():
        raise UserError(
            f"{folder}: neither a run folder (with config.yaml) nor a comparison folder (with "
            "comparison.json and runs/)"
        )
    if not file.is_file():
        for path in sorted((folder / "runs").glob("*/seed*")):
            if path.suffix != ".part" and not (path / "results.json").is_file():
                read_run(path, notes, path.parent.name)  # says how to go on
        raise UserError(f"{file}: not there: the comparison is not finished; compare again")
    comparison = read_json(file)
    try:
        rows = {str(row["recipe"]): dict(row) for row in comparison["rows"]}
        names, seeds = (
            [str(n) for n in comparison["recipes"]],
            [int(s) for s in comparison["seeds"]],
        )
        ordered = [rows[name] for name in names]
        if not names or not seeds or any(Path(name).name != name for name in names):
            raise ValueError("no runs, or a recipe that is no folder name")
    except (LookupError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file}: {reason}; expected recipes, seeds, baseline and rows") from None
    runs = [
        read_run(folder / "runs" / name / f"seed{seed}", notes, name, seed)
        for name in names
        for seed in seeds
    ]
    return runs, {**comparison, "rows": ordered}
