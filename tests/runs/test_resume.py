"""Resume to the bit: a run killed at any moment ends with the bytes of one never killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

RUN = [sys.executable, "-m", "miniact.cli", "run"]
SMALL = [
    "household-plain",
    *("stage.il.steps=6", "stage.act.steps=4", "stage.rl.steps=4"),
    *("stage.il.batch=4", "stage.act.batch=4", "stage.rl.batch=4"),
    *("stage.il.checkpoint_every=2", "stage.act.checkpoint_every=1", "stage.rl.checkpoint_every=3"),
    *("stage.act.beta=0.05", "stage.rl.updates=2", "model.rank=4", "model.alpha=8"),
    "stage.act.refresh_pairs=2",
    *("env.train_tasks=12", "env.heldout_tasks=4", "env.options={max_steps: 18}"),
    *("eval.episodes=4", "eval.states=6", "eval.pairs=6"),
]


def finish(*arguments: str) -> None:
    done = subprocess.run([*RUN, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*RUN, *SMALL, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"miniact run --resume {out}" in stderr.decode()
    finish("--resume", str(out))
    assert (out / "results.json").is_file()
