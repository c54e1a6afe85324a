"""act_loop.py, the method on one page, and `miniact run` are the same algorithm to the byte."""

from __future__ import annotations

import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from miniact.config import load_config
from miniact.experiments.pipeline import run_recipe

ROOT = Path(__file__).parents[2]
SMALL = [
    *("env.train_tasks=24", "env.heldout_tasks=4", "eval.episodes=2", "eval.states=8"),
    *("eval.pairs=4", "stage.il.steps=4", "stage.act.steps=2", "stage.rl.steps=2"),
    *("stage.act.batch=4", "stage.rl.batch=4", "stage.act.lr=0.01", "stage.rl.lr=0.01"),
]


@pytest.fixture
def act_loop(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import act_loop

    yield act_loop
    del sys.modules["act_loop"]


@pytest.mark.parametrize("seed", [0, 3])
def test_it_reaches_the_weights_of_miniact_run(act_loop, tmp_path, seed):
    overrides = [*SMALL, f"seed={seed}"]
    results = act_loop.main(tmp_path, overrides)
    sizes = [*act_loop.SIZES.split(), *act_loop.STEPS.split()]
    config = load_config("household-plain", [*sizes, *overrides])
    run = run_recipe(config, tmp_path / "run", Console(file=StringIO()))
    theirs = tmp_path / "run" / "stages" / "3-rl" / "adapter" / "adapter_model.safetensors"
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == theirs.read_bytes()
    assert results == run["results"]
    before, after = (theirs.parents[2] / stage / "adapter" for stage in ("1-il", "2-act"))
    first, second = ((f / "adapter_model.safetensors").read_bytes() for f in (before, after))
    assert len({first, second, theirs.read_bytes()}) == 3, "a stage that changes nothing"


def test_it_fits_a_page():
    lines = (ROOT / "act_loop.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert sum(line.lstrip().startswith("def ") for line in lines) <= 5
