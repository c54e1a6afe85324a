"""`miniact show` finds what it is asked for in a run folder."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from miniact import UserError
from miniact.runs.files import write_jsonl
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
