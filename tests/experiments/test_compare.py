"""Comparisons: what is common is trained once, to the same bytes; one table; what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fakes import FakePolicy, scripted
from rich.console import Console

from miniact import UserError
from miniact.cli.main import main
from miniact.config import load_config
from miniact.config.load import with_overrides
from miniact.experiments.budget import Size, Speed, choose, describe_cuts, fit, parse_budget, sizes
from miniact.experiments.compare import (
    Comparison,
    choose_baseline,
    common_stages,
    done_stages,
    run_comparison,
)
from miniact.experiments.pipeline import start_run
from miniact.experiments.reading import training_cost
from miniact.experiments.recipes import default_recipes, parse_recipe, parse_recipes, parse_seeds
from miniact.experiments.table import (
    build,
    cell,
    columns,
    drop_plain_scores,
    markdown,
    print_comparison,
    short_markdown,
    summary,
    whole_page,
)
from miniact.runs.folder import locked
from miniact.tools.report.page import write_html

SMALL = [
    *("stage.il.steps=4", "stage.act.steps=3", "stage.rl.steps=2"),
    *("stage.il.batch=4", "stage.act.batch=4", "stage.rl.batch=4"),
    *("stage.act.group_size=4", "stage.rl.group_size=4", "model.rank=4", "model.alpha=8"),
    *("env.train_tasks=12", "env.heldout_tasks=4", "env.options={max_steps: 18}"),
    *("eval.splits=[id]", "eval.episodes=2", "eval.states=4", "eval.pairs=4", "prompt.history=3"),
]


def config_of(*options: str):  # type: ignore[no-untyped-def]
    return load_config("household-plain", [*SMALL, *options])


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def plan(folder: Path, recipes: str, seeds: str = "0", *options: str) -> Comparison:
    config = config_of(*options)
    rows = tuple(parse_recipes(recipes, config))
    return Comparison(folder, config, rows, tuple(parse_seeds(seeds)), choose_baseline(None, rows))


def run(comparison: Comparison) -> str:
    console = quiet()
    run_comparison(comparison, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


RECIPES = "base; il; il,act; act; il,act,rl; il,rl; double: il stage.il.lr=0.001"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A comparison of real runs, and what was printed."""
    folder = tmp_path_factory.mktemp("compare") / "cmp"
    return folder, run(plan(folder, RECIPES, "0-1"))


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def weights(run_folder: Path, stage: str) -> Path:
    return run_folder / "stages" / stage / "adapter" / "adapter_model.safetensors"


def logged(run_folder: Path) -> list[dict]:
    """metrics.jsonl without its clock."""
    text = (run_folder / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


# ---- what is shared ----------------------------------------------------------------------------


def test_a_shared_prefix_gives_the_bytes_of_a_run_by_itself(finished, tmp_path):
    folder, _ = finished
    alone = tmp_path / "alone"
    start_run(config_of("recipe=il,act,rl", "seed=1"), alone, quiet())
    ours = folder / "runs" / "il-act-rl" / "seed1"
    for stage in ("1-il", "2-act", "3-rl"):
        assert digest(weights(ours, stage)) == digest(weights(alone, stage))
        assert digest(ours / f"stages/{stage}/eval.json") == digest(
            alone / f"stages/{stage}/eval.json"
        )
    for file in ("pairs.jsonl", "trajectories.jsonl", "samples/2-act.jsonl", "config.yaml"):
        assert digest(ours / file) == digest(alone / file)
    assert logged(ours) == logged(alone)
    mine, other = (json.loads((f / "results.json").read_text()) for f in (ours, alone))
    assert mine["results"] == other["results"]
    assert {"1-il", "2-act", "3-rl", "pairs"} <= set(mine["seconds"])  # the shared ones', too


def test_common_prefixes_are_trained_once(finished):
    folder, printed = finished
    runs = folder / "runs"
    for seed in ("seed0", "seed1"):
        first = weights(runs / "il" / seed, "1-il").stat().st_ino
        for name in ("il-act", "il-act-rl", "il-rl"):
            assert weights(runs / name / seed, "1-il").stat().st_ino == first
        # the same stage elsewhere in a recipe, or with another learning rate, is another
        assert weights(runs / "double" / seed, "1-il").stat().st_ino != first
        assert digest(weights(runs / "double" / seed, "1-il")) != digest(
            weights(runs / "il" / seed, "1-il")
        )
    trained = Counter(re.findall(r"^(\d-\w+): \d+/\d+", printed, re.M))
    assert trained == {"1-il": 4, "2-act": 2, "1-act": 2, "3-rl": 2, "2-rl": 2}
    assert len(re.findall("^collect:", printed, re.M)) == 2
    assert len(re.findall(r"^pairs \(train\)", printed, re.M)) == 2
    assert len(re.findall("^eval base: ", printed, re.M)) == 2
    assert "begins with base → il → act of il-act" in printed
    shared = json.loads((runs / "il-act-rl" / "seed0" / "shared.json").read_text())
    assert shared["run"] == "il-act" and shared["stages"] == ["1-il", "2-act"]


def test_what_counts_as_common():
    base = config_of("recipe=il,act,rl")
    for settings, common in (
        (["recipe=il,act"], 2),
        (["recipe=il,rl"], 1),
        (["recipe=act,il,rl"], 0),
        (["stage.act.lr=0.5"], 1),
        (["stage.rl.lr=0.5"], 2),
        (["stage.dpo.lr=0.5"], 3),
        (["seed=1"], -1),
        (["eval.episodes=3"], -1),
        (["pairs.temperature=0.5"], -1),
        (["model.rank=2"], -1),
        (["env.train_tasks=3"], -1),
    ):
        assert common_stages(base, with_overrides(base, settings)) == common, settings


def test_rows_that_are_measured_otherwise_share_data_only(tmp_path):
    printed = run(plan(tmp_path, "base; hot: base eval.temperature=0.7; il"))
    assert "hot, seed 0; begins with data of base" in printed
    assert len(re.findall(r"^eval base: ", printed, re.M)) == 2
    first, second = (tmp_path / "runs" / name / "seed0" / "pairs.jsonl" for name in ("base", "hot"))
    assert first.stat().st_ino == second.stat().st_ino


def test_only_the_common_part_is_taken(tmp_path):
    run(plan(tmp_path, "il,act; il,rl"))
    ours = tmp_path / "runs" / "il-rl" / "seed0"
    assert {row["stage"] for row in logged(ours)} == {"1-il", "2-rl"}
    assert len(logged(ours)) == 4 + 2
    assert sorted(p.name for p in (ours / "stages").iterdir()) == ["0-base", "1-il", "2-rl"]
    assert [p.name for p in (ours / "samples").iterdir()] == ["2-rl.jsonl"]
    assert sorted(p.name for p in (ours / "tensorboard").iterdir()) == [
        "1-il",
        "2-rl",
        "evaluations",
    ]
    # a stage that was trained and not evaluated is not taken
    shutil.copytree(ours, tmp_path / "half")
    assert done_stages(tmp_path / "half", config_of("recipe=il,rl")) == 2
    (tmp_path / "half" / "stages" / "2-rl" / "eval.json").unlink()
    assert done_stages(tmp_path / "half", config_of("recipe=il,rl")) == 1
    shutil.rmtree(tmp_path / "half" / "stages" / "1-il" / "adapter")
    assert done_stages(tmp_path / "half", config_of("recipe=il,rl")) == 0


def test_the_amount_of_work_is_said_beforehand(tmp_path):
    asked = plan(tmp_path, "base; il; il,act,rl; il,rl; x: il stage.il.lr=1", "0-2")
    assert asked.amount().startswith("15 runs; 15 stages to train, common ones once; the plan")
    assert asked.longest_run().recipe == ["il", "act", "rl"]
    assert not any(tmp_path.iterdir())


def test_doing_it_again_does_nothing_and_more_rows_and_seeds_go_on(finished, tmp_path):
    folder, _ = finished
    before = (folder / "comparison.json").read_text()
    again = run(plan(folder, RECIPES, "0-1"))
    assert (folder / "comparison.json").read_text() == before
    assert not re.search("^eval|^collect|^pairs", again, re.M)
    fewer = run(plan(folder, "il; il,act", "1"))
    assert not re.search("^eval|^collect|^pairs", fewer, re.M)
    table = json.loads((folder / "comparison.json").read_text())
    assert (table["recipes"], table["seeds"]) == (["il", "il-act"], [1])
    run(plan(folder, RECIPES, "0-1"))
    assert (folder / "comparison.json").read_text() == before


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_table(finished, tmp_path):
    folder, _ = finished
    command = [sys.executable, "-m", "miniact.cli", "compare", "household-plain", *SMALL]
    command += ["--recipes", "il; il,act; il,rl", "--seeds", "0", "--out", str(tmp_path)]
    kills = 0
    for seconds in (6, 8, 10):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    labels = {"il": "il", "il-act": "il → act", "il-rl": "il → rl"}
    assert json.loads((tmp_path / "comparison.json").read_text()) == build(
        folder, labels, [0], "il"
    )


def test_an_interrupt_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "miniact.cli", "compare", "household-plain", *SMALL]
    command += ["--recipes", "il", "--seeds", "0", "--out", str(tmp_path), "stage.il.steps=100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs" / "il" / "seed0" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not metrics.is_file() and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.strip() == "miniact: stopped; the same command goes on"


# ---- the table ---------------------------------------------------------------------------------


def test_the_table_is_computed_from_the_runs(finished):
    folder, printed = finished
    table = json.loads((folder / "comparison.json").read_text())
    assert table["baseline"] == "il" and table["seeds"] == [0, 1]
    rows = {row["recipe"]: row for row in table["rows"]}
    assert list(rows) == ["base", "il", "il-act", "act", "il-act-rl", "il-rl", "double"]

    def last(name: str, seed: int) -> dict:
        file = folder / "runs" / name / f"seed{seed}" / "results.json"
        return list(json.loads(file.read_text())["results"].values())[-1]

    mine = [last("il-rl", seed)["next_action"]["accuracy"]["value"] for seed in (0, 1)]
    theirs = [last("il", seed)["next_action"]["accuracy"]["value"] for seed in (0, 1)]
    found = rows["il-rl"]["metrics"]["next action"]
    assert found["seeds"] == mine and found["n"] == 2
    assert found["mean"] == pytest.approx(np.mean(mine))
    assert found["std"] == pytest.approx(np.std(mine, ddof=1))
    difference = rows["il-rl"]["difference"]["next action"]
    change = np.subtract(mine, theirs)
    assert difference["mean"] == pytest.approx(np.mean(change))
    assert difference["std"] == pytest.approx(np.std(change, ddof=1))  # of pairs
    assert rows["il"]["difference"] == {}

    for name, row in rows.items():
        paths = (folder / "runs" / name / f"seed{seed}" for seed in (0, 1))
        per_seed = [logged(path) for path in paths if (path / "metrics.jsonl").is_file()]
        assert row["tokens"] * 2 == sum(r["tokens"] for rows in per_seed for r in rows)
        assert row["steps"] * 2 == sum("grad_norm" in r for rows in per_seed for r in rows)
    assert rows["base"]["steps"] == 0 and rows["il"]["steps"] == 4
    assert "il → act → rl" in printed and "95 % t interval" in printed
    assert (folder / "comparison.md").read_text() == whole_page(table)
    assert markdown(table) in whole_page(table)


def test_steps_are_optimizer_steps():
    live, dead = {"tokens": 10, "grad_norm": 0.1}, {"tokens": 4}
    metrics = {"1-il": [live, live], "2-act": [live, dead, live]}
    assert training_cost(metrics, {"il": {}, "act": {"updates": 3}}) == (2 + 2 * 3, 44)


def test_intervals_are_those_of_students_t():
    # n = 5, t = 2.776: a textbook's sample
    found = summary([9.0, 10.0, 11.0, 12.0, 13.0])
    assert found["mean"] == 11 and found["std"] == pytest.approx(1.58114, abs=1e-5)
    assert (found["low"], found["high"]) == pytest.approx((9.03676, 12.96324), abs=1e-4)
    assert summary([0.5]) == {"mean": 0.5, "std": None, "low": None, "high": None, "n": 1}


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        found = summary(list(rng.normal(3.0, 2.0, size=5)))
        hits += found["low"] <= 3.0 <= found["high"]
    assert 930 <= hits <= 970


def a_row(name: str, **metrics: list[float]) -> dict:
    named = {k.replace("_", " "): {**summary(v), "seeds": v} for k, v in metrics.items()}
    return {"recipe": name, "label": name, "steps": 3, "tokens": 12_345, "metrics": named,
            "difference": {}}  # fmt: skip


def test_what_the_table_shows():
    rows = [a_row("il", judgement=[0.5, 0.7]), a_row("act", judgement=[0.9, 0.9])]
    rows[1]["difference"] = {"judgement": summary([0.4, 0.2])}
    table = {"recipes": ["il", "act"], "seeds": [0, 1], "baseline": "il", "rows": rows}
    assert cell(rows[0], "judgement")[0] == "60.0 ± 14.1"
    assert cell(rows[1], "judgement")[2] == "Δ +30.0 [−97, +157]"
    assert cell(rows[0], "next action") == ["–"]
    half = a_row("half", judgement=[0.5325])
    assert cell(half, "judgement") == ["53.3"]  # halves go up, as in the report
    first, _, il, act = markdown(table).splitlines()
    assert first == "| recipe | steps | tokens | judgement |"
    assert il.startswith("| il&nbsp;(baseline) | 3 | 12&nbsp;k | 60.0&nbsp;±&nbsp;14.1<br>[")
    assert act.count("|") == 5 and act.endswith("<br>Δ&nbsp;+30.0<br>[−97,&nbsp;+157] |")
    *_, il, act = short_markdown(table).replace("\u00a0", " ").splitlines()
    assert il == "| il | 12 k | 60 ± 14 |"
    assert act == "| act | 12 k | 90 ± 0 |"  # the interval of the difference holds 0
    change = table["rows"][1]["difference"]["judgement"]
    for low, high, mark in ((0.001, 0.6, " ▲"), (-0.2, 0.6, ""), (0.0, 0.6, "")):
        change |= {"low": low, "high": high}
        assert short_markdown(table).replace("\u00a0", " ").endswith(f"| 90 ± 0{mark} |\n")
    change |= {"mean": -0.3, "low": -0.6, "high": -0.001}
    assert short_markdown(table).endswith("▼ |\n")


@pytest.mark.parametrize("width", [80, 100, 200])
def test_nothing_is_cut_off_in_a_narrow_terminal(finished, width):
    folder, _ = finished
    table = json.loads((folder / "comparison.json").read_text())
    console = Console(file=StringIO(), width=width)
    print_comparison(table, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in printed
    for row in table["rows"]:
        assert row["label"] in printed
        for label in columns(table):
            assert all(line in printed for line in cell(row, label))
    assert "\n%, held out" in printed and "can be told from il" in " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= width


def test_mean_scores_are_kept_where_they_say_more_than_success():
    def labels(*scores: float) -> set[str]:
        values = {"il": [{"success, id": 0.5, "mean score, id": score} for score in scores]}
        drop_plain_scores(values)
        return set(values["il"][0])

    assert labels(0.5, 0.5) == {"success, id"}
    assert labels(0.5, 0.6) == {"success, id", "mean score, id"}


def test_the_report_reads_a_comparison(finished, tmp_path):
    folder, _ = finished
    text = write_html(folder, tmp_path / "report.html").read_text()
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert data["compared"] and data["baseline"] == "il"
    recipe = next(r for r in data["recipes"] if r["name"] == "il-act-rl")
    table = json.loads((folder / "comparison.json").read_text())
    row = next(r for r in table["rows"] if r["recipe"] == "il-act-rl")
    assert recipe["tokens"] == row["tokens"]
    assert recipe["compared"]["next action"]["mean"] == row["metrics"]["next action"]["mean"]
    assert set(recipe["seconds"]) == {"collect", "pairs", "evaluate", "1-il", "2-act", "3-rl"}
    at = data["recipes"].index(recipe)
    own = next(run for run in data["runs"] if run["recipe"] == at)
    assert set(own["seconds"]) == {"evaluate", "3-rl"}  # what it computed itself


# ---- rows --------------------------------------------------------------------------------------


def test_the_papers_rows_are_the_default():
    tags = ["prompt.form=tags", "prompt.max_tokens=6000", "model.max_tokens_per_batch=7000"]
    plain, thinking = (
        default_recipes(config_of(*more)) for more in ([], [*tags, "stage.act.thinking=true"])
    )
    assert [r.label for r in plain] == [
        *("base", "il", "il → rl", "il → act → rl", "act → il → rl", "il → il", "il → rl → rl"),
        *("act", "act → il", "rl", "act → rl", "choice_sft → il → rl", "dpo → il → rl"),
    ]
    more = {r.name for r in thinking} - {r.name for r in plain}
    assert more == {"base-thinking", "reflect", "act-no-reasoning-il-rl"}
    assert next(r for r in thinking if r.name == "reflect").stages == ("reflect",)
    logs = config_of(*tags, "env.name=none", "env.trajectories=x.jsonl")
    assert "reflect" not in {r.name for r in default_recipes(logs)}


def test_every_row_of_the_paper_gets_its_line(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "miniact.experiments.data.load_policy",
        lambda config, seed: FakePolicy(tokenizer, scripted),
    )
    options = ["prompt.form=tags", "prompt.max_tokens=6000", "model.max_tokens_per_batch=7000"]
    options += [f"stage.{s}.steps=2" for s in ("choice_sft", "dpo", "reflect")]
    options += [f"stage.{s}.batch=2" for s in ("choice_sft", "dpo", "reflect")]
    comparison = plan(tmp_path, "default", "3", *options, "stage.act.thinking=true")
    run(comparison)
    table = json.loads((tmp_path / "comparison.json").read_text())
    assert len(table["rows"]) == 16 and table["recipes"] == [r.name for r in comparison.recipes]
    for row in table["rows"]:
        assert row["metrics"]["judgement"]["n"] == 1
        assert (row["tokens"] > 0) == (not row["recipe"].startswith("base"))
    flipped = load_config(tmp_path / "runs" / "base-thinking" / "seed3" / "config.yaml")
    assert flipped.eval.thinking
    silent = load_config(tmp_path / "runs" / "act-no-reasoning-il-rl" / "seed3" / "config.yaml")
    assert not silent.stage.act.thinking and silent.recipe == ["act", "il", "rl"]


def test_recipes_and_seeds_as_text():
    assert parse_recipe(" long : il,rl stage.il.steps=9 ").settings == [
        "recipe=il,rl",
        "stage.il.steps=9",
    ]
    assert parse_recipe("base").stages == () and parse_recipe("base").label == "base"
    assert parse_recipe("x: il").label == "x" and parse_recipe("il,il").label == "il → il"
    assert parse_recipe("far: il env.options={a: 1}".replace(" 1", "1")).overrides == (
        "env.options={a:1}",
    )
    assert parse_seeds("3") == [3] and parse_seeds("0-2, 2,5") == [0, 1, 2, 5]


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipes", "il; atc"], "--recipes: atc: recipe[0]: unknown stage 'atc'"),
        (["--recipes", "il; il"], "'il' stands there twice"),
        (["--recipes", " ; "], "none given"),
        (["--recipes", "il stage.il.steps=9"], "it needs a name: NAME: il stage.il.steps=9"),
        (["--recipes", "x: il steps"], "expected stages with commas between"),
        (["--recipes", "il act"], "expected stages with commas between"),
        (["--recipes", "../x: il"], "'../x' is no folder name"),
        (["--recipes", "..: il"], "'..' is no folder name"),
        (["--recipes", "x: il stage.il.stepz=9"], "--recipes: x: stage.il.stepz: unknown key"),
        (["--recipes", "reflect"], "--recipes: reflect: stage.reflect: plain replies"),
        (["--seeds", "4-0"], "--seeds: '4-0'; expected numbers and ranges"),
        (["--seeds", "a"], "--seeds: 'a'; expected"),
        (["--seeds", ""], "--seeds: ''; expected"),
        (["--seeds", "-3"], "--seeds: '-3'; expected"),
        (["--baseline", "rl,il"], "--baseline: 'rl,il' is not one of the recipes: base, il, il-rl"),
        (["--budget", "soon"], "--budget: 'soon'; expected a time such as 90s"),
        (["--budget", "0m"], "--budget: '0m'; expected a time"),
        (["--recipes", "il; atc", "--budget", "5m"], "--recipes: atc: recipe[0]: unknown stage"),
        (["--recipes", "x: il stage.il.z=9", "--budget", "5m"], "x: stage.il.z: unknown key"),
        (["--recipes", "il; IL: il"], "'il' stands there twice"),
    ],
)
def test_mistakes_are_told_in_one_line_before_any_work(tmp_path, options, message):
    out = tmp_path / "cmp"
    done = CliRunner().invoke(main, ["compare", "household-plain", "--out", str(out), *options])
    assert done.exit_code == 2
    assert message in done.output and done.output.count("\n") == 1
    assert not out.exists()


def test_another_config_in_the_same_folder_is_refused(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(UserError, match=r"whose 'stage.act.lr' differs; its runs cannot stand"):
        run(plan(folder, RECIPES, "0", "stage.act.lr=0.5"))
    with pytest.raises(UserError, match=r"double.seed0: was run with another 'stage.il.lr'"):
        run(plan(folder, "il; double: il stage.il.lr=0.002"))
    alone = folder / "runs" / "il" / "seed0"
    with pytest.raises(UserError, match="holds a run, not a comparison"):
        run(plan(alone, "il"))


def test_a_run_of_another_config_among_the_runs_is_refused(tmp_path):
    start_run(config_of("recipe=il", "stage.il.lr=0.7"), tmp_path / "runs/il/seed0", quiet())
    with pytest.raises(UserError, match=r"was run with another 'stage.il.lr'"):
        run(plan(tmp_path, "il"))


def test_two_processes_share_a_folder_but_no_seed(finished):
    folder, _ = finished
    with locked(folder / ".seed1.lock", ""):
        run(plan(folder, "il", "0"))
        with pytest.raises(UserError, match="another miniact compares seed 1 in this folder"):
            run(plan(folder, "il", "0-1"))
    run(plan(folder, RECIPES, "0-1"))


def test_a_row_that_fails_does_not_take_the_others_with_it(tmp_path):
    comparison = plan(tmp_path, "il; lost: il model.start=/no/such/adapter; il,rl", "0-1")
    with pytest.raises(UserError, match=r"^2 runs failed.* first is lost, seed 0: .*no/such"):
        run(comparison)
    table = json.loads((tmp_path / "comparison.json").read_text())
    assert table["recipes"] == ["il", "il-rl"]
    write_html(tmp_path, tmp_path / "report.html")  # of the rows that are there
    # without its baseline a table has no differences
    labels = {"il-rl": "il → rl"}
    assert build(tmp_path, labels, [0, 1], "il")["rows"][0]["difference"] == {}


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), OSError(5, "lost", "disk")])
def test_a_row_that_breaks_does_not_take_the_others_with_it(finished, monkeypatch, error):
    folder, _ = finished

    def broken(*arguments):
        raise error

    monkeypatch.setattr("miniact.experiments.compare.run_recipe", broken)
    with pytest.raises(UserError, match=r"1 runs failed.* rl, seed 0: .*(out of memory|lost)"):
        run(plan(folder, "rl; il", "0"))
    monkeypatch.undo()
    run(plan(folder, RECIPES, "0-1"))


def test_damaged_files_are_named_in_one_line(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "cmp")
    ours = tmp_path / "cmp" / "runs" / "il-rl" / "seed1"
    with (ours / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "2-rl", "st')
    with pytest.raises(UserError, match=r"metrics.jsonl:7: expected a JSON object"):
        run(plan(tmp_path / "cmp", RECIPES, "0-1"))
    (ours / "results.json").unlink()
    (ours / "stages" / "0-base" / "eval.json").unlink()  # a link: the others keep theirs
    (ours / "stages" / "0-base" / "eval.json").write_text("{")
    with pytest.raises(UserError, match=r"1 runs failed.*il-rl, seed 1: .*eval.json: damaged"):
        run(plan(tmp_path / "cmp", RECIPES, "0-1"))
    table = json.loads((tmp_path / "cmp" / "comparison.json").read_text())
    assert "il-rl" not in table["recipes"] and "il" in table["recipes"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        command = ["compare", "household-plain", *SMALL, "--recipes", "il", "--out", str(out)]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2 and done.output.splitlines()[-1].startswith("miniact: ")
        assert "Traceback" not in done.output and str(tmp_path / "file") in done.output


def test_a_run_is_done_only_when_all_its_files_are_there(tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("miniact.experiments.results.draw_curves", killed)
    with pytest.raises(KeyboardInterrupt):
        run(plan(tmp_path, "base"))
    ours = tmp_path / "runs" / "base" / "seed0"
    assert not (ours / "results.json").exists()
    monkeypatch.undo()
    run(plan(tmp_path, "base"))
    assert all((ours / name).is_file() for name in ("results.json", "results.txt", "curves.png"))


# ---- the budget --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), (" 2h ", 7200)]
)
def test_budgets_as_text(text, seconds):
    assert parse_budget(text) == seconds


SPEED = Speed(data=10, evaluation=5, step={"il": 1.0, "act": 2.0, "rl": 3.0})


def test_the_estimate_counts_what_is_common_once(tmp_path):
    # 10 data + 5 base + il 4·1 + 5, then act 3·2 + 5, then rl 2·3 + 5; two seeds
    comparison = plan(tmp_path, "il; il,act,rl; base; il,act", "0-1")
    assert SPEED.estimate(comparison) == 2 * (10 + 5 + (4 + 5) + (6 + 5) + (6 + 5))
    # measured otherwise, the base is evaluated again
    other = plan(tmp_path, "base; hot: base eval.temperature=0.7")
    assert SPEED.estimate(other) == 10 + 5 + 5


def test_cuts_go_from_everything_to_the_least(tmp_path):
    whole = plan(tmp_path, "base; il; il,act; il,rl; long: il stage.il.steps=8", "0-4")
    found = list(sizes(whole))
    needs = [SPEED.estimate(size.of(whole)) for size in found]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) > 8
    assert found[0] == Size(("base", "il", "il-act", "il-rl", "long"), (0, 1, 2, 3, 4), 1)
    assert found[-1] == Size(("base", "il"), (0,), 1 / 8)
    assert all("il" in size.rows for size in found)  # the baseline stays
    half = next(size for size in found if size.share == 1 / 2).of(whole)
    configs = half.configs(0)
    assert configs["il"].stage.il.steps == 2 and configs["long"].stage.il.steps == 4
    assert configs["il"].eval == whole.config.eval  # never cut
    for seconds in (needs[0] * 1.21, needs[4] * 1.21, needs[-1] * 1.21):
        size, need = choose(whole, SPEED, seconds)
        assert need <= seconds
        larger = found[: found.index(size)]
        assert all(1.2 * SPEED.estimate(x.of(whole)) > seconds for x in larger)
    shown = describe_cuts(whole, Size(("base", "il"), (0, 1), 0.25))
    assert shown == "cut: steps to 25%, seeds to 0, 1, the rows il → act; il → rl; long"
    assert describe_cuts(whole, found[0]) == "nothing is cut"
    with pytest.raises(UserError, match="--budget: even 2 rows, one seed and 12% of the steps"):
        choose(whole, SPEED, 1.0)


def test_a_budget_is_measured_and_kept(tmp_path):
    whole = plan(tmp_path, "il; il,act; il,rl", "0-4")
    small = fit(whole, 100_000, quiet())
    assert small == whole  # plenty: nothing is cut
    known = json.loads((tmp_path / "budget.json").read_text())
    assert set(known["measured"]["step"]) == {"il", "act", "rl"}
    assert all(0 < s < 60 for s in known["measured"]["step"].values())
    assert known["measured"]["evaluation"] > 0
    with pytest.raises(UserError, match="sized for another 'seconds'"):
        fit(whole, 5, quiet())
    with pytest.raises(UserError, match=r"sized for another 'config.stage.il.lr'"):
        fit(
            replace(whole, config=with_overrides(whole.config, ["stage.il.lr=1"])), 100_000, quiet()
        )
    assert fit(whole, 100_000, quiet()) == whole  # again, without measuring

    # half a measurement, or that of another config, tells no time
    (tmp_path / "budget.json").unlink()
    steps, base = (tmp_path / "budget" / name / "seed0" for name in ("steps", "base"))
    (steps / "results.json").unlink()
    stamp = (base / "results.json").stat().st_mtime_ns
    (steps / "metrics.jsonl").write_text('{"stage": "1-il", "step": 0, "time": 0}\n' * 9)
    assert fit(whole, 100_000, quiet()) == whole
    again = json.loads((tmp_path / "budget.json").read_text())["measured"]["step"]
    assert all(0 < s < 60 for s in again.values())
    assert (base / "results.json").stat().st_mtime_ns == stamp
    (tmp_path / "budget.json").unlink()
    other = replace(whole, config=with_overrides(whole.config, ["eval.states=2"]))
    assert fit(other, 100_000, quiet()) == other
    assert (base / "results.json").stat().st_mtime_ns != stamp
    (tmp_path / "budget.json").unlink()
    fit(whole, 100_000, quiet())

    # what was measured on the way is used: the base evaluation is not done twice
    one = replace(whole, recipes=whole.recipes[:1], seeds=(0,))
    printed = run(one)
    assert "begins with base of base" in printed and not re.search("^eval base", printed, re.M)


def test_a_tight_budget_cuts_and_says_so(tmp_path):
    whole = plan(tmp_path, "il; il,act; il,rl", "0-4")
    fit(whole, 100_000, quiet())
    known = json.loads((tmp_path / "budget.json").read_text())
    measured = Speed(**known["measured"])
    size, need = choose(whole, measured, 0.5 * measured.estimate(whole))
    assert size != next(sizes(whole)) and need <= 0.5 * measured.estimate(whole)


def test_a_budget_comes_before_the_comparison(finished):
    folder, _ = finished
    with pytest.raises(UserError, match="was not sized by --budget"):
        fit(plan(folder, RECIPES, "0-1"), 60, quiet())
