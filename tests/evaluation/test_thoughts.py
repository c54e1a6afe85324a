"""What is counted of thoughts, by hand; and how a run's folder shows it."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from miniact import UserError
from miniact.envs.household import Household
from miniact.evaluation.thoughts import Said, follows, measure_thoughts, thoughts_of
from miniact.tools.play import show_item
from miniact.types import State

ROOM = "You are in the middle of a room. Looking quickly around you, you see a bed 1, and a desk 1."
STATE = State("train/x#0", "put a book in desk.", (), ROOM)
GO, OTHER = "go to bed 1", "go to desk 1"


@pytest.mark.parametrize(
    ("thought", "answer", "candidates", "expected"),
    [
        ("bed 1 not searched", GO, (), True),
        ("bed 1 not searched", OTHER, (), False),
        ("bed 1 not searched", "look", (), None),  # about no thing
        ("i hold nothing", GO, (), None),  # nothing is mentioned
        ("bed 1 not searched", None, (), None),  # no answer could be read
        ("bed 1 not searched", GO, (OTHER, GO), True),
        ("bed 1 not searched", OTHER, (OTHER, GO), False),
        ("bed 1 not searched. desk 1 not searched", GO, (OTHER, GO), None),  # about both alike
    ],
)
def test_an_answer_follows_where_it_is_about_what_was_thought(
    thought, answer, candidates, expected
):
    assert follows(Household(), Said(STATE, thought, answer, candidates)) is expected


def test_kinds_are_counted_and_their_truth():
    said = [
        Said(STATE, "i hold nothing. bed 1 not searched", GO),
        Said(STATE, "i hold pen 1. nonsense", OTHER),
    ]
    measured = measure_thoughts(Household(), said)
    assert (measured["true"]["value"], measured["true"]["n"]) == (0.5, 4)
    assert measured["sentences"] == 2 and measured["follows"]["n"] == 2
    shares = {kind: (k["share"], k["true"]["value"]) for kind, k in measured["kinds"].items()}
    assert shares == {"hand": (0.5, 0.5), "left": (0.25, 1.0), "other": (0.25, 0.0)}
    assert thoughts_of([], act=said) == {} == thoughts_of([Household()], act=[])


def test_a_run_shows_what_was_thought_after_each_stage(tmp_path):
    said = {
        "0-base": "desk 1 not searched",
        "10-rl": "bed 1 not searched",
        "2-act": "i hold nothing",
    }
    for stage, thought in said.items():
        folder = tmp_path / "stages" / stage
        folder.mkdir(parents=True)
        thoughts = thoughts_of([Household()], judge=[Said(STATE, thought, GO, (GO, OTHER))])
        (folder / "eval.json").write_text(json.dumps({"thoughts": thoughts}))
        choice = 0 if stage == "10-rl" else 1
        row = {"task": "t", "observation": "o", "actions": [GO, OTHER], "right": 0}
        row |= {"state": "s", "reply": f"{thought} [b]x", "choice": choice}
        (folder / "judgements.jsonl").write_text(json.dumps(row) + "\n")
    show_item(tmp_path, "thoughts", None, None, console := Console(file=StringIO(), width=80))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.index("0-base") < shown.index("2-act") < shown.index("10-rl")
    assert "left: share, true" in shown and "1: go to bed 1  ← the expert's" in shown
    assert "0-base ✗ desk 1 not searched [b]x" in shown and "10-rl ✓ bed 1" in shown
    with pytest.raises(UserError, match="has 1 held-out questions; count from 0"):
        show_item(tmp_path, "thoughts", None, 1, console)
