"""What a run's results say: what rose, fell, what its critic thinks of, what one seed cannot say.

A rate is said to have changed where the 95 % intervals of its two values do not overlap: less than
a test would find, and nothing that chance explains easily.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from miniact.evaluation.rates import percent
from miniact.experiments.metrics import labelled, rates

MORE = ("  right, given valid", "  stuck")  # rows inside another that a table cannot do without
ONE_SEED = (
    "What one seed cannot say: the intervals are over the tasks and questions asked, so another "
    "seed may differ by more, what is not named may have changed too, and whether a stage was "
    "worth its cost only a comparison shows."
)


def main_rows(labels: Iterable[str]) -> list[str]:
    """The rows of a table of results that a first reader needs."""
    return [x for x in labels if not x.startswith("  ") or x.startswith(MORE)]


def changes(results: dict[str, Any]) -> Iterator[tuple[str, str, float, float]]:
    """(row, where, before, after) of every change; where: "in 1-il", "over the whole run".

    results: stage → its evaluation, in order.
    """
    measured = {stage: rates(evaluation) for stage, evaluation in results.items()}
    for label in main_rows(next(iter(measured.values()))):
        known = [(stage, rows[label]) for stage, rows in measured.items() if label in rows]
        known = [(stage, rate) for stage, rate in known if rate["value"] is not None]
        steps = [(_where(b), x, y) for (_, x), (b, y) in pairwise(known) if _apart(x, y)]
        if not steps and len(known) > 2 and _apart(known[0][1], known[-1][1]):
            steps = [("over the whole run", known[0][1], known[-1][1])]
        for where, before, after in steps:
            yield label.strip(), where, before["value"], after["value"]


def _where(stage: str) -> str:
    """In a stage; or by thoughts, where the base model is measured with them as well."""
    return f"in {stage}" if stage[:1].isdigit() else "by thinking, untrained"


def _apart(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return bool(a["high"] < b["low"] or b["high"] < a["low"])


def sentences(results: dict[str, Any]) -> list[str]:
    """Three, about a run's results by stage, and one of its thoughts where truth can be told.

    Only the last where nothing was trained.
    """
    if len(results) < 2:
        return [ONE_SEED]
    said: dict[bool, list[str]] = {True: [], False: []}
    for label, where, before, after in changes(results):
        text = f"{label} {percent(before)} → {percent(after)} % {where}"
        said[after > before].append(text)
    rose, fell = ("; ".join(said[way]) for way in (True, False))
    return [
        f"What rose: {rose}." if rose else "Nothing rose by more than its 95 % intervals.",
        f"What fell: {fell}." if fell else "Nothing fell by more than its 95 % intervals.",
        *thought_changes(results),
        ONE_SEED,
    ]


def thought_changes(results: dict[str, Any]) -> Iterator[str]:
    """What each ACT stage changed in what the critic thinks of: the three kinds that moved most."""
    for before, after in pairwise(results):
        if not after.endswith("-act"):
            continue
        was, now = (
            results[stage].get("thoughts", {}).get("judge", {}).get("kinds", {})
            for stage in (before, after)
        )
        shares = {
            kind: tuple(of.get(kind, {}).get("share", 0.0) for of in (was, now))
            for kind in dict.fromkeys([*was, *now])
        }
        moved = sorted(shares, key=lambda kind: -abs(shares[kind][1] - shares[kind][0]))[:3]
        if was and now:
            said = "; ".join(
                f"{k} {percent(shares[k][0])} → {percent(shares[k][1])} %" for k in moved
            )
            yield f"What its critic thinks of, by kind of sentence, in {after}: {said}."


def compared(comparison: dict[str, Any]) -> list[str]:
    """What a comparison says: each row against the baseline, where the interval leaves out 0."""
    rows, seeds = comparison["rows"], comparison["seeds"]
    names = {row["recipe"]: row.get("label") or row["recipe"] for row in rows}
    baseline = names.get(comparison["baseline"], comparison["baseline"])
    said = []
    for row in rows:
        ways: dict[str, list[str]] = {"higher": [], "lower": []}
        for label in main_rows(row.get("difference") or {}):
            change = row["difference"][label]
            if change.get("low") is not None and not change["low"] <= 0 <= change["high"]:
                way = "higher" if change["mean"] > 0 else "lower"
                points = percent(abs(change["mean"]))
                ways[way].append(f"{label.strip()} (by {points} points)")
        told = [f"{way} in {', '.join(which)}" for way, which in ways.items() if which]
        if told:
            said.append(f"{names[row['recipe']]} is {'; '.join(told)} than {baseline}.")
    if len(seeds) < 2:
        return ["With one seed there are no intervals, so no recipe can be told from another."]
    rest = "Nothing else" if said else "No recipe"
    return [
        *said,
        f"{rest} can be told from {baseline} over {len(seeds)} seeds: the 95 % interval of the "
        "paired difference holds 0, which is no proof that there is no difference.",
    ]


def meanings(results: dict[str, Any]) -> dict[str, str]:
    """Word → what it means, for every row of the table of results."""
    metrics = [metric for ev in results.values() for metric, _ in labelled(ev).values()]
    return {
        metric.label.replace("POSITION", "first, second, …"): metric.meaning
        for metric in dict.fromkeys(metrics)
    }
