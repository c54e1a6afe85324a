"""The end of a run: a table that fits, and three sentences that the intervals carry."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from miniact.cli.main import main
from miniact.evaluation.rates import rate
from miniact.experiments.results import next_commands, print_report, print_results
from miniact.experiments.words import compared, meanings, sentences


def evaluation(solved: int, right: int) -> dict:
    """Of 100 episodes and 100 questions."""
    success, judged = ([i < n for i in range(100)] for n in (solved, right))
    split = {"success": rate(success), "score": solved / 100, "repeats_failure": rate(judged)}
    return {"splits": {"id": split}, "judgement": {"accuracy": rate(judged)}}


RESULTS = {"base": evaluation(2, 60), "1-il": evaluation(30, 30), "2-act": evaluation(36, 80)}


def printed(width: int, results: dict) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_results(results, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_what_rose_and_what_fell_is_what_the_intervals_tell_apart():
    rose, fell, one_seed = sentences(RESULTS)
    assert rose == (
        "What rose: success, id 2.0 → 30.0 % in 1-il; stuck, id 30.0 → 80.0 % in 2-act; "
        "judgement 30.0 → 80.0 % in 2-act."
    )
    assert fell.startswith("What fell: stuck, id 60.0 → 30.0 % in 1-il; judgement")
    assert one_seed.startswith("What one seed cannot say")


def test_a_slow_rise_is_one_of_the_whole_run():
    slow = {str(n): evaluation(n, 50) for n in (30, 38, 46, 54)}
    assert sentences(slow)[0] == "What rose: success, id 30.0 → 54.0 % over the whole run."
    assert sentences(slow)[1].startswith("Nothing fell")
    assert len(sentences({"base": RESULTS["base"]})) == 1


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_long_table_comes_in_parts_and_whole(width):
    stages = {f"{n}-{'reinforced' if n == 5 else 'il'}": evaluation(n, 7 * n) for n in range(12)}
    lines = printed(width, stages).splitlines()
    assert max(map(len, lines)) <= width
    heads = [word for line in lines if line.startswith("%, held out") for word in line.split()[3:]]
    assert heads == list(stages)
    parts = sum(line.startswith("%, held out") for line in lines)
    assert sum(line.startswith("judgement") for line in lines) == parts
    assert "".join(lines).count("[") == 3 * len(stages)
    assert "mean score" not in "".join(lines)  # it says no more


def test_the_end_explains_its_words_and_names_commands_that_exist(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("model: {start: runs/x/stages/7-rl/adapter}")
    outcome = {"results": RESULTS, "seconds": {"1-il": 4.0}}
    (folder / "results.json").write_text(json.dumps(outcome))
    console = Console(file=io.StringIO(), width=80)
    print_report(folder, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("success: ", "stuck: ", "judgement: ", "What rose", "What fell", "7-rl"):
        assert word in text
    assert "time:" not in text and set(meanings(RESULTS)) == {"success", "stuck", "judgement"}
    for command, _ in next_commands(Path("runs/x"), RESULTS):
        assert command.split()[1] in main.commands
    print_report(folder, console, verbose=True)
    assert "time: 1-il 4 s" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_comparison_says_what_leaves_out_zero():
    change = {"mean": 0.125, "low": 0.01, "high": 0.24}
    unsure = {"mean": -0.3, "low": -0.7, "high": 0.1}
    rows = [
        {"recipe": "il", "label": "il", "difference": {}},
        {
            "recipe": "ours",
            "label": "il → act",
            "difference": {"judgement": change, "next action": unsure, "  implicit": change},
        },
    ]
    table = {"recipes": ["il", "ours"], "seeds": [0, 1, 2], "baseline": "il", "rows": rows}
    first, rest = compared(table)
    assert first == "il → act is higher in judgement (by 12.5 points) than il."
    assert rest.startswith("Nothing else can be told from il over 3 seeds")
    rows[1]["difference"] = {"next action": unsure}
    assert compared(table)[0].startswith("No recipe can be told from il over 3 seeds")
    assert "one seed" in compared({**table, "seeds": [0]})[0]


def test_the_end_of_a_run_says_what_act_changed_in_the_critics_thoughts():
    def thinking(**shares):
        return {"judge": {"kinds": {kind: {"share": share} for kind, share in shares.items()}}}

    base, il, act = (
        {**RESULTS["base"], "thoughts": thoughts}
        for thoughts in (
            thinking(left=0.2, hand=0.8),
            thinking(left=0.25, seen=0.35, hand=0.3, goal=0.1),
            thinking(left=0.5, seen=0.1, hand=0.31, tool=0.09),
        )
    )
    told = sentences({"base": base, "1-il": il, "2-act": act})
    assert told[2] == (
        "What its critic thinks of, by kind of sentence, in 2-act: left 25.0 → 50.0 %; seen 35.0 → "
        "10.0 %; goal 10.0 → 0.0 %."
    )
    assert len(sentences({"base": RESULTS["base"], "1-il": RESULTS["base"]})) == 3
