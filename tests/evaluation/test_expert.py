"""`miniact eval --policy expert`, and the commands around logs and games."""

from __future__ import annotations

import importlib.util
import json

import pytest
from click.testing import CliRunner

from miniact.cli.main import main
from miniact.config import load_config
from miniact.envs import make_env
from miniact.evaluation.expert import play


def miniact(*arguments: str):
    return CliRunner().invoke(main, list(arguments), env={"COLUMNS": "160"})


def test_the_expert_is_measured_on_every_split(tmp_path):
    done = miniact(
        *(
            "eval",
            "household-plain",
            "--policy",
            "expert",
            "--out",
            str(tmp_path),
            "eval.episodes=12",
        )
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "expert.json").read_text())
    assert list(found) == ["train", "id", "ood"]
    for split, result in found.items():
        assert result["success"]["n"] == 12 and result["success"]["value"] == 1
        assert 3 < result["steps"] < 20 and result["failed"] == []
        assert split in done.output


def test_an_expert_that_gives_up_has_failed():
    env = make_env("household", max_steps=2)
    task = env.tasks("train", 1, seed=0)[0]
    episode = play(env, task)
    assert episode == {"task": task, "success": False, "score": episode["score"], "steps": 2}


def test_failures_are_named_and_counted(tmp_path):
    done = miniact(
        *("eval", "household-plain", "--policy", "expert", "--out", str(tmp_path)),
        *("eval.episodes=5", "env.options={max_steps: 1}"),
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "expert.json").read_text())
    assert found["train"]["success"]["value"] == 0 and len(found["train"]["failed"]) == 5


def test_without_an_environment_there_is_no_expert(tmp_path):
    done = miniact("eval", "own-logs", "--policy", "expert", "--out", str(tmp_path))
    assert done.exit_code == 2 and "env.name is none" in done.output


def test_import_writes_trajectories_and_says_what_it_kept(tmp_path):
    log = tmp_path / "log.jsonl"
    turns = [
        {"role": "system", "content": "be good"},
        {"role": "user", "content": "find the pen"},
        {"role": "assistant", "content": "open drawer 1"},
        {"role": "user", "content": "the drawer holds a pen"},
        {"role": "assistant", "content": "take pen"},
    ]
    log.write_text(json.dumps({"messages": turns}) + "\n")
    out = tmp_path / "trajectories.jsonl"
    done = miniact("import", "--format", "chat", str(log), "--out", str(out))
    assert done.exit_code == 0, done.output
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["actions"] == ["open drawer 1", "take pen"]
    assert "1" in done.output and "kept" in done.output


def test_a_bad_log_is_one_line_and_leaves_nothing(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"messages": 3}\n')
    out = tmp_path / "trajectories.jsonl"
    done = miniact("import", "--format", "chat", str(log), "--out", str(out))
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert "log.jsonl" in done.output and "messages" in done.output
    assert list(tmp_path.iterdir()) == [log]


@pytest.mark.skipif(importlib.util.find_spec("alfworld") is None, reason="an extra")
def test_games_are_generated_and_played_by_the_expert(tmp_path):
    done = miniact(
        *("alfworld-games", "--out", str(tmp_path), "--train", "2", "--seen", "1", "--unseen", "1")
    )
    assert done.exit_code == 0 and "train 2" in done.output, done.output
    env = make_env("alfworld", data=str(tmp_path))
    try:
        tasks = [t for split in env.splits for t in env.tasks(split, 5, seed=0)]
        assert len(tasks) == 4 and all(play(env, t)["success"] for t in tasks)
    finally:
        env.close()


def test_intervening_asks_the_critic_to_reason(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "miniact.experiments.pipeline.start_run", lambda config, *rest: seen.append(config)
    )
    done = miniact(
        *("eval", "qwen3-0.6b", "--intervene", "wrong", "--out", str(tmp_path), "prompt.form=tags")
    )
    assert done.exit_code == 0, done.output
    assert seen[0].eval.intervene == "wrong" and seen[0].eval.judge_thinking
    assert load_config(None).eval.intervene == "none"
