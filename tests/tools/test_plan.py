"""`miniact plan` against measured peaks, and what it says of a config that cannot fit."""

from __future__ import annotations

import json
import os
import re
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
from miniact.experiments.settle import settled
from miniact.tools import times
from miniact.tools.cost import (
    KNOWN,
    Work,
    known_shape,
    read_shape,
    shape_of_folder,
    training_flops,
    weight_bytes,
)
from miniact.tools.devices import Device, card
from miniact.tools.plan import Plan, check_fits, make_plan, memory, most_steps, remedies

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
    config = load_config("tiny_configs/household-plain.yaml")
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
    done = CliRunner().invoke(main, ["run", "household-plain", "--out", str(tmp_path / "run")])
    assert done.exit_code == 2 and "--force" in done.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config", ["household-plain", "qwen3-8b-qlora", "qwen3-0.6b"])
def test_the_command_prints_memory_tokens_and_time(config):
    done = CliRunner().invoke(main, ["plan", config], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    for word in ("weights", "peak", "tokens each", "optimizer", "answers at once"):
        assert word in done.output
    assert "at most" not in done.output  # real prompts are shorter, real machines are slower


# ---- a card that is not here ---------------------------------------------------------------------


def planned(name: str, *overrides: str, gpu: str = "4090") -> Plan:
    return make_plan(settled(load_config(name, list(overrides))), gpu)


def said_of(name: str, gpu: str, *overrides: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["plan", name, "--gpu", gpu, *overrides])
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize(
    ("name", "kind", "dtype", "gib"),
    [
        ("4090", "cuda", "bfloat16", 24),
        ("RTX 3090", "cuda", "bfloat16", 24),
        ("a100-80", "cuda", "bfloat16", 80),
        ("H100", "cuda", "bfloat16", 80),
        ("t4", "cuda", "float32", 15),  # it has no bfloat16 of its own
        ("16GB", "cuda", "bfloat16", 16),
        ("m3-16", "mlx", "bfloat16", 16 * 2 / 3),
        ("m3-max-64", "mlx", "bfloat16", 48),
    ],
)
def test_cards_are_known_by_name_or_size(name, kind, dtype, gib):
    device = card(name, ModelConfig())
    assert (device.kind, device.dtype) == (kind, dtype)
    assert 0.95 * gib * 2**30 < device.free <= gib * 2**30
    assert (device.matmul > 0) == (device.bandwidth > 0) == (name != "16GB")


@pytest.mark.parametrize(
    ("gpu", "overrides", "message"),
    [
        ("voodoo", [], "one of 2080ti, 3060"),
        ("m3", [], "say how much: m3-16"),
        ("4090", ["model.backend=mlx"], "does not run on 4090"),
        ("m3-16", ["model.backend=torch"], "does not run on m3-16"),
    ],
)
def test_an_unknown_card_is_one_line(gpu, overrides, message):
    output = said_of("household-plain", gpu, *overrides, code=2)
    assert message in output and len(output.splitlines()) == 1


def test_a_size_alone_has_memory_and_says_that_it_has_no_time():
    output = said_of("qwen3-8b-qlora", "24GB")
    assert "of 25.3 GB free" in output and "time: not known for a card of 24 GB" in output
    assert "about" not in output
    small = make_plan(load_config("qwen3-8b-qlora", []), "8GB")
    assert not small.fits and not small.times


def test_the_page_shows_what_the_plan_prints():
    """docs/gpu.md, made by: COLUMNS=100 miniact plan qwen3-8b-qlora --gpu 4090"""
    done = CliRunner().invoke(
        main, ["plan", "qwen3-8b-qlora", "--gpu", "4090"], env={"COLUMNS": "100"}
    )
    lines = [line.rstrip() for line in done.output.splitlines()]
    page = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in page


def test_nobody_waits_28780_hours(monkeypatch):
    tight(monkeypatch, 64e9)
    output = CliRunner().invoke(main, ["plan", "qwen3-8b-qlora"]).output
    assert "more than 60 days" in output and "plan CONFIG --gpu" in output
    assert not re.search(r"\d{4,} h|\d,\d{3}\.\d h", output)


def test_8b_samples_64_rows_as_fast_as_8_and_dequantises_beyond():
    """Starting 3,500 kernels takes longer than computing them for eight rows."""
    config = load_config("tiny_configs/qwen3-8b-qlora.yaml").model
    shape, device = KNOWN["Qwen/Qwen3-8B"], card("4090", config)
    work = Work("act", 1, 16, 690, 8, 512, True)
    rows = {n: times.decode(shape, device, work, config, n / 8) for n in (8, 64, 72)}
    assert rows[8].seconds == rows[64].seconds == rows[8].host > 0.025
    assert rows[64].device < 2.5 * rows[8].device
    assert rows[72].device > rows[64].device + 0.025  # every weight is restored first


def test_recomputation_is_counted():
    config = load_config("tiny_configs/qwen3-8b-qlora.yaml").model
    shape, device = KNOWN["Qwen/Qwen3-8B"], card("4090", config)
    work = Work("act", 1, 16, 2048, 8, 512, True)
    often, once = (
        times.training(shape, device, work, replace(config, gradient_checkpointing=on))
        for on in (True, False)
    )
    assert 1.25 < often / once < 1.45


def test_8b_takes_hours_on_a_4090_not_minutes_and_not_weeks():
    """By hand (docs/gpu.md): sampling 2 × 64 rows 73 s a step, training some 90 s; 200 steps."""
    took = {name: s / 3600 for name, _, s in planned("alfworld-qwen3-8b").times}
    assert 6 < took["act"] < 14 and 6 < took["rl"] < 14
    assert took["evaluations"] > 5


def seconds_of(plan: Plan, part: str) -> float:
    return sum(s for name, _, s in plan.times if name == part)


def test_episodes_take_as_many_actions_as_their_world_allows():
    some, more = (
        seconds_of(planned("alfworld-qwen3-8b", f"env.options.max_steps={n}"), "evaluations")
        for n in (10, 50)
    )
    assert more > 3 * some
    assert (
        most_steps(load_config("household-plain", ["env.options={}"]).env) == 30
    )  # its own default


def test_without_a_world_no_episode_is_played():
    with_world = planned("household-plain", "eval.states=0", "eval.pairs=0")
    assert seconds_of(with_world, "evaluations") > 0
    logs = planned("own-logs", "eval.states=0", "eval.pairs=0")
    assert seconds_of(logs, "evaluations") == 0
    assert "episodes of" not in said_of("own-logs", "4090")


def test_pairs_that_are_sampled_take_time():
    assert seconds_of(planned("qwen3-8b-qlora"), "pairs") > 600
    assert seconds_of(planned("qwen3-8b-qlora", "pairs.source=admissible"), "pairs") == 0


COMMON = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 500},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2},
}
EIGHT = {"num_experts": 8, "num_experts_per_tok": 2}
MIXED = {**EIGHT, "moe_intermediate_size": 32}
FAMILIES = {
    "LlamaConfig": {},
    "Qwen2Config": {},
    "Qwen3Config": {"head_dim": 32},
    "MixtralConfig": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3MoeConfig": {**MIXED, "head_dim": 32},
    "Qwen2MoeConfig": {**MIXED, "shared_expert_intermediate_size": 48},
    "OlmoeConfig": EIGHT,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_a_real_model_is_counted(family):
    """Experts too: all of them lie in memory, and none of them in 4 bits."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = getattr(transformers, family)(**COMMON, **FAMILIES[family], tie_word_embeddings=False)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    shape = read_shape(config.to_dict(), family)
    stored = sum(p.numel() for p in model.parameters())
    assert shape.parameters == pytest.approx(stored, rel=0.01)  # but for biases and small norms
    if shape.experts > 1:
        qlora = weight_bytes(shape, ModelConfig(adapter="qlora"), "bfloat16")
        mixed = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
        assert qlora > 2 * mixed and shape.computing < 0.6 * stored
        assert shape.lora(8) == sum(8 * (i + o) for i, o in shape.widths) * 3


def test_a_model_out_of_reach_is_planned_from_its_config_json_alone(monkeypatch, tmp_path):
    def offline(path: str) -> Path:
        raise UserError(f"model.path: cannot fetch {path!r}")

    monkeypatch.setattr("miniact.backends.common.config_folder", offline)
    with pytest.raises(UserError, match=r"config.json is enough .* Qwen/Qwen3-8B"):
        known_shape("someone/else-7B")
    (tmp_path / "config.json").write_text(json.dumps(COMMON))
    assert known_shape(str(tmp_path)).layers == COMMON["num_hidden_layers"]


def test_known_shapes_have_the_size_in_their_name():
    for path, shape in KNOWN.items():
        billions = float(path.rpartition("-")[2].rstrip("B"))
        assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.06), path


def test_a_config_json_of_another_kind_is_a_user_error(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(UserError, match="num_attention_heads"):
        shape_of_folder(tmp_path)
    with pytest.raises(UserError, match="decoder-only"):
        read_shape({}, "nothing")
