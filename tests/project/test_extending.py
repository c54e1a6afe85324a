"""docs/extending.md keeps its word: a copy of the project with all its edits in it runs.

The page's commands run as they stand there, only smaller.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SMALL = [
    *(
        "env.train_tasks=8",
        "env.heldout_tasks=2",
        "eval.episodes=1",
        "eval.states=4",
        "eval.splits=id",
    ),
    *("eval.pairs=4", "stage.il.steps=4", "stage.il.batch=4", "stage.rft.steps=3"),
    *("stage.rft.batch=8", "stage.rft.max_tokens=10", "stage.plugin.steps=2"),
    *("stage.act.steps=2", "stage.act.batch=4", "stage.rl.steps=2", "stage.rl.batch=4"),
]
LARGE_COMMANDS = ("run", "compare")


def edit(project: Path, diff: str) -> None:
    """Make the edits of a diff block: no line numbers, so every place must be found once."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        lines = body.splitlines()
        before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
        text = (project / name).read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{name} has not once: {before}"
        (project / name).write_text(text.replace(before, after), encoding="utf-8")


def write(project: Path, code: str) -> None:
    """Make the file that a block names in its first line, or add the block at its end."""
    head, _, body = code.partition("\n")
    file = project / head.removeprefix("# ")
    assert file.parent.is_dir() and file.suffix == ".py", head
    with file.open("a", encoding="utf-8") as out:
        out.write(body)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with everything in it that the page adds."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("miniact", "tests", "tiny_configs", "docs", "dev"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for kind, text in BLOCKS:
        if kind == "diff":
            edit(copy, text)
        elif kind == "python":
            write(copy, text)
        else:
            for line in text.splitlines():
                if line.startswith("cp "):
                    shutil.copy(*(copy / name for name in line.split()[1:]))
    return copy


def run(project: Path, line: str) -> str:
    """Run one command of the page in the copy; returns what it printed."""
    program, *arguments = shlex.split(line.replace("steps=600", "steps=6"))
    module = {"miniact": ["-m", "miniact.cli.main"], "pytest": ["-m", "pytest"], "python": []}
    if program == "miniact" and arguments[0] in LARGE_COMMANDS:
        arguments += SMALL + ["--seeds", "0"] * (arguments[0] == "compare")
    done = subprocess.run(
        [sys.executable, *module[program], *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def commands(about: str) -> list[str]:
    """The lines of the one bash block that speaks of `about`."""
    (block,) = [text for kind, text in BLOCKS if kind == "bash" and about in text]
    return block.splitlines()


def test_every_block_is_used():
    assert {kind for kind, _ in BLOCKS} == {"python", "diff", "bash"}
    found = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
    about = ("env.name=counting:", "env.name=counting env", "runs/brief", "cp miniact", "my-words")
    about += ("runs/hardest", "pytest tests/dev/test_reference.py", "miniact compare", "-k RFT")
    about += ("table_log",)
    assert found == [line for one in about for line in commands(one)]


def test_the_copy_is_what_runs(project):
    code = "import miniact.method.rft, miniact; print(miniact.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(project)


def test_the_code_keeps_the_style_of_the_house(project):
    names = ["miniact", "tests/test_focal_loss.py", "tests/envs/test_env_contract.py"]
    names += ["table_log.py", "counting.py", "my_code.py"]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, *names],
            cwd=project,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_environment_keeps_the_contract_and_can_be_used(project):
    contract, _, collect = (run(project, line) for line in commands("env.name=counting env"))
    assert re.search(r"1[0-9] passed", contract), contract
    assert "skipped" not in contract
    found = json.loads((project / "runs/counting-expert/expert.json").read_text())
    assert {split: found[split]["success"]["value"] for split in found} == {
        "train": 1.0,
        "id": 1.0,
        "ood": 1.0,
    }
    assert "18 trajectories" in collect
    assert len((project / "counting.jsonl").read_text().splitlines()) == 18


@pytest.mark.slow
def test_the_loss_has_the_gradient_of_its_formula(project):
    assert "5 passed" in run(project, "pytest tests/test_focal_loss.py")


@pytest.mark.slow
def test_the_stage_trains_and_is_in_the_results(project):
    for line in commands("pytest tests/dev/test_reference.py"):
        run(project, line)
    assert "`stage.rft`" in (project / "docs" / "reference.md").read_text(encoding="utf-8")
    folder = project / "runs" / "il-rft"
    assert list(json.loads((folder / "results.json").read_text())["results"])[-1] == "2-rft"
    assert (folder / "stages" / "2-rft" / "adapter" / "adapter_model.safetensors").is_file()
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    rows = [row for row in rows if row["stage"] == "2-rft"]
    assert len(rows) == 3 and any("grad_norm" in row for row in rows)
    assert all(("loss" in row) == (row["correct"] > 0) for row in rows)


@pytest.mark.slow
def test_code_of_ones_own_runs_without_an_edit(project):
    collect, _ = commands("env.name=counting:")
    assert "18 trajectories" in run(project, collect)
    assert "counting:Counting expert" in (project / "counted.jsonl").read_text()
    for about, names in (
        ("runs/brief", ["my_code:brief is imported"]),
        ("runs/hardest", ["my_code:hardest is imported", "2-hardest"]),
        ("my-words", []),
    ):
        (line,) = commands(about)
        printed = run(project, line)
        assert all(name in printed for name in names), printed
    rows = (project / "runs/brief/samples/3-rl.jsonl").read_text().splitlines()
    answers = [answer for row in rows for answer in json.loads(row)["answers"]]
    assert all(answer["reward"] < answer["correct"] for answer in answers)
    words = (project / "runs/my-words/wording.txt").read_text(encoding="utf-8")
    assert "{count} turns are left out" in words


@pytest.mark.slow
def test_a_row_is_compared(project):
    (line,) = commands("miniact compare")
    run(project, line)
    table = json.loads((project / "runs/rft-rows/comparison.json").read_text())
    assert len(table["rows"]) == 3 and (project / "runs/rft-rows/runs/il-rft/seed0").is_dir()
    (tested,) = commands("-k RFT")
    assert "1 passed" in run(project, tested)
    code = (
        "from miniact.experiments.recipes import default_recipes\n"
        "from miniact.config import Config\n"
        "assert 'il-rft' in [r.name for r in default_recipes(Config())]"
    )
    environment = {**os.environ, "PYTHONPATH": str(project)}
    subprocess.run([sys.executable, "-c", code], cwd=project, env=environment, check=True)


@pytest.mark.slow
def test_the_logger_has_every_step_and_every_evaluation(project):
    (line,) = commands("table_log")
    run(project, line)
    folder = project / "runs" / "logged"
    steps = list(csv.DictReader((folder / "1-il.csv").open()))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [float(step["loss"]) for step in steps] == [row["loss"] for row in rows]
    after = list(csv.DictReader((folder / "evaluations.csv").open()))
    results = json.loads((folder / "results.json").read_text())["results"].values()
    assert [float(x["splits/id/success"]) for x in after] == [
        result["splits"]["id"]["success"]["value"] for result in results
    ]
    assert len(steps) == 4 and len(after) == 2
