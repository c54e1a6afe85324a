"""The table of thoughts over seeds: of the base that thinks, shares, and how many are true."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from miniact.runs.files import write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "dev"))
    import thought_table

    yield thought_table.main
    del sys.modules["thought_table"]


def thoughts(true: float, **kinds: tuple[float, float]) -> dict[str, Any]:
    of_kinds = {k: {"share": share, "true": {"value": t}} for k, (share, t) in kinds.items()}
    return {"true": {"value": true}, "follows": {"value": 0.9}, "kinds": of_kinds}


def test_a_column_a_stage_and_a_row_a_kind(main, tmp_path):
    for seed, share in ((0, 0.4), (1, 0.6)):
        for stage, left in (("0-base", 0.9), ("0-base-thinking", share), ("10-act", 0.5)):
            judge = thoughts(0.7, left=(left, 0.25), goal=(0.001, 1.0))
            file = tmp_path / f"seed{seed}" / "stages" / stage / "eval.json"
            file.parent.mkdir(parents=True)
            write_json(file, {"thoughts": {"judge": judge}})
    runs = [str(tmp_path / "seed0"), str(tmp_path / "seed1")]
    lines = CliRunner().invoke(main, runs, catch_exceptions=False).stdout.splitlines()
    assert lines[0] == "| | 0-base-thinking | 10-act |"
    assert "| true | 70 ± 0 | 70 ± 0 |" in lines
    assert lines[-1] == "| left | 50 ± 14 · 25 | 50 ± 0 · 25 |"  # goal is rare everywhere
    none = CliRunner().invoke(main, [*runs, "--before", "act"])
    assert none.exit_code == 2 and "no thoughts were measured" in none.stderr
