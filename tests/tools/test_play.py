"""`miniact show` finds what it is asked for in a run folder."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from miniact import UserError
from miniact.runs.files import write_json, write_jsonl
from miniact.tools.play import show_item


def test_the_last_stage_is_the_one_of_the_highest_number(tmp_path):
    """By number, not as text: 10-rl comes after 2-act."""
    for name in ("0-base", "2-act", "10-rl"):
        (tmp_path / "stages" / name).mkdir(parents=True)
        episode = {"task_id": name, "task": f"the task of {name}", "moves": [], "success": False}
        episode |= {"score": 0.0, "stop": "ended", "last": "", "dropped_turns": 0}
        write_jsonl(tmp_path / "stages" / name / "episodes.jsonl", [episode])
    out = StringIO()
    show_item(tmp_path, "episode", None, 0, Console(file=out, width=100))
    assert "the task of 10-rl" in out.getvalue()
    with pytest.raises(UserError, match="has 0-base, 2-act, 10-rl"):
        show_item(tmp_path, "episode", "3-il", 0, Console(file=out))


def group(step: int, rewards: tuple[float, ...]) -> dict:
    answers = [
        {"reply": f"reply {r}", "reward": r, "advantage": r - 0.5, "correct": r > 0, "valid": True}
        for r in rewards
    ]
    return {"step": step, "prompt": "which?", "answers": answers}


def test_a_group_that_teaches_and_an_episode_that_is_solved_come_first(tmp_path):
    (tmp_path / "samples").mkdir()
    rows = [group(0, (0, 0)), group(0, (1, 1)), group(10, (0, 1))]
    write_jsonl(tmp_path / "samples" / "2-act.jsonl", rows)
    out = StringIO()
    show_item(tmp_path, "group", None, None, Console(file=out, width=100))
    assert "2-act, number 2 of 3 (-n), step 10" in out.getvalue()
    assert "all rewards are equal" not in out.getvalue()
    show_item(tmp_path, "group", None, 1, Console(file=out, width=100))
    assert "number 1 of 3" in out.getvalue() and "all rewards are equal" in out.getvalue()
    with pytest.raises(UserError, match="has no entry 3"):
        show_item(tmp_path, "group", None, 3, Console(file=out))


def test_a_comparison_shows_its_table_and_names_a_run_for_the_rest(tmp_path):
    console = Console(file=StringIO(), width=80)
    (tmp_path / "compare.yaml").touch()
    write_json(tmp_path / "runs" / "il" / "seed0" / "results.json", {})
    with pytest.raises(UserError, match=r"one of them, for example miniact show .*il/seed0 pair"):
        show_item(tmp_path, "pair", None, None, console)
    with pytest.raises(UserError, match=r"no comparison.json; finish it"):
        show_item(tmp_path, "results", None, None, console)
    row = {"recipe": "il", "label": "il", "steps": 3.0, "tokens": 9.0, "difference": {}}
    row["metrics"] = {"success, id": {"mean": 0.25, "std": None, "low": None}}
    table = {"recipes": ["il"], "seeds": [0], "baseline": "il", "rows": [row]}
    write_json(tmp_path / "comparison.json", table)
    show_item(tmp_path, "results", None, None, console)
    assert "25.0" in console.file.getvalue()  # type: ignore[attr-defined]
