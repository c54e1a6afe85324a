"""`miniact plan` against measured peaks, and what it says of a config that cannot fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from tiny_models import write_model

from miniact import UserError
from miniact.cli.main import main
from miniact.config import Config, load_config
from miniact.config.sections import ModelConfig
from miniact.tools.cost import KNOWN, read_shape, shape_of_folder, training_flops
from miniact.tools.plan import Device, Work, check_fits, make_plan, memory, remedies

CPU = Device("cpu", "a CPU", "float32", free=8e9, matmul=1e11, bandwidth=1e10)
MEDIUM = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return write_model(tmp_path_factory.mktemp("medium"), "llama-tied", tokenizer, **MEDIUM)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory, tokenizer):
    options = {**MEDIUM, "num_hidden_layers": 4, "intermediate_size": 1536, "head_dim": 64}
    return write_model(tmp_path_factory.mktemp("qwen"), "qwen3-untied", tokenizer, **options)


CASES = [
    pytest.param("folder", {}, Work("act", 1, 1, 1024, 8, 64, True), id="long prompt"),
    pytest.param("folder", {}, Work("act", 1, 6, 128, 8, 64, True), id="six groups"),
    pytest.param("folder", {}, Work("il", 1, 8, 500, 1, 24, False), id="imitation"),
    pytest.param(
        "folder",
        {"max_tokens_per_batch": 1024},
        Work("act", 1, 8, 256, 4, 64, True),
        id="bounded by the budget",
    ),
    pytest.param("qwen", {"rank": 64}, Work("act", 1, 2, 700, 4, 100, True), id="qwen, rank 64"),
    pytest.param(
        "folder",
        {"gradient_checkpointing": True},
        Work("act", 1, 2, 1500, 8, 64, True),
        id="checkpointing",
    ),
]


def case_config(path: Path, options: dict) -> ModelConfig:
    return ModelConfig(path=str(path), backend="torch", device="cpu", dtype="float32", **options)


@pytest.fixture(scope="module")
def peaks(request) -> dict[str, dict[str, float]]:
    """Peaks of a real step for every case; memory that is freed goes back at once."""
    cases = {}
    for case in CASES:
        model, options, work = case.values
        config = case_config(request.getfixturevalue(model), options)
        sizes = [work.batch, work.prompt, work.group, work.completion]
        cases[case.id] = [asdict(config), *sizes]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("measure_peak.py")), json.dumps(cases)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read on Linux")
@pytest.mark.slow
@pytest.mark.parametrize(("model", "options", "work"), CASES)
def test_the_estimate_is_within_20_percent_of_the_measured_peak(
    request, peaks, model, options, work
):
    path = request.getfixturevalue(model)
    planned = memory(shape_of_folder(path), case_config(path, options), work, CPU)
    found = peaks[request.node.callspec.id]
    expected = planned.adapter + planned.optimizer + planned.training
    assert found["training"] == pytest.approx(expected, rel=0.2)
    if work.samples:
        assert found["sampling"] <= 1.2 * (planned.adapter + planned.optimizer + planned.sampling)


def test_parameters_are_counted_right(folder, qwen):
    from safetensors import safe_open

    for path in (folder, qwen):
        with safe_open(path / "model.safetensors", "np") as file:
            stored = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
        assert shape_of_folder(path).parameters == pytest.approx(stored, rel=1e-3)
    assert KNOWN["Qwen/Qwen3-8B"].parameters == pytest.approx(8.19e9, rel=0.01)
    assert KNOWN["Qwen/Qwen3-0.6B"].parameters == pytest.approx(0.596e9, rel=0.01)


def test_flops_grow_as_P_plus_G_times_C(folder):
    """With short contexts, where attention is small."""
    shape = shape_of_folder(folder)
    small = training_flops(shape, 64, 4, 16, 16)
    assert training_flops(shape, 64, 8, 16, 16) / small == pytest.approx(192 / 128, rel=0.15)
    assert training_flops(shape, 128, 4, 16, 16) / small == pytest.approx(192 / 128, rel=0.15)


def test_the_8b_recipe_fits_24_gb_on_paper():
    config = load_config("tiny_configs/qwen3-8b-qlora.yaml")
    device = replace(CPU, kind="cuda", dtype="bfloat16", free=24e9)
    for work in (Work("act", 1, 16, 2048, 8, 512, True), Work("il", 1, 32, 2048, 1, 512, False)):
        planned = memory(KNOWN["Qwen/Qwen3-8B"], config.model, work, device)
        assert planned.weights == pytest.approx(6.2e9, rel=0.1)
        assert planned.peak < 24e9


def tight(monkeypatch, free: float) -> None:
    monkeypatch.setattr("miniact.tools.plan.detect", lambda model: replace(CPU, free=free))


def test_what_cannot_fit_is_refused_with_a_remedy_and_can_be_forced(monkeypatch):
    tight(monkeypatch, 1e8)
    config = load_config("tiny_configs/household.yaml")
    with pytest.raises(UserError, match=r"needs .* GB .* --force"):
        check_fits(config, Console(quiet=True), force=False)
    check_fits(config, Console(quiet=True), force=True)
    tight(monkeypatch, 64e9)
    check_fits(config, Console(quiet=True), force=False)


def test_remedies_name_what_is_large(monkeypatch):
    tight(monkeypatch, 1e9)
    config = Config(model=ModelConfig(path="Qwen/Qwen3-0.6B", max_tokens_per_batch=16384))
    plan = make_plan(config)
    assert not plan.fits
    said = " ".join(remedies(config, plan))
    assert "gradient_checkpointing" in said and "max_tokens_per_batch" in said
    heavy = Config(model=ModelConfig(path="Qwen/Qwen3-8B", gradient_checkpointing=True))
    assert "qlora" in " ".join(remedies(heavy, make_plan(heavy)))


def test_run_refuses_before_anything_is_written(monkeypatch, tmp_path):
    tight(monkeypatch, 1e8)
    done = CliRunner().invoke(main, ["run", "household", "--out", str(tmp_path / "run")])
    assert done.exit_code == 2 and "--force" in done.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config", ["household", "qwen3-8b-qlora", "qwen3-0.6b"])
def test_the_command_prints_memory_tokens_and_time(config):
    done = CliRunner().invoke(main, ["plan", config], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    for word in ("weights", "peak", "tokens each", "at most", "optimizer"):
        assert word in done.output


def test_a_config_json_of_another_kind_is_a_user_error(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(UserError, match="num_attention_heads"):
        shape_of_folder(tmp_path)
    with pytest.raises(UserError, match="decoder-only"):
        read_shape({}, "nothing")
