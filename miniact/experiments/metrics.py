"""What every logged figure means: metrics.txt, read, and the one walk over an evaluation.

docs/reference.md lists them, a report's tooltips and the words under a run's table say them, and a
test compares them with what is really logged. To log another metric, define it in metrics.txt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One logged figure. In `name`, a word in CAPITALS stands for any word."""

    name: str
    unit: str  # and range
    meaning: str
    healthy: str  # what a good curve looks like, where that is known
    stages: tuple[str, ...] = ()  # TRAINING: who logs it; ("all",)
    label: str = ""  # EVALUATION: its row in the tables of results

    def row(self, path: str) -> str | None:
        """The label of the row that shows the figure at `path`; indented: part of the one above."""
        match = re.fullmatch(re.sub("[A-Z]{2,}", "([^.]+)", re.escape(self.name)), path)
        if not (match and self.label):
            return None
        indent = "" if path.endswith((".success", ".accuracy")) else "  "
        filled = re.sub("[A-Z]{2,}", lambda _: match[1], self.label)
        of_split = f", {match[1]}" if match.groups() and filled == self.label else ""
        return indent + filled + of_split


def _read(text: str) -> Iterator[Metric]:
    for block in re.findall(r"^[^#\s].*\n(?: .*\n)+", text, re.MULTILINE):
        head, *lines = block.splitlines()
        name, who, unit = head.split(" · ")
        meaning, _, healthy = " ".join(map(str.strip, lines)).partition(" healthy: ")
        if "." in name:
            yield Metric(name, unit, meaning, healthy, label=who.strip("–"))
        else:
            yield Metric(name, unit, meaning, healthy, stages=tuple(who.split()))


_ALL = tuple(_read(Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")))
TRAINING = tuple(m for m in _ALL if m.stages)  # the fields of metrics.jsonl
EVALUATION = tuple(m for m in _ALL if not m.stages)  # the figures of eval.json, by their path


def figures(evaluation: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """(path, figure) of everything in an evaluation; a rate {value, n, low, high} is one figure."""
    for name, inner in evaluation.items():
        if isinstance(inner, dict) and "value" not in inner:
            yield from figures(inner, f"{where}{name}.")
        else:
            yield where + name, inner


def numbers(evaluation: dict[str, Any]) -> dict[str, float]:
    """Every figure that was measured as one number, by its path: splits/id/success, …"""
    plain = (
        (path, figure["value"] if isinstance(figure, dict) else figure)
        for path, figure in figures(evaluation)
    )
    return {path.replace(".", "/"): float(x) for path, x in plain if isinstance(x, (int, float))}


def labelled(evaluation: dict[str, Any]) -> dict[str, tuple[Metric, dict[str, Any]]]:
    """Label of a table row → what it means and its rate, for whatever was measured."""
    return {
        label: (metric, figure)
        for path, figure in figures(evaluation)
        for metric in EVALUATION
        if isinstance(figure, dict) and (label := metric.row(path))
    }


def rates(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Label of a table row → its rate."""
    return {label: rate for label, (_, rate) in labelled(evaluation).items()}
