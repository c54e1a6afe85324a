"""The soak sees what it is there to see: a changed byte, a lost file, a leftover, a real run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soak
from soak import activity, compare


def test_it_sees_every_difference_but_the_clock(tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    (whole / "stages" / "1-il").mkdir(parents=True)
    (whole / "metrics.jsonl").write_text('{"stage": "1-il", "loss": 0.5, "time": 1.0}\n')
    (whole / "results.json").write_text('{"results": {"base": 1}, "seconds": {"il": 2}}')
    (whole / "environment.json").write_text("{}")
    (whole / "stages" / "1-il" / "weights").write_bytes(b"\x00\x01")
    shutil.copytree(whole, again)
    (again / "metrics.jsonl").write_text('{"stage": "1-il", "loss": 0.5, "time": 9.0}\n')
    (again / "results.json").write_text('{"results": {"base": 1}, "seconds": {"il": 7}}')
    (again / "environment.json").write_text('{"command": 1}')
    assert not any(compare(again, whole).values())

    (again / "metrics.jsonl").write_text('{"stage": "1-il", "loss": 0.6, "time": 1.0}\n')
    (again / "results.json").unlink()
    (again / "stages" / "1-il" / "weights").write_bytes(b"\x00\x02")
    (again / "stages" / "1-il" / "adapter.part").mkdir()
    assert compare(again, whole) == {
        "different": ["metrics.jsonl", "results.json", "stages/1-il/weights"],
        "leftovers": ["stages/1-il/adapter.part"],
    }


@pytest.mark.parametrize(
    ("event", "name"),
    {
        "open environment.json.part": "starting",
        "open trajectories.jsonl.part": "collecting",
        "rename trajectories.jsonl.part": "sampling pairs",
        "rename pairs.jsonl.part": "evaluating",
        "open metrics.jsonl": "training",
        "mkdir stages/2-act/checkpoint-0000001.part": "writing a checkpoint",
        "rename stages/2-act/checkpoint-0000001.part": "training",
        "open stages/2-act/pairs-0000001.jsonl.part": "sampling pairs",
        "open stages/2-act/adapter.part/adapter_config.json": "writing an adapter",
        "rename stages/2-act/adapter.part": "evaluating",
        "open stages/2-act/eval.json.part": "writing an evaluation",
        "open results.txt.part": "writing the report",
    }.items(),
)
def test_it_says_what_a_run_was_doing(event, name):
    assert activity(event) == name


JUST_BEFORE = {  # what is being done → the event that ends it, as activity and number
    "collecting": ("sampling pairs", 0),
    "sampling pairs": ("evaluating", 0),
    "writing an evaluation": ("writing an evaluation", 1),
    "writing a checkpoint": ("writing a checkpoint", 3),
    "writing an adapter": ("evaluating", 0),
    "writing the report": ("writing the report", 1),
}


@pytest.mark.slow
def test_a_run_that_is_killed_six_times_ends_with_the_bytes_of_one_that_was_not(
    tmp_path,
):
    """In a process of its own: its forks are to be like runs, not like what other tests left."""
    out = tmp_path / "soak.json"
    code = f"""
import soak
moments = [soak.Moment(activity=a, nth=n, itself=True) for a, n in {list(JUST_BEFORE.values())!r}]
soak.CHANCES = (*(1 for _ in moments), 0)
soak.draw_moment = lambda rng, whole: moments.pop(0)
soak.main(["--kills", "6", "--out", {str(out)!r}])
"""
    paths = os.pathsep.join([str(Path(soak.__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (trial,) = json.loads(out.read_text())["trials"]
    assert trial["kills"] == list(JUST_BEFORE)
    assert not (trial["exit code"] or trial["different"] or trial["leftovers"])
    assert "6 kills in 1 runs, 0 of them differ" in done.stdout
