"""What a run folder or a comparison folder holds, read for `miniact report`.

Damaged lines of the long files are left out and named; what a report cannot do without is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from miniact import UserError
from miniact.experiments.results import rows as rate_paths
from miniact.runs.folder import parse, read_json


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


def read_lines(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The rows of a JSONL file; [] if there is none. Damaged lines are named in `notes`."""
    if not file.is_file():
        return []
    found, bad = [], []
    text = file.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            found.append(row)
        else:
            bad.append(str(number))
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        notes.append(f"{file}: damaged and left out: line {', '.join(bad[:5])}{more}")
    return found


def read_run(path: Path, notes: list[str], name: str = "", seed: int | None = None) -> Run:
    """Read a run folder; `name` and `seed` as a comparison calls it.

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
        stages = [str(stage) for stage in config["recipe"]]
        number = int(config["seed"]) if seed is None else seed
        results = dict(outcome["results"])
        if not results:
            raise ValueError("no evaluation")
        rate_paths(results)
    except (OSError, yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: config.yaml or results.json is not as expected ({reason})"
        ) from None
    metrics: dict[str, list[dict[str, Any]]] = {}
    for row in read_lines(path / "metrics.jsonl", notes):
        if isinstance(row.get("step"), int):
            metrics.setdefault(str(row.get("stage")), []).append(row)
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
        metrics,
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
