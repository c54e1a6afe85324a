"""`miniact show RUN thoughts`: what the model thinks after each stage, counted and side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from miniact import UserError
from miniact.evaluation.rates import percent
from miniact.experiments.columns import print_columns
from miniact.runs.files import read_json, read_jsonl
from miniact.runs.folder import number_of

WHO = {"act": "before it acts (all episodes)", "judge": "before it chooses (held-out questions)"}


def show_thoughts(folder: Path, number: int | None, console: Console) -> None:
    """Print the table of kinds, and one held-out question with each stage's reasoning."""
    stages = sorted(
        (file.parent for file in folder.glob("stages/*/eval.json")),
        key=lambda path: (number_of(path.name), path.name),
    )
    if any(stage.name == "0-base-thinking" for stage in stages):  # the same critic, asked alike
        stages = [stage for stage in stages if stage.name != "0-base"]
    measured = {stage.name: read_json(stage / "eval.json").get("thoughts", {}) for stage in stages}
    for who, when in WHO.items():
        columns = {name: thoughts[who] for name, thoughts in measured.items() if who in thoughts}
        if columns:
            print_kinds(columns, when, console)
            console.print()
    judged = {s.name: _rows(s / "judgements.jsonl") for s in stages}
    judged = {name: rows for name, rows in judged.items() if rows}
    if not judged:
        raise UserError(f"{folder}: no critic was asked here; expected eval.pairs above 0")
    questions = len(next(iter(judged.values())))
    if number is None:
        number = next((n for n in range(questions) if _tells(judged, n)), 0)
    if number >= questions:
        raise UserError(f"{folder}: has {questions} held-out questions; count from 0")
    _show_question(judged, number, questions, console)


def print_kinds(columns: dict[str, dict[str, Any]], when: str, console: Console) -> None:
    """A column a stage. Of each kind of sentence its share, and behind it how many are true, %."""
    kinds = dict.fromkeys(kind for t in columns.values() for kind in t["kinds"])
    labels = ["true", "answer follows", "sentences", *(f"  {k}: share, true" for k in kinds)]
    cells = {
        name: [
            *(_share(t["true"]["value"]), _share(t["follows"]["value"]), f"{t['sentences']:.1f}"),
            *(_kind_cell(t["kinds"].get(kind)) for kind in kinds),
        ]
        for name, t in columns.items()
    }
    console.print(f"thoughts {when}, %", highlight=False)
    print_columns(console, "", labels, cells)


def _kind_cell(of_kind: dict[str, Any] | None) -> str:
    return f"{_share(of_kind['share'])}  {_share(of_kind['true']['value']):>3}" if of_kind else "–"


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value, digits=0)


def _rows(file: Path) -> list[dict[str, Any]]:
    return [row for _, _, row in read_jsonl(file)] if file.is_file() else []


def _right(row: dict[str, Any]) -> bool:
    return row["choice"] == row["right"]


def _tells(judged: dict[str, list[dict[str, Any]]], n: int) -> bool:
    """A question that the first was wrong about, and the last is not."""
    first, *_, last = (rows[n] for rows in judged.values())
    return not _right(first) and _right(last)


def _show_question(
    judged: dict[str, list[dict[str, Any]]], n: int, of: int, console: Console
) -> None:
    asked = next(iter(judged.values()))[n]
    console.print(Text(f"question {n} of {of} (-n): {asked['task']}", style="bold"))
    console.print(Text(asked["observation"], style="dim"))
    for i, action in enumerate(asked["actions"]):
        mark = "  ← the expert's" if i == asked["right"] else ""
        console.print(Text.assemble(f"{i + 1}: {action}", (mark, "green")))
    for name, rows in judged.items():
        row = rows[n]
        verdict = ("✓", "green") if _right(row) else ("✗", "red")
        console.print(Text.assemble((f"{name} ", "bold"), verdict, f" {row['reply'].strip()}"))
