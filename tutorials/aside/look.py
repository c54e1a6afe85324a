"""Looking at a run folder in plain text, and the picture of tutorial 00."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console

from aside.pictures import guessing, intervals, name_places, panels
from miniact.experiments.metrics import rates
from miniact.experiments.words import sentences
from miniact.tools.play import show_item


def show(run: Path, what: str, number: int | None = None) -> None:
    """`miniact show RUN episode`, as text that a notebook keeps."""
    plain = Console(width=88, force_jupyter=False, force_terminal=False)
    show_item(run, what, None, number, plain)


def say(results: dict[str, Any]) -> None:
    """What rose, what fell, and what one seed cannot say."""
    for sentence in sentences(results):
        print(textwrap.fill(sentence, 88))


MEASURES = {  # row of the table of results → what it is
    "success, id": "tasks solved",
    "next action": "the expert's next action",
    "judgement": "the better of two actions",
}


def stages_picture(results: dict[str, Any]) -> None:
    """A panel for each measure: its share after each stage, with its interval."""
    for axis, row in zip(panels(*MEASURES.values(), width=3.4), MEASURES):
        intervals(axis, [rates(result)[row] for result in results.values()])
        name_places(axis, list(results))
        if row == "judgement":
            guessing(axis, 0.5)
            axis.legend(loc="lower right")
