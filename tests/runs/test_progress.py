"""The live bar: at 80 columns name, bar, steps, rate and time always stay."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from miniact.runs.progress import Bar

GRPO = {"loss": 1e-9, "reward": 0.5, "correct": 0.5, "valid": 0.75, "zero_variance": 0.4}


def last_line(total: int, done: int, metrics: dict, width: int = 80) -> str:
    """The bar as a terminal shows it after `done` steps."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system="standard")
    with Bar(console, "eval 2-act") as bar:
        bar.start(total)
        bar._since -= 3.0 * done  # three seconds a step
        for _ in range(done):
            bar.advance(metrics)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").split("\n")
    return next(line for line in reversed(lines) if line.strip()).rstrip()


@pytest.mark.parametrize("total", [70, 3000, 100000])
def test_the_rest_stays_and_what_does_not_fit_is_left_out_whole(total):
    line = last_line(total, 2, GRPO)
    assert f"2/{total}" in line and "3.0 s each" in line
    assert "━" in line and re.search(r" \d+:\d\d| -:--:--| --:--", line) and "…" not in line
    assert "reward 0.50" in line and len(line) <= 80
    assert "loss" not in line and "correct" not in line
    assert "zero_variance 0.40" in last_line(total, 2, GRPO, width=160)


def test_correct_is_said_where_it_is_not_the_reward():
    assert "correct 0.30" in last_line(70, 2, {**GRPO, "correct": 0.3}, width=160)
    assert "loss 0.250" in last_line(70, 2, {"loss": 0.25})


def test_success_is_the_share_so_far():
    out = io.StringIO()
    with Bar(Console(file=out, width=200), "eval") as bar:
        bar.start(4)
        for solved, played in ((1, 1), (1, 2), (1, 3), (1, 4)):
            bar.advance({"success": solved / played})
    assert "success 0.25" in out.getvalue()
