"""Loggers: what they got is read back from what they wrote, offline and by themselves."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import struct
import sys
from collections import defaultdict
from io import StringIO
from pathlib import Path

import pytest
from fakes import SMALL, TAGS, FakePolicy, learn, scripted
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event, SessionLog

from miniact import UserError
from miniact.config import load_config
from miniact.config.sections import ILConfig
from miniact.experiments.metrics import figures
from miniact.experiments.pipeline import resume_run, run_recipe
from miniact.experiments.reading import read_metrics
from miniact.runs.folder import RunFolder
from miniact.runs.loggers import LOGGERS


def events(folder: Path) -> list[Event]:
    """All events of a folder, in TensorBoard's order. A record: length, sum, event, sum."""
    found = []
    for file in sorted(folder.glob("events*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """name → step → value, as TensorBoard shows it: a start at a step hides what was there."""
    shown: dict[str, dict[int, float]] = defaultdict(dict)
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            for curve in shown.values():
                for step in [s for s in curve if s >= event.step]:
                    del curve[step]
        for value in event.summary.value:
            assert event.step not in shown[value.tag], "twice"
            shown[value.tag][event.step] = value.simple_value
    return shown


@pytest.fixture
def run(tokenizer, monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr(
        "miniact.experiments.data.load_policy", lambda *_: FakePolicy(tokenizer, scripted)
    )
    config = load_config("household-plain", [*SMALL, *TAGS, "recipe=il,act"])
    run_recipe(config, tmp_path / "run", Console(file=StringIO()))
    return tmp_path / "run"


def test_tensorboard_has_every_step_and_every_evaluation(run):
    for stage, rows in read_metrics(run).items():
        shown = curves(run / "tensorboard" / stage)
        for row in rows:
            step = row["step"]
            logged = {name: value for name, value in row.items() if name in shown}
            assert set(row) == {"stage", "step", "time", *logged}
            assert {name: shown[name][step] for name in logged} == pytest.approx(logged)
        assert shown["lr"].keys() == {0, 1, 2}
    for _ in range(2):
        shown = curves(run / "tensorboard" / "evaluations")
        assert {"splits/id/success", "splits/id/score", "judgement/expert_first"} < set(shown)
        for number, stage in enumerate(("0-base", "1-il", "2-act")):
            evaluation = json.loads((run / "stages" / stage / "eval.json").read_text())
            for path, figure in figures(evaluation):
                value = figure["value"] if isinstance(figure, dict) else figure
                assert shown[path.replace(".", "/")].get(number) == pytest.approx(value)
        (run / "results.json").unlink(missing_ok=True)
        resume_run(run, Console(file=StringIO()))  # reads back; the curves stay as they are


def test_a_logger_that_is_not_there_is_said_before_anything_is_made(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == "trackio" else find(n))
    config = load_config("household-plain", [*SMALL, "log.to=tensorboard,trackio"])
    with pytest.raises(UserError, match=r"^log.to: trackio is not installed: pip install"):
        run_recipe(config, tmp_path / "run", Console(file=StringIO()))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"log.to: 'tensorbored' is not one of tensorboard, "):
        load_config("household-plain", ["log.to=tensorbored"])


def test_none_is_a_choice(tmp_path, tokenizer):
    with RunFolder(tmp_path, load_config("household-plain", ["log.to=[]"]).log.to) as folder:
        learn(folder, FakePolicy(tokenizer, str), ILConfig(steps=3))
    assert not (tmp_path / "tensorboard").exists()


def test_a_logger_that_cannot_be_opened_is_one_line(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(LOGGERS, "wandb", lambda *_: (tmp_path / "no").open())
    with (
        RunFolder(tmp_path, ["wandb"]) as folder,
        pytest.raises(UserError, match=r"^log.to: wandb cannot be opened: .*No such file"),
    ):
        learn(folder, FakePolicy(tokenizer, str), ILConfig(steps=3))


def test_trackio_has_every_step_also_after_a_kill(tmp_path, tokenizer, monkeypatch):
    """The real package, offline: its database is read by SQL."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", exc_type=ImportError)
    config = ILConfig(steps=7, checkpoint_every=2)
    with RunFolder(tmp_path / "run", ["trackio", "tensorboard"]) as folder:
        with pytest.raises(RuntimeError, match="killed"):
            learn(folder, FakePolicy(tokenizer, str), config, stop_at=5)
        learn(folder, FakePolicy(tokenizer, str), config)
    with sqlite3.connect(tmp_path / "trackio" / "miniact.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert len({name for name, _, _ in rows}) == 1 and "run/1-il-" in rows[0][0]
    assert {step: json.loads(text)["loss"] for _, step, text in rows} == {n: n for n in range(7)}


OWN = """
from contextlib import contextmanager

@contextmanager
def lines(folder, stage, start):
    with (folder / "own.txt").open("a") as file:
        yield lambda figures, step: print(stage, start, step, sorted(figures), file=file)

def nothing(folder, stage, start): pass
"""


def test_a_function_of_ones_own(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "own_loggers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    with RunFolder(tmp_path / "run", ["own_loggers:lines"]) as folder:
        learn(folder, FakePolicy(tokenizer, str), ILConfig(steps=2))
    assert (tmp_path / "run" / "own.txt").read_text() == "1-il 0 0 ['loss']\n1-il 0 1 ['loss']\n"
    with (
        RunFolder(tmp_path / "other", ["own_loggers:nothing"]) as folder,
        pytest.raises(UserError, match=r"^log.to: own_loggers:nothing cannot be opened: "),
    ):
        learn(folder, FakePolicy(tokenizer, str), ILConfig(steps=2))
    for name, says in (("own_loggers:none", "has no 'none'"), ("none:x", "none cannot be impor")):
        config = load_config("household-plain", [*SMALL, f"log.to={name}"])
        with pytest.raises(UserError, match=rf"^log.to: .*{says}"):
            run_recipe(config, tmp_path / "third", Console(file=StringIO()))
    assert not (tmp_path / "third").exists()


def test_an_evaluation_is_logged_once_however_often_a_run_goes_on(tmp_path, monkeypatch):
    (tmp_path / "own_counter.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    given = [*SMALL, "recipe=[]", "eval.episodes=0", "log.to=own_counter:lines"]
    config, out = load_config("household-plain", given), tmp_path / "run"
    for _ in range(3):
        run_recipe(config, out, Console(file=StringIO()))
    lines = (out / "own.txt").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("evaluations 0 0 ['judgement/accuracy'")
