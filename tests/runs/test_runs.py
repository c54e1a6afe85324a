"""Run folders: atomic files, locks, checkpoints, interrupts, damaged logs."""

from __future__ import annotations

import errno
import json
import os
import signal
from io import StringIO

import pytest
from fakes import FakePolicy, learn, quiet_bar
from rich.console import Console

from miniact import Interrupted, UserError
from miniact.config.sections import ILConfig
from miniact.runs.files import whole_folder, write_text
from miniact.runs.folder import RunFolder, explain_full_disk
from miniact.runs.log import StageLog
from miniact.runs.progress import Bar


def test_a_file_is_whole_or_absent(tmp_path):
    file = tmp_path / "a" / "b.txt"
    write_text(file, "one")
    write_text(file, "two")
    assert file.read_text() == "two" and os.listdir(file.parent) == ["b.txt"]


def test_a_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "x") as part:
        (part / "file").write_text("half")
        _ = 1 / 0
    assert os.listdir(tmp_path) == []
    for text in ("one", "two"):
        with whole_folder(tmp_path / "x") as part:
            (part / "file").write_text(text)
    assert (tmp_path / "x" / "file").read_text() == "two" and os.listdir(tmp_path) == ["x"]


def test_two_writers_are_refused(tmp_path):
    with (
        RunFolder(tmp_path),
        pytest.raises(UserError, match="another miniact"),
        RunFolder(tmp_path),
    ):
        pass
    with RunFolder(tmp_path):
        pass


@pytest.mark.parametrize("stop_at", [0, 1, 3, 4, 7, 9])
def test_a_killed_stage_goes_on_where_its_checkpoint_was(tmp_path, tokenizer, stop_at):
    config = ILConfig(steps=10, checkpoint_every=3)
    seen: list[int] = []
    with RunFolder(tmp_path) as run:
        with pytest.raises(RuntimeError, match="killed"):
            learn(run, FakePolicy(tokenizer, str), config, stop_at)
        fresh = FakePolicy(tokenizer, str)
        learn(run, fresh, config, seen=seen)
    assert seen == list(range(stop_at - stop_at % 3, 10))
    assert fresh.updates == fresh.moments == 10
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(10))
    stage = tmp_path / "stages" / "1-il"
    assert os.listdir(stage) == ["adapter"]
    assert (stage / "adapter" / "weights.json").read_text() == "10"


def test_what_a_kill_leaves_is_swept_up_and_nothing_else(tmp_path):
    done, begun = tmp_path / "stages" / "1-il", tmp_path / "stages" / "2-act"
    kept = [done / "adapter" / "w", begun / "checkpoint-0000002" / "w", tmp_path / "pairs.jsonl"]
    left = [done / "checkpoint-0000004" / "w", begun / "checkpoint-0000003.part" / "w"]
    left += [done / "eval.json.part", tmp_path / "pairs.jsonl.part"]
    for file in (*kept, *left):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    with RunFolder(tmp_path):
        assert all(file.exists() for file in left)  # no run's folder: somebody else's files
    (tmp_path / "config.yaml").touch()
    with RunFolder(tmp_path):
        assert not any(file.exists() for file in left) and all(file.exists() for file in kept)
        assert not (done / "checkpoint-0000004").exists()


def test_a_half_written_line_is_dropped_on_resume(tmp_path, tokenizer):
    config = ILConfig(steps=6, checkpoint_every=2)
    with RunFolder(tmp_path) as run:
        with pytest.raises(RuntimeError):
            learn(run, FakePolicy(tokenizer, str), config, 5)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "1-il", "st')
        learn(run, FakePolicy(tokenizer, str), config)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(6))


def test_ctrl_c_saves_at_the_step_boundary(tmp_path, tokenizer):
    config = ILConfig(steps=10, checkpoint_every=100)
    policy = FakePolicy(tokenizer, str)
    with RunFolder(tmp_path) as run:
        log = StageLog(run, 1, "il", quiet_bar())
        with pytest.raises(Interrupted):
            for step in log.steps(policy, config):
                policy.optim_step(0.1, 1.0)
                log.write(step, {"loss": 1.0})
                if step == 4:
                    os.kill(os.getpid(), signal.SIGINT)
        assert (tmp_path / "stages" / "1-il" / "checkpoint-0000005").is_dir()
    with RunFolder(tmp_path) as run:
        seen: list[int] = []
        learn(run, FakePolicy(tokenizer, str), config, seen=seen)
    assert seen == [5, 6, 7, 8, 9]


def test_a_non_finite_loss_stops_and_keeps_the_last_checkpoint(tmp_path, tokenizer):
    config = ILConfig(steps=10, checkpoint_every=2)
    policy = FakePolicy(tokenizer, str)
    with RunFolder(tmp_path) as run:
        log = StageLog(run, 1, "il", quiet_bar())
        with pytest.raises(UserError, match=r"step 5: loss is nan"):
            for step in log.steps(policy, config):
                log.write(step, {"loss": float("nan") if step == 5 else 1.0})
    assert (tmp_path / "stages" / "1-il" / "checkpoint-0000004").is_dir()


def test_a_full_disk_is_explained_and_the_checkpoint_survives(tmp_path, tokenizer, monkeypatch):
    config = ILConfig(steps=10, checkpoint_every=2)
    policy = FakePolicy(tokenizer, str)
    save = policy.save_optimizer

    def full(file):  # type: ignore[no-untyped-def]
        if policy.updates >= 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file)

    monkeypatch.setattr(policy, "save_optimizer", full)
    with RunFolder(tmp_path) as run, pytest.raises(UserError, match=r"disk is full.*--resume"):
        learn(run, policy, config)
    stage = tmp_path / "stages" / "1-il"
    assert os.listdir(stage) == ["checkpoint-0000004"]


def test_other_errors_of_the_disk_are_not_called_full(tmp_path):
    with pytest.raises(PermissionError), explain_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_a_stage_without_any_live_group_says_what_to_change(tmp_path, tokenizer):
    out = StringIO()
    with RunFolder(tmp_path) as run:
        log = StageLog(run, 2, "act", Bar(Console(file=out), "act"))
        for step in log.steps(FakePolicy(tokenizer, str), ILConfig(steps=3)):
            log.write(step, {"zero_variance": 1.0})
    assert "all groups of all steps had equal rewards" in out.getvalue()


@pytest.mark.parametrize(
    ("metrics", "live_at", "says"),
    [
        ({"zero_variance": 1.0}, None, [9]),  # after ten steps, once
        ({"zero_variance": 1.0}, 8, []),  # one live group: something can be learned
        ({"zero_variance": 0.5, "cut_off": 0.6}, None, [0]),  # at once, once
        ({"zero_variance": 0.5, "cut_off": 0.5}, None, []),
        ({"loss": 1.0}, None, []),  # imitation samples nothing
    ],
)
def test_what_keeps_a_stage_from_learning_is_said_early(
    tmp_path, tokenizer, metrics, live_at, says
):
    out, said = StringIO(), []
    with RunFolder(tmp_path) as run:
        log = StageLog(run, 2, "act", Bar(Console(file=out), "act"))
        for step in log.steps(FakePolicy(tokenizer, str), ILConfig(steps=14)):
            before = out.getvalue().count("warning")
            log.write(step, {**metrics, **({"zero_variance": 0.5} if step == live_at else {})})
            said += [step] * (out.getvalue().count("warning") - before)
    assert said == says


def test_a_whole_folder_is_as_readable_as_umask_lets_it(tmp_path):
    """safetensors writes files that only their owner may read."""
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "adapter") as part:
            (part / "weights").touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "adapter" / "weights").stat().st_mode & 0o777 == 0o640
