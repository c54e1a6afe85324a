"""The kit for the first card: its pieces run (at tiny shapes, on a CPU), once each, and whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest
from click.testing import CliRunner
from gpu_check import PIECES, main

pytest.importorskip("torch")


def kit(folder: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["--out", str(folder), *arguments], env={"COLUMNS": "100"})
    return done.exit_code, done.output


def test_a_model_of_random_weights_is_sampled_and_trained_beside_its_plan(tmp_path):
    """In a process of its own, as the kit runs it: on a CPU it is the process that is measured."""
    code = (
        "import json, pathlib, sys; from gpu_check import TINY, check_size\n"
        "found = check_size(pathlib.Path(sys.argv[1]), TINY, 'qlora', (20, 2, 4))\n"
        "print(json.dumps(found))"
    )
    paths = os.pathsep.join(
        [str(Path(gpu_check.__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    seen, planned = found["seen"], found["planned"]
    for part in ("sampling_2_rows", "sampling_16_rows", "training"):
        assert seen[part]["seconds"] > 0 and seen[part]["tokens_per_s"] > 0
        assert seen[part]["peak_bytes"] >= seen["weights_bytes"] > 0
    assert min(planned.values()) > 0
    assert not list(tmp_path.rglob("*.safetensors"))  # no file of weights is made


def test_a_finished_piece_is_not_run_again_and_a_failed_one_is(tmp_path, monkeypatch):
    calls: list[str] = []

    def run(command: list[str], **options: object) -> object:
        name = command[command.index("--piece") + 1]
        calls.append(name)
        if name == "bench":
            raise gpu_check.subprocess.TimeoutExpired(command, 540, stderr=b"step 3")
        if name != "household" or calls.count(name) > 1:
            (tmp_path / f"{name}.json").write_text(json.dumps({"ok": True}))
        return gpu_check.subprocess.CompletedProcess(command, 1, "", "CUDA error: no kernel image")

    monkeypatch.setattr(gpu_check.subprocess, "run", run)
    code, output = kit(tmp_path, "doctor", "household", "bench")
    assert code == 1 and "see household.failed.txt" in output
    assert "no kernel image" in (tmp_path / "household.failed.txt").read_text()
    assert "stopped after 540 s" in (tmp_path / "bench.failed.txt").read_text()
    code, output = kit(tmp_path, "doctor", "household")
    assert code == 0 and calls == ["doctor", "household", "bench", "household"]
    assert not (tmp_path / "household.failed.txt").exists()


def test_an_unknown_piece_is_one_line(tmp_path):
    code, output = kit(tmp_path, "70b")
    assert code == 2 and "expected some of doctor, 8b, 0.6b" in output


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_every_piece_runs(tmp_path, piece):
    code, output = kit(tmp_path, piece, "--tiny")
    assert code == 0, (tmp_path / f"{piece}.failed.txt").read_text()[-2000:]
    assert json.loads((tmp_path / f"{piece}.json").read_text())
    assert piece in output
