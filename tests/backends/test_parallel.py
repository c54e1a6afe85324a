"""Two processes equal one: weights, answers, evaluation, resume; and what happens where one fails.

Real processes, started by the launchers that people use.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tiny_models import write_model
from zoo import NO_MLX

from miniact import UserError
from miniact.backends.launch import processes
from miniact.backends.messages import encode, to_group, to_loss, to_name, to_rows
from miniact.backends.parallel import Member, ParallelPolicy, shares
from miniact.backends.protocol import Policy
from miniact.backends.torch.parallel import own_device
from miniact.method.losses import GRPOLoss, cross_entropy
from miniact.types import Completion, Group

TESTS = Path(__file__).parents[1]
ALONE = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
MLX_LAUNCH = [str(Path(sys.executable).with_name("mlx.launch")), "-n", "2", *ALONE]


def start(launcher: list[str], *arguments: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    return subprocess.Popen(
        [*launcher, *arguments], env=env, stderr=subprocess.STDOUT, text=True, **streams
    )


def finish(process: subprocess.Popen, code: int | None = 0) -> str:
    """What it printed. Its process is gone afterwards, come what may."""
    try:
        text, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert code is None or process.returncode == code, text[-3000:]
    return text


def said(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("miniact:")]


@pytest.fixture(scope="module")
def exercise(tmp_path_factory, tokenizer):
    """exercise(launcher, name, adapters, backend, fault): runs tests/several.py."""
    root = tmp_path_factory.mktemp("parallel")
    model = write_model(root / "model", "llama-tied", tokenizer, intermediate_size=128)

    def run(launcher, name, adapters=("lora",), backend="torch", fault=""):  # type: ignore[no-untyped-def]
        common = {"path": str(model), "backend": backend, "device": "cpu"}
        configs = [{**common, "adapter": adapter} for adapter in adapters]
        what = {"out": str(root / name), "configs": configs, "fault": fault}
        return root / name, start(launcher, str(TESTS / "several.py"), json.dumps(what))

    return run


def assert_alike(one: Path, two: Path) -> None:
    """The same answers; weights to 2e-6 (of a tensor's norm, if above 1), moments to 5e-6 of it.

    Not every number to 2e-6: where a gradient is about AdamW's ε, rounding decides on the step.
    """

    def check(a: Any, b: Any) -> None:
        if isinstance(a, float):
            assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
        elif isinstance(a, (list, dict)):
            assert len(a) == len(b)
            for key in a if isinstance(a, dict) else range(len(a)):
                check(a[key], b[key])
        else:
            assert a == b

    check(json.loads((one / "told.json").read_text()), json.loads((two / "told.json").read_text()))
    files = sorted(file.relative_to(one) for file in one.rglob("*.safetensors"))
    assert files == sorted(file.relative_to(two) for file in two.rglob("*.safetensors"))
    for file in files:
        a, b = load_file(one / file), load_file(two / file)
        assert a.keys() == b.keys()
        for name in a:
            weights = len(file.parts) == 3
            size = max(float(np.linalg.norm(a[name])), 1.0 if weights else 1e-12)
            far = np.linalg.norm(a[name] - b[name]) / size
            assert far < (2e-6 if weights else 5e-6), (file, name, far)


# ---- without processes -------------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), max_size=12), st.integers(1, 5))
def test_shares_hold_everything_once_and_none_is_overladen(costs, ways):
    parts = shares(costs, ways)
    assert len(parts) == ways
    assert sorted(i for part in parts for i in part) == list(range(len(costs)))
    sums = [sum(costs[i] for i in part) for part in parts]
    assert max(sums) - min(sums) <= max(costs, default=0)


@pytest.mark.parametrize(
    ("variables", "n"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "4"}, 1),  # of a batch system that knows nothing of torch
        ({"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "localhost"}, 4),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": '[["a:1"], ["b:1"], ["c:1"]]'}, 3),
        ({"MLX_RANK": "0", "MLX_WORLD_SIZE": "2"}, 2),
    ],
)
def test_the_environment_says_how_many_there_are(variables, n, monkeypatch, tmp_path):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MLX_RANK", "MLX_HOSTFILE"):
        monkeypatch.delenv(name, raising=False)
    if hosts := variables.get("MLX_HOSTFILE"):
        file = tmp_path / "hosts.json"
        file.write_text(hosts)
        variables = {**variables, "MLX_HOSTFILE": str(file)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes() == n


def test_groups_and_losses_arrive_as_they_were_sent():
    old = np.array([-0.1, -1.7320508], np.float32)
    groups = [
        Group((1, 2), (Completion((3, 4), 0.1 + 0.2, -1 / 3, old, None), Completion((5,)))),
        Group(tuple(np.array([7, 8])), (Completion((9,), float(np.float64(1e-9))),)),
    ]
    arrived = [to_group(row) for row in json.loads(encode(to_rows(groups)))]
    assert str(arrived) == str([Group(tuple(map(int, g.prompt)), g.completions) for g in groups])
    assert arrived[0].completions[0].old_logps.tobytes() == old.tobytes()
    for loss in (cross_entropy, GRPOLoss(0.1, 0.3, beta=0.05, on_policy=True)):
        assert to_loss(*json.loads(encode(to_name(loss)))) == loss
    with pytest.raises(UserError, match=r"loss: the other processes cannot find .*<lambda>"):
        to_name(lambda xp, logp_N, tokens: (logp_N.sum(), {}))


def test_nothing_of_the_protocol_is_missing_where_there_are_several():
    """What a policy can do is asked of all, or is the first one's alone: its files."""
    asked = {name for name in vars(Policy) if not name.startswith("_")}
    assert asked - vars(ParallelPolicy).keys() == set()
    assert asked - vars(Member).keys() == {"save_adapter", "save_optimizer"}


def test_every_process_has_a_device_of_its_own():
    assert [own_device("auto", i, 2, 2) for i in range(2)] == ["cuda:0", "cuda:1"]
    assert own_device("auto", 1, 4, 0) == own_device("cpu", 1, 4, 2) == "cpu"
    with pytest.raises(UserError, match="4 processes on a computer with 2 GPUs: start one for"):
        own_device("auto", 0, 4, 2)
    with pytest.raises(UserError, match="cuda:1 is one device, and there are 2"):
        own_device("cuda:1", 0, 2, 2)


# ---- in real processes -------------------------------------------------------------------------


def test_two_processes_on_gloo_equal_one(exercise):
    """Answers, scores, steps, checkpoints, an idle process; memory runs out in one of them."""
    one, alone = exercise(ALONE, "one")
    two, both = exercise([*TORCHRUN, "2"], "two", fault="memory")
    finish(alone)
    assert "note: out of memory in training" in finish(both)
    assert_alike(one, two)


@pytest.mark.slow
@pytest.mark.parametrize(("ways", "adapters"), [(2, ("full", "qlora")), (3, ("lora",))])
def test_more_ways_to_be_several_equal_one(exercise, ways, adapters):
    one, alone = exercise(ALONE, f"one of {ways}", adapters)
    several, all_of_them = exercise([*TORCHRUN, str(ways)], f"{ways}", adapters)
    finish(alone)
    finish(all_of_them)
    assert_alike(one, several)


@NO_MLX
@pytest.mark.slow
def test_two_processes_of_mlx_equal_one(exercise):
    one, alone = exercise(ALONE, "mlx one", ("lora", "full"), "mlx")
    two, both = exercise(MLX_LAUNCH, "mlx two", ("lora", "full"), "mlx")
    finish(alone)
    finish(both)
    assert_alike(one, two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("hang", "process 0 of 2: another one is gone or hangs (Timed out"),
        ("code", "process 1 runs other code than process 0 (0ther, not "),
        ("weights", "half.safetensors: process 1 has read other weights there than process 0"),
        ("loss", "loss: the other processes cannot find"),
    ],
)
def test_what_cannot_go_on_ends_all_with_one_line(exercise, fault, line):
    _, process = exercise([*TORCHRUN, "2"], fault, fault=fault)
    began = time.monotonic()
    lines = said(finish(process, code=1))
    assert [text for text in lines if line in text], lines
    assert len(lines) <= 2  # the one that hangs says that it lost the other, when it wakes up
    assert time.monotonic() - began < 100


RUN = ["-m", "miniact.cli", "run"]
SMALL = [
    *("household-plain", "model.rank=4", "model.alpha=8", "stage.il.steps=4", "stage.act.steps=60"),
    *("stage.rl.steps=2", "stage.il.batch=4", "stage.act.batch=3", "stage.rl.batch=1"),
    *("stage.act.checkpoint_every=3", "stage.act.group_size=3", "stage.rl.group_size=4"),
    *("env.train_tasks=12", "env.heldout_tasks=4", "env.options={max_steps: 18}"),
    *("eval.episodes=3", "eval.states=6", "eval.pairs=6", "eval.splits=id"),
]


def rank_of(process: str) -> str:
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next((v[5:].decode() for v in variables if v.startswith(b"RANK=")), "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_a_run_whose_second_process_is_killed_goes_on_with_one_and_equals_a_run_of_one(tmp_path):
    """Also: IL, ACT, RL and evaluation by two processes are those of one; only one writes."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = start(ALONE, *RUN, *SMALL, "--out", str(one))
    both = start([*TORCHRUN, "2"], *RUN, *SMALL, "--out", str(two))
    deadline = time.monotonic() + 200
    while not [*two.glob("stages/2-act/checkpoint-*3")] and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{both.pid}/task/{both.pid}/children").read_text().split()
    (second,) = [child for child in children if rank_of(child) == "1"]
    os.kill(int(second), signal.SIGKILL)
    died = time.monotonic()
    lines = said(finish(both, code=1))
    assert len(lines) == 1, lines  # torchrun may have asked it to stop before it noticed
    assert "process 0 of 2: another one is gone" in lines[0] or "stopped" in "".join(lines)
    assert time.monotonic() - died < 60
    finish(start(ALONE, *RUN, "--resume", str(two)))
    finish(alone)
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    for file in (*one.glob("stages/*/*.json*"), one / "pairs.jsonl", one / "trajectories.jsonl"):
        assert file.read_bytes() == (two / file.relative_to(one)).read_bytes(), file
    for file in one.glob("stages/*/adapter/*.safetensors"):
        a, b = (
            np.concatenate([x.ravel() for x in load_file(f).values()])
            for f in (file, two / file.relative_to(one))
        )
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(a), file
    assert [row["step"] for row in metrics(two)] == [row["step"] for row in metrics(one)]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
