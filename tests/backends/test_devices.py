"""Which device, which precision, which optimizer: what a machine without a card can say of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import random_batch, write_model

from miniact import UserError
from miniact.backends.protocol import load_policy
from miniact.backends.torch.device import pick_device, pick_dtype
from miniact.config.sections import ModelConfig
from miniact.method.losses import cross_entropy

torch = pytest.importorskip("torch")
GROUPS = random_batch([5, 9], [[3, 1], [6]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 128}  # NF4 on a CPU wants multiples of 64
    return write_model(tmp_path_factory.mktemp("llama"), "llama-untied", tokenizer, **sizes)


def load(folder: Path, **options: Any) -> Any:
    return load_policy(ModelConfig(path=str(folder), device="cpu", rank=4, **options), seed=0)


@pytest.mark.parametrize("major", [7, 8])
def test_bfloat16_only_where_the_card_itself_has_it(monkeypatch, major):
    """A T4 or an RTX 20 (7.5) emulates it, and slowly; the second card is asked, not the first."""
    current = [0]

    @contextlib.contextmanager
    def on(device: Any) -> Any:
        current[0] = device.index
        yield
        current[0] = 0

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or (major >= 8 and current[0] == 1)

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    expected = torch.bfloat16 if major >= 8 else torch.float32
    assert pick_dtype("auto", torch.device("cuda:1")) == expected
    assert pick_dtype("auto", torch.device("cuda:0")) == torch.float32


def test_a_card_s_speed_is_that_of_a_product_that_it_notices():
    """2048³ is 17 GFLOP: 25 µs on an H100, where starting it would be measured too."""
    from miniact.backends.torch.probe import Probe, large_enough

    assert large_enough(torch.device("cuda:1")) == 8192
    assert large_enough(torch.device("cpu")) == 2048
    assert Probe("cpu", "float32").matmul(n=64, repeats=1) > 0


def test_mlx_is_planned_for_in_the_precision_that_it_loads(monkeypatch):
    mx = pytest.importorskip("mlx.core")
    from miniact.backends.mlx import load as mlx_load
    from miniact.backends.mlx.probe import Probe

    assert Probe("auto", "auto").precision == "float32"  # a CPU's
    monkeypatch.setattr(mlx_load.mx, "default_device", lambda: mx.Device(mx.gpu))
    assert Probe("auto", "auto").precision == "bfloat16"


def test_auto_is_the_best_device_there_is(monkeypatch):
    assert pick_device("auto").type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_weights_that_are_trained_are_float32(folder, backend):
    """In bfloat16 a step of 1e-5 would leave five weights of six where they were."""
    if backend == "mlx":
        pytest.importorskip("mlx_lm")
    policy = load(folder, backend=backend, adapter="full", dtype="bfloat16")
    assert {str(w.dtype).rpartition(".")[2] for w in policy.trainable.values()} == {"float32"}
    before = {n: np.array(w.tolist()) for n, w in policy.trainable.items() if "q_proj" in n}
    policy.forward_backward(GROUPS, cross_entropy)
    policy.optim_step(1e-5, 1.0)
    for name, old in before.items():
        assert (np.array(policy.trainable[name].tolist()) != old).mean() > 0.95


def test_cuda_s_memory_grows_in_segments_and_the_user_s_setting_stays():
    code = "import miniact.cli.main, os, sys; print('torch' in sys.modules, end=' '); "
    code += "print(os.environ.get('PYTORCH_ALLOC_CONF'))"
    known = {k: v for k, v in os.environ.items() if "ALLOC_CONF" not in k}
    for own, expected in ({}, "expandable_segments:True"), ({"PYTORCH_ALLOC_CONF": "x"}, "x"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=known | own, capture_output=True, text=True
        )
        assert done.stdout.split() == ["False", expected], done.stderr


# ---- the optimizer ------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_every_adapter_has_the_same_optimizer_on_every_device(folder, adapter, tmp_path):
    policy = load(folder, adapter=adapter)
    policy.device = torch.device("cuda")  # where QLoRA had 8-bit moments that no file could hold
    policy.reset_optimizer()
    assert type(policy.optimizer) is torch.optim.AdamW
    policy.device = torch.device("cpu")
    policy.forward_backward(GROUPS, cross_entropy)
    policy.optim_step(1e-3, 1.0)
    policy.save_optimizer(tmp_path / "optimizer.safetensors")
    policy.load_optimizer(tmp_path / "optimizer.safetensors")
    moments = policy.optimizer.state_dict()["state"]
    assert all(m["exp_avg"].dtype == torch.float32 for m in moments.values())


def eight_bit(state: dict[str, Any]) -> dict[str, Any]:
    """As bitsandbytes below 0.50 laid its state out."""
    names = {"exp_avg": "state1", "exp_avg_sq": "state2"}
    return {f"{n.split('.')[0]}.{names.get(n.split('.')[1], 'step')}": x for n, x in state.items()}


def of_another_rank(state: dict[str, Any]) -> dict[str, Any]:
    return {n: x[:2].clone() if x.ndim else x for n, x in state.items()}


def with_a_part_missing(state: dict[str, Any]) -> dict[str, Any]:
    return {n: x for n, x in state.items() if n != "3.exp_avg_sq"}


@pytest.mark.parametrize("change", [eight_bit, of_another_rank, with_a_part_missing])
def test_an_optimizer_of_another_kind_is_refused_in_one_line(folder, tmp_path, change):
    from safetensors.torch import load_file, save_file

    policy = load(folder)
    policy.forward_backward(GROUPS, cross_entropy)
    policy.optim_step(1e-3, 1.0)
    file = tmp_path / "checkpoint-25" / "optimizer.safetensors"
    file.parent.mkdir()
    policy.save_optimizer(file)
    save_file(change(load_file(file)), file)
    with pytest.raises(UserError, match=r"AdamW.* or delete .*checkpoint-25 to begin") as caught:
        policy.load_optimizer(file)
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_has_made_no_step_is_read_back(folder, tmp_path):
    policy = load(folder)
    policy.save_optimizer(tmp_path / "fresh.safetensors")
    policy.load_optimizer(tmp_path / "fresh.safetensors")
    assert policy.optimizer.state_dict()["state"] == {}
