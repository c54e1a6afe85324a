"""`miniact plan` at full size, against a card that is not there: 8B in NF4 (fake_shapes.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from miniact.config.sections import ModelConfig
from miniact.tools import times
from miniact.tools.cost import KNOWN, Shape, Work, weight_bytes
from miniact.tools.devices import card
from miniact.tools.plan import memory, sampling_bytes

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="pretending a card needs g++"),
    pytest.mark.skipif(
        bool(torch.version.cuda) or sys.platform != "linux",
        reason="pretending a card needs a PyTorch for Linux without CUDA",
    ),
]
QLORA = {"path": "Qwen/Qwen3-8B", "adapter": "qlora", "gradient_checkpointing": True}
KEEPING = {"adapter": "lora", "gradient_checkpointing": False}
SMALL = {"path": "Qwen/Qwen3-0.6B", "adapter": "lora", "gradient_checkpointing": True}
CASES = {  # the model, its layers (their number changes nothing else), and B, P, G, C
    "8B": ({**QLORA, "max_tokens_per_batch": 6144}, 36, [1, 2048, 8, 512]),
    "a sixth of 8B": ({**QLORA, "max_tokens_per_batch": 16384}, 6, [4, 700, 8, 300]),
    "8B in bfloat16, nothing recomputed": ({**QLORA, **KEEPING}, 6, [2, 1000, 8, 256]),
    "a quarter of 0.6B": ({**SMALL, "max_tokens_per_batch": 8192}, 7, [8, 690, 8, 128]),
}


PROMPTS = 8  # as in measure_card.py


def config_of(model: dict) -> ModelConfig:
    return ModelConfig(backend="torch", device="cuda:0", dtype="bfloat16", **model)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, dict]:
    cases = {name: [asdict(config_of(model)), *rest] for name, (model, *rest) in CASES.items()}
    folder, here = tmp_path_factory.mktemp("card"), Path(__file__)
    root = here.parents[2]
    path = os.pathsep.join(map(str, (root, root / "tests", root / "dev")))
    done = subprocess.run(
        [sys.executable, str(here.with_name("measure_card.py")), str(folder), json.dumps(cases)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(map(json.loads, done.stdout.splitlines()))


def planned(case: str) -> tuple[ModelConfig, Shape, Work]:
    model, layers, (batch, P, G, C) = CASES[case]
    shape = replace(KNOWN[model["path"]], layers=layers)
    return config_of(model), shape, Work("act", 1, batch, P, G, C, True)


@pytest.mark.parametrize("case", CASES)
def test_memory_is_within_20_percent(measured, case):
    config, shape, work = planned(case)
    device, seen = card("4090", config), measured[case]
    plan, sampled = memory(shape, config, work, device), replace(work, batch=PROMPTS)
    lora = 4 * shape.lora(config.rank)  # float32, and as much again for the gradients
    assert seen["weights"] == pytest.approx(plan.weights + lora, rel=0.03)
    assert seen["training"]["peak"] == pytest.approx(
        plan.training + lora,
        rel=0.2 if "8B" in case else 0.26,  # the logits of 0.6B weigh more
    )
    logits = PROMPTS * work.group * shape.vocab * 16  # are planned; no token is drawn here
    expected = sampling_bytes(shape, config, sampled, device)
    assert 0.8 * (expected - logits) <= seen["prefill"]["peak"] <= 1.2 * expected
    assert plan.peak < device.free


@pytest.mark.parametrize("case", CASES)
def test_times_are_within_a_third_of_a_roofline(measured, case):
    """Of kernels that were counted one by one, with their FLOPs and bytes."""
    config, shape, work = planned(case)
    device = card("4090", config)
    sampled = replace(work, batch=PROMPTS)
    early = replace(sampled, completion=4)  # the second token
    for part, seconds in (
        ("training", times.training(shape, device, work, config)),
        ("prefill", times.prefill(shape, device, sampled, config)),
        ("decode", times.decode(shape, device, early, config, PROMPTS).device),
    ):
        assert seconds == pytest.approx(measured[case][part]["seconds"], rel=0.33), part


@pytest.mark.parametrize("case", CASES)
def test_kernels_a_layer_are_as_counted(measured, case):
    config, shape, work = planned(case)
    seen = {part: measured[case][part]["kernels"] for part in ("decode", "training")}
    assert seen["decode"] / shape.layers == pytest.approx(times.DECODE_KERNELS, rel=0.1)
    each = times.training_kernels(work, config)
    assert seen["training"] / shape.layers == pytest.approx(each, rel=0.1)


def test_a_4090_holds_the_8b_and_its_base_is_as_counted_by_hand():
    base = weight_bytes(KNOWN["Qwen/Qwen3-8B"], config_of(QLORA), "bfloat16")
    assert base == pytest.approx(6.946e9 * 0.516 + 1.245e9 * 2, rel=0.001)
