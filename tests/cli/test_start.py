"""The first second of a command: what is wrong is said, before torch is imported, and mends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import TINY, miniact, refuses

from miniact.runs.files import read_json, write_json

RUN = ("run", "household-plain", *TINY, "--recipe", "il")
WATCHED = """
import sys
from miniact.cli.main import main

class Out:
    told = False
    def write(self, text):
        text = text.decode() if isinstance(text, bytes) else text
        if text.strip() and not Out.told:
            Out.told = True
            sys.__stdout__.write(f"torch: {'torch' in sys.modules}; said: {text}")
    def flush(self): pass
    def isatty(self): return False

sys.stdout = sys.stderr = Out()
main()
"""


def first_words(*arguments: str) -> str:
    """What a command says first, and whether torch was imported by then."""
    command = [sys.executable, "-c", WATCHED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stage.il.stepz=5"], "did you mean 'steps'?"),
        (["env.name=houshold"], "did you mean 'household'? (one of your own"),
        (["env.options={depth: 3}"], "does not take"),
        (["eval.splits=id,mars"], "mars"),
        (["model.path=./no/such/folder"], "no folder './no/such/folder'"),
        (["model.start=nowhere"], "no adapter_model.safetensors"),
        (["env.trajectories=nowhere.jsonl"], "no file 'nowhere.jsonl'"),
        (["pairs.file=nowhere.jsonl"], "no file 'nowhere.jsonl'"),
        (["prompt.wording=nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_what_is_wrong_is_said_before_torch_is_imported(arguments, says, tmp_path):
    out = tmp_path / "x"
    said = first_words(*RUN, *arguments, "--out", str(out))
    assert said.startswith("torch: False; said: miniact: ") and says in said
    assert not out.exists()


def test_a_run_speaks_before_torch_is_imported(tmp_path):
    said = first_words(*RUN, "--out", str(tmp_path / "x"), "stage.il.steps=0", "eval.episodes=0")
    assert said.startswith("torch: False; said: il, seed 0; run folder: ")


def test_a_file_or_a_comparison_is_no_run_folder(tmp_path):
    (tmp_path / "file").touch()
    assert "is no folder" in refuses(*RUN, "--out", str(tmp_path / "file"))
    assert "is no folder" in refuses(*RUN, "--out", str(tmp_path / "file" / "x"))
    (tmp_path / "compare.yaml").touch()
    assert "holds a comparison" in refuses(*RUN, "--out", str(tmp_path))


def test_a_failed_start_burns_no_folder(tmp_path):
    """The corrected command just runs, on the data that does not depend on what was wrong."""
    out = str(tmp_path / "x")
    assert "cannot write <think>" in refuses(*RUN, "--out", out, "prompt.form=tags")
    played = (tmp_path / "x" / "trajectories.jsonl").stat().st_mtime_ns
    assert "'seed' differs" in refuses(*RUN, "--out", out, "--seed", "5")  # it has been played
    miniact(*RUN, "--out", out)
    assert (tmp_path / "x" / "trajectories.jsonl").stat().st_mtime_ns == played
    assert "form: plain" in (tmp_path / "x" / "config.yaml").read_text()
    assert "'prompt.history' differs" in refuses(*RUN, "--out", out, "prompt.history=3")


def test_a_run_that_began_with_other_prompts_or_another_base_says_so(tmp_path):
    out = tmp_path / "x"
    miniact(*RUN, "--out", str(out))
    assert "began with" not in miniact(*RUN, "--out", str(out))  # it is done
    (out / "results.json").unlink()
    assert "began with" not in miniact(*RUN, "--out", str(out))  # as today's
    kept = read_json(out / "environment.json")
    for origin in ({}, kept["origin"] | {"prompts": "other"}):  # a run of before there were any
        write_json(out / "environment.json", kept | {"origin": origin})
        (out / "results.json").unlink()
        assert "began with an earlier miniact" in miniact("run", "--resume", str(out))
    (out / "results.json").unlink()
    other = kept["origin"] | {"base": "other"}
    write_json(out / "environment.json", kept | {"origin": other})
    assert "another builtin:tiny than" in refuses("run", "--resume", str(out))


def test_run_without_a_config_lists_what_ships():
    listed = miniact("run", code=2)
    assert "household" in listed and "qwen3-8b-qlora" in listed and "IL → ACT → RL" in listed
    assert listed == miniact("run", "--seed", "3", "stage.il.steps=1", code=2)


def test_a_folder_that_goes_on_or_is_new(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "household-il-seed0").mkdir(parents=True)
    miniact(*RUN)
    miniact(*RUN)
    assert len(list((tmp_path / "runs").iterdir())) == 2  # what is done is not gone into again


def test_ctrl_c_names_the_folder_that_was_chosen(tmp_path):
    command = [sys.executable, "-m", "miniact.cli", "run", "household-plain", *TINY]
    process = subprocess.Popen(
        [*command, "stage.il.steps=100000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = Path("runs/household-il-act-rl-seed0")
    metrics, patience = tmp_path / folder / "metrics.jsonl", time.monotonic() + 120
    while not metrics.is_file() and time.monotonic() < patience:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped; go on with: miniact run --resume {folder}" in errors
