"""The command line: help, every command at small size, and one clear line for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from miniact.cli.main import GONE, main
from miniact.config.sections import STAGES

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "tiny_configs").glob("*.yaml"))
TINY = [
    *("stage.il.steps=2", "stage.act.steps=2", "stage.rl.steps=1"),
    *("stage.il.batch=4", "stage.act.batch=4", "stage.rl.batch=4"),
    *("env.train_tasks=8", "env.heldout_tasks=4", "env.options={max_steps: 18}"),
    *("eval.episodes=3", "eval.states=4", "eval.pairs=4"),
]


def miniact(*arguments: str, code: int = 0) -> str:
    """Run a command in this process; returns all it printed."""
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output[-2000:]
    return result.output


def refuses(*arguments: str) -> str:
    """The one line with which a command refuses."""
    output = miniact(*arguments, code=2)
    lines = [line for line in output.splitlines() if line.startswith("miniact: ")]
    assert len(lines) == 1 and "Traceback" not in output, output
    return lines[0]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    output = miniact("run", "household-plain", "--seed", "3", "--out", str(folder), *TINY)
    assert "success, id" in output and str(folder) in output.replace("\n", "")
    return folder


def test_help_is_quick():
    best = 9.0
    for _ in range(3):
        start = time.monotonic()
        command = [sys.executable, "-m", "miniact.cli", "--help"]
        subprocess.run(command, check=True, capture_output=True)
        best = min(best, time.monotonic() - start)
    assert best < 0.5


def test_a_run_leaves_all_that_the_readme_promises(run_folder):
    for name in (
        *("config.yaml", "environment.json", "metrics.jsonl", "trajectories.jsonl", "pairs.jsonl"),
        *("results.json", "results.txt", "curves.png", "tensorboard", "samples/2-act.jsonl"),
        *(f"stages/{k}/adapter/adapter_model.safetensors" for k in ("1-il", "2-act", "3-rl")),
        *(f"stages/{k}/eval.json" for k in ("0-base", "1-il", "2-act", "3-rl")),
    ):
        assert (run_folder / name).exists(), name
    results = json.loads((run_folder / "results.json").read_text())["results"]
    assert list(results) == ["base", "1-il", "2-act", "3-rl"]
    success = results["3-rl"]["splits"]["id"]["success"]
    assert success["n"] == 3 and 0 <= success["low"] <= success["high"] <= 1
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["seed"] == 3
    assert list((run_folder / "tensorboard" / "1-il").glob("events*"))


def test_show_prints_a_pair_a_group_an_episode_and_the_table(run_folder):
    assert "alternative" in miniact("show", str(run_folder), "pair")
    assert "advantage" in miniact("show", str(run_folder), "group", "--stage", "2-act")
    assert "after" in miniact("show", str(run_folder), "episode", "--stage", "1-il", "-n", "2")
    assert "3-rl" in miniact("show", str(run_folder), "results")


def test_the_same_command_again_does_nothing_new(run_folder):
    before = (run_folder / "metrics.jsonl").read_bytes()
    miniact("run", "household-plain", "--seed", "3", "--out", str(run_folder), *TINY)
    assert (run_folder / "metrics.jsonl").read_bytes() == before


def test_a_run_of_another_config_is_refused(run_folder):
    line = refuses("run", "household-plain", "--seed", "4", "--out", str(run_folder), *TINY)
    assert "'seed' differs" in line


def test_any_order_of_stages_and_no_environment(run_folder, tmp_path):
    """The user's own expert steps are enough: no environment, pairs made elsewhere."""
    out = tmp_path / "own"
    miniact(
        *("run", "household-plain", "--recipe", "act,il", "--out", str(out), *TINY),
        *("env.name=none", f"env.trajectories={run_folder / 'trajectories.jsonl'}"),
        f"pairs.file={run_folder / 'pairs.jsonl'}",
    )
    results = json.loads((out / "results.json").read_text())["results"]
    assert list(results) == ["base", "1-act", "2-il"]
    assert set(results["2-il"]) == {"next_action", "judgement"}


def test_a_file_without_splits_gets_a_held_out_part_by_task(run_folder, tmp_path):
    rows = [json.loads(x) for x in (run_folder / "trajectories.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["split"], row["task"] = "train", f"{row['task']} {number % 7}"
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "own"
    source = ["env.name=none", f"env.trajectories={tmp_path / 'own.jsonl'}", "eval.pairs=0"]
    miniact("run", "household-plain", "--recipe", "", "--out", str(out), *TINY, *source)
    kept = [json.loads(x) for x in (out / "trajectories.jsonl").read_text().splitlines()]
    parts = {name: {r["task"] for r in kept if r["split"] == name} for name in ("train", "heldout")}
    assert all(parts.values()) and not parts["train"] & parts["heldout"]


def test_stage_by_stage_is_the_same_as_one_run(run_folder, tmp_path):
    """To the byte: the data, the weights of every stage, the last evaluation."""
    common = ["household-plain", "--seed", "3", *TINY]
    trajectories, pairs = tmp_path / "t.jsonl", tmp_path / "p" / "pairs.jsonl"
    miniact("collect", *common, "--out", str(trajectories))
    assert trajectories.read_bytes() == (run_folder / "trajectories.jsonl").read_bytes()
    common += ["--trajectories", str(trajectories)]
    miniact("pairs", *common, "--out", str(tmp_path / "p"))
    common += ["--pairs", str(pairs)]
    adapter: list[str] = []
    for number, stage in enumerate(("il", "act", "rl"), start=1):
        out, key = tmp_path / stage, f"{number}-{stage}"
        printed = miniact(stage, *common, *adapter, "--out", str(out), "eval.episodes=0")
        assert "warning" not in printed
        weights = f"stages/{key}/adapter/adapter_model.safetensors"
        assert (out / weights).read_bytes() == (run_folder / weights).read_bytes()
        adapter = ["--adapter", str(out / "stages" / key / "adapter")]
    printed = miniact("eval", *common, *adapter, "--out", str(tmp_path / "eval"))
    assert re.search(r"^%, held out +3-rl$", printed, re.MULTILINE)  # not: base
    alone = json.loads((tmp_path / "eval" / "results.json").read_text())["results"]["base"]
    together = json.loads((run_folder / "results.json").read_text())["results"]["3-rl"]
    assert alone == together


def test_pairs_by_a_trained_adapter_are_warned_about(run_folder, tmp_path):
    adapter = ["--adapter", str(run_folder / "stages" / "1-il" / "adapter")]
    data = ["--trajectories", str(run_folder / "trajectories.jsonl"), "pairs.temperature=2"]
    printed = miniact(
        "pairs", "household-plain", *TINY, *data, *adapter, "--out", str(tmp_path / "p")
    )
    assert "cannot be compared with a run's; take its pairs by --pairs" in printed


def test_export_writes_a_model_that_loads(run_folder, tmp_path):
    adapter = run_folder / "stages" / "3-rl" / "adapter"
    base = ROOT / "miniact" / "backends" / "tiny"
    merged = tmp_path / "merged"
    given = ["--model", str(base), "--to", "merged", "--out", str(merged)]
    miniact("export", str(adapter), *given)
    state = ["eval.episodes=0", "eval.pairs=0", "eval.states=4", f"model.path={merged}"]
    miniact("eval", "household-plain", *TINY, *state, "--out", str(tmp_path / "e"))
    assert "exists already" in refuses("export", str(adapter), *given)


@pytest.mark.slow
def test_the_same_commands_on_mlx(run_folder, tmp_path):
    pytest.importorskip("mlx_lm")
    out = tmp_path / "mlx"
    miniact(
        *("run", "household-plain", "--backend", "mlx", "--seed", "3", "--out", str(out), *TINY),
        *(f"env.trajectories={run_folder / 'trajectories.jsonl'}", "env.options={max_steps: 3}"),
        *(f"pairs.file={run_folder / 'pairs.jsonl'}", "eval.episodes=2"),
    )
    assert json.loads((out / "environment.json").read_text())["backend"] == "mlx"
    results = json.loads((out / "results.json").read_text())["results"]
    assert list(results) == ["base", "1-il", "2-act", "3-rl"]
    torch_base = json.loads((run_folder / "results.json").read_text())["results"]["base"]
    assert results["base"]["judgement"] == torch_base["judgement"]  # greedy, on the same pairs


def test_play_by_hand_and_watch(tmp_path):
    keys = "help\nhint\ndance\nquit\n"
    played = CliRunner().invoke(
        main, ["play", "household-plain"], input=keys, catch_exceptions=False
    )
    assert "Nothing happens." in played.output and "go to" in played.output
    assert "> " in miniact("play", "household-plain", "--watch", "env.options={max_steps: 3}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nowhere.yaml"], "no such config file"),
        (["run", "household-plain", "stage.act.stepz=5"], "did you mean 'steps'?"),
        (["run", "household-plain", "stage.act.steps=-5"], "expected at least 0"),
        (["run", "household-plain", "stage.act.steps=many"], "stage.act.steps: expected int"),
        (["run", "household-plain", "stage.act.group_size=1"], "expected at least 2"),
        (["run", "household-plain", "--recipe", "il,atc"], "did you mean 'act'?"),
        (["run", "household-plain", "env.name=houshold"], "did you mean 'household'?"),
        (["run", "household-plain", "model.path=./no/such/folder"], "no folder './no/such/folder'"),
        (["run", "household-plain", "env.name=none"], "expected a file of expert steps"),
        (["run", "household-plain", "env.options={depth: 3}"], "does not take"),
        (["run", "household-plain", "eval.splits=id,mars"], "mars"),
        (["run", "household-plain", "model.device=cuda:9"], "not usable here"),
        (["run", "household-plain", "prompt.max_tokens=16"], "prompt.max_tokens 16"),
        (["run", "--resume", "nowhere"], "no config.yaml"),
        (["run", "nowhere/household.yaml"], "no such config file"),
        (["run", "--resume", "nowhere", "--seed", "1"], "pass nothing else"),
        (["run", "household-plain", "household"], "one CONFIG"),
        (["run", "household-plain", "--backend", "jax"], "model.backend"),
        (["show", "nowhere", "pair"], "nowhere"),
        (["play", "household-plain", "--split", "mars"], "mars"),
    ],
)
def test_a_mistake_gets_one_clear_line(arguments, says, tmp_path):
    if arguments[0] == "run" and "--resume" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path / "x")]
    assert says in refuses(*arguments)


def test_damaged_rows_name_file_and_line_or_are_skipped(run_folder, tmp_path):
    good = (run_folder / "trajectories.jsonl").read_text().splitlines()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*good[:9], good[9][:50], *good[10:]]))
    arguments = ["run", "household-plain", *TINY, f"env.trajectories={bad}"]
    arguments += ["--recipe", "", "eval.pairs=0"]
    assert "bad.jsonl:10:" in refuses(*arguments, "--out", str(tmp_path / "a"))
    miniact(*arguments, "--skip-bad-rows", "--out", str(tmp_path / "b"))
    kept = (tmp_path / "b" / "trajectories.jsonl").read_text().splitlines()
    assert len(kept) == len(good) - 1


def test_an_empty_file_and_a_missing_column(tmp_path, run_folder):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    run = ["run", "household-plain", *TINY]
    line = refuses(*run, f"env.trajectories={empty}", "--out", str(tmp_path / "a"))
    assert "no usable row" in line
    source = run_folder / "trajectories.jsonl"
    line = refuses(
        *run, f"env.trajectories={source}", "env.columns={task: goal}", "--out", str(tmp_path / "b")
    )
    assert "no column 'goal'" in line


def test_an_adapter_of_another_rank_is_refused(run_folder, tmp_path):
    adapter = run_folder / "stages" / "1-il" / "adapter"
    arguments = [
        "il",
        "household-plain",
        *TINY,
        "--adapter",
        str(adapter),
        "model.rank=4",
        "model.alpha=8",
    ]
    assert "adapter of another model, or another model.rank" in refuses(
        *arguments, "--out", str(tmp_path / "x")
    )


def test_alternatives_that_are_all_filtered_out_stop_with_the_counts(run_folder, tmp_path):
    line = refuses(
        *("run", "household", *TINY, "pairs.max_tokens=5", "--out", str(tmp_path / "x")),
        f"env.trajectories={run_folder / 'trajectories.jsonl'}",
    )
    assert "all were filtered out" in line and "unparseable" in line


@pytest.mark.parametrize("old", GONE)
def test_a_command_of_before_says_what_replaces_it(old):
    assert refuses(old, "household-plain", "--out", "x").endswith(GONE[old])
    file = re.search(r"\S+\.(py|md)", GONE[old])
    assert (ROOT / file[0]).is_file() if file else old in STAGES
    assert old not in main.commands


def test_a_shipped_config_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = {miniact("config", name) for name in ("own-logs", "tiny_configs/own-logs.yaml")}
    assert len(shown) == 1
    (tmp_path / "tiny_configs").mkdir()  # one's own comes first
    (tmp_path / "tiny_configs" / "own-logs.yaml").write_text("seed: 77")
    assert yaml.safe_load(miniact("config", "own-logs"))["seed"] == 77


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_is_checked(config):
    assert sorted(yaml.safe_load(miniact("config", str(config)))["recipe"]) == ["act", "il", "rl"]
