"""Be the critic: held-out questions for the reader, and what the model answered to them."""

from __future__ import annotations

import zlib
from typing import Any

from miniact.experiments.reading import Run, read_rows
from miniact.tools.report.samples import clip, pair_item, spread

QUESTIONS = 12


def quiz(runs: list[Run], notes: list[str]) -> list[dict[str, Any]]:
    """Questions of the run that was trained most as a critic, the answers of each of its stages.

    [] for runs of before judgements.jsonl, or where no question was asked.
    """
    run = max(runs, key=lambda run: (sum("act" in stage for stage in run.results), -run.seed))
    states = {}
    for row in read_rows(run.path / "pairs.jsonl", notes):
        try:
            states[row["state"]["id"]] = pair_item(row)
        except (LookupError, TypeError, AttributeError):
            continue  # named where the pairs are read as samples
    asked: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    for stage in run.results:
        folder = run.path / "stages" / (stage if stage[:1].isdigit() else f"0-{stage}")
        for row in read_rows(folder / "judgements.jsonl", notes):
            if not _is_whole(row) or row["state"] not in states:
                continue
            key = (row["state"], tuple(row["actions"]))
            state = {k: states[row["state"]][k] for k in ("task", "history", "observation")}
            question = asked.setdefault(
                key,
                {**state, "actions": [clip(a) for a in row["actions"]], "right": row["right"],
                 "id": row["state"], "answers": []},
            )  # fmt: skip
            answer = {"stage": stage, "choice": row["choice"], "reply": clip(row["reply"])}
            question["answers"].append(answer)
    return spread(_one_order_each(list(asked.values())), QUESTIONS)


def _one_order_each(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every question once, in an order that its name decides: nothing to guess by."""
    orders: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for question in asked:
        orders.setdefault((question["id"], *sorted(question["actions"])), []).append(question)
    return [same[zlib.crc32("/".join(name).encode()) % len(same)] for name, same in orders.items()]


def _is_whole(row: dict[str, Any]) -> bool:
    actions, right, choice = row.get("actions"), row.get("right"), row.get("choice")
    known = isinstance(actions, list) and all(isinstance(a, str) for a in actions)
    places = range(len(actions)) if known and isinstance(actions, list) else range(0)
    named = isinstance(row.get("state"), str) and isinstance(row.get("reply"), str)
    return bool(named and right in places and (choice is None or choice in places))
