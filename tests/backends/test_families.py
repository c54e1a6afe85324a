"""Families of models: load, sample, train, save and load again, each against its own forward pass.

What cannot share a prompt is run plainly, with one note; what cannot be run ends in one line.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import random_batch, write_family
from zoo import NO_MLX

from miniact import UserError
from miniact.backends import trial
from miniact.backends.protocol import load_policy
from miniact.config.sections import ModelConfig
from miniact.method.losses import GRPOLoss

SHARED, PADDED, NO_CACHE = (True, True, True), (False, True, True), (False, False, False)
TORCH = {
    **{"llama": SHARED, "deepseek_v3": SHARED, "qwen3_moe": SHARED, "olmoe": SHARED},
    **{"gpt2": SHARED, "mixtral": PADDED, "mistral": PADDED, "gemma2": PADDED},
    **{"gemma3_text": PADDED, "gemma4_text": PADDED, "gpt_oss": PADDED, "llama4_text": PADDED},
    **{"nemotron": PADDED, "nemotron_h": PADDED, "lfm2": PADDED, "qwen3_next": PADDED},
    **{"qwen3_5_text": PADDED, "qwen3_5_moe_text": PADDED, "granitemoehybrid": PADDED},
    **{"jamba": PADDED, "falcon_h1": PADDED, "zamba2": PADDED, "mamba": NO_CACHE},
}
MIXTURES = ("qwen3_moe", "olmoe", "mixtral", "gpt_oss", "qwen3_5_moe_text", "deepseek_v3")
MLX = {
    **dict.fromkeys(("llama", "qwen3_moe", "olmoe", "mixtral"), (True, True)),
    **dict.fromkeys(("gemma2", "gemma4_text", "qwen3_next", "jamba"), (False, False)),
    **{"deepseek_v3": (False, True)},  # its attention adds scores of its own
}
# what older config.json say, which mlx-lm reads, and those of transformers 5 do not
MLX_NEEDS = {"qwen3_moe": {"num_experts": 4, "head_dim": 16}}
GROUPS = random_batch([9, 5], [[3, 1, 4], [6, 2]])
PROMPTS = [g.prompt for g in GROUPS]
LOSS = GRPOLoss(0.2, 0.28, beta=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("families")

    def folder(family: str) -> Path:
        if not (root / family).is_dir():
            write_family(root / family, family, tokenizer)
            file = root / family / "config.json"
            settings = json.loads(file.read_text()) | MLX_NEEDS.get(family, {})
            file.write_text(json.dumps(settings))
        return root / family

    return folder


def load(folder: Path, backend: str = "torch", seed: int = 0, **options: Any) -> Any:
    config = ModelConfig(path=str(folder), backend=backend, device="cpu", rank=4, **options)
    return load_policy(config, seed)


def distance(policy: Any, logps: list[list[np.ndarray]], answers: list[list[Any]]) -> float:
    """Mean |Δ log π| from the model's own forward pass over each prompt and answer alone."""
    own = [[policy.own_logps(p, a) for a in each] for p, each in zip(PROMPTS, answers)]
    flat = [np.abs(x - y) for a, b in zip(logps, own) for x, y in zip(a, b)]
    return float(np.concatenate(flat).mean())


def goes_round(folder: Path, tmp_path: Path, **options: Any) -> Any:
    """Everything that a run does with a model. Returns the policy."""
    policy = load(folder, **options)
    policy.forward_backward(GROUPS, LOSS)
    assert policy.optim_step(1e-2, 1.0) > 0  # now B is not 0
    samples = policy.sample(PROMPTS, 3, 5, 1.0, 0)
    tokens = [[s.tokens for s in answers] for answers in samples]
    told = [[np.array(s.logps) for s in answers] for answers in samples]
    assert distance(policy, told, tokens) < policy.tolerance
    scored = policy.logprobs(GROUPS)
    given = [[c.tokens for c in g.completions] for g in GROUPS]
    assert distance(policy, scored, given) < policy.tolerance
    policy.save_adapter(tmp_path / "saved")
    policy.save_optimizer(tmp_path / "optimizer.safetensors")
    again = load(folder, seed=1, **options)
    again.load_adapter(tmp_path / "saved")
    again.load_optimizer(tmp_path / "optimizer.safetensors")
    for a, b in zip(scored, again.logprobs(GROUPS)):
        assert all(np.allclose(x, y, atol=1e-6) for x, y in zip(a, b))
    for one in (policy, again):
        one.forward_backward(GROUPS, LOSS)
    assert policy.optim_step(1e-2, 1.0) == pytest.approx(again.optim_step(1e-2, 1.0), rel=1e-4)
    return policy


@pytest.mark.parametrize("family", TORCH)
def test_a_family_goes_round(family, model, tmp_path, capsys):
    policy = goes_round(model(family), tmp_path)
    assert policy.ways == TORCH[family]
    told = capsys.readouterr().err.count("cannot share a prompt between answers")
    assert told == (policy.ways != SHARED)  # once, though it was loaded twice


@NO_MLX
@pytest.mark.parametrize("family", MLX)
def test_a_family_goes_round_on_mlx(family, model, tmp_path):
    assert goes_round(model(family), tmp_path, backend="mlx").ways == MLX[family]


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_of_experts_in_bfloat16(family, model, tmp_path):
    goes_round(model(family), tmp_path, dtype="bfloat16")


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt2"])
def test_all_weights_of_a_family_can_be_trained(family, model, tmp_path):
    goes_round(model(family), tmp_path, adapter="full")


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_and_routers_are_not_trained(family, model, capsys):
    policy = load(model(family))
    assert not [n for n in policy.trainable if "expert" in n or ".mlp." in n or "gate" in n]
    assert f"the experts of {policy.family}" in capsys.readouterr().err


def test_an_adapter_of_a_mixture_is_one_for_peft_too(model, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = load(model("qwen3_5_moe_text"))
    policy.forward_backward(GROUPS, LOSS)
    policy.optim_step(1e-2, 1.0)
    policy.save_adapter(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(model("qwen3_5_moe_text"))
    theirs = PeftModel.from_pretrained(base, tmp_path).state_dict()
    for name, weight in policy.trainable.items():
        assert np.array_equal(theirs[name].numpy(), weight.detach().numpy())


def test_of_mamba_only_what_it_calls_gets_lora(model):
    names = load(model("jamba")).trainable
    assert {n.split(".")[-4] for n in names if ".mamba." in n} == {"in_proj"}


def test_a_window_inside_a_text_config_is_seen(model):
    """Gemma 3 with its eyes: layer_types stand in text_config, and short prompts tell nothing."""
    from miniact.backends.torch.load import can_share_prompts

    policy = load(model("gemma3_text"))
    text, outer = policy.causal_lm.config, type("Outer", (), {})()
    outer.config = type("Config", (), {"_attn_implementation": "sdpa"})()
    outer.config.get_text_config = lambda: text
    assert not can_share_prompts(outer)


# ---- the check itself ----------------------------------------------------------------------------


@pytest.fixture
def fresh(model, tmp_path, monkeypatch) -> Path:
    """A model that no test has loaded yet."""
    monkeypatch.setattr(trial, "_known", {})
    return Path(shutil.copytree(model("llama"), tmp_path / "model"))


def wrong(monkeypatch, where: str, name: str) -> None:
    import importlib

    module, _, kind = where.rpartition(".")
    holder = getattr(importlib.import_module(f"miniact.backends.torch.{module}"), kind)
    right = getattr(holder, name)
    monkeypatch.setattr(holder, name, lambda *args: 0.5 * right(*args))


@pytest.mark.parametrize(
    ("where", "name", "ways"),
    [
        ("keys.SharedCache", "attend", PADDED),
        ("tree.PackedRow", "attend", PADDED),
    ],
)
def test_a_wrong_fast_way_is_given_up(fresh, monkeypatch, capsys, where, name, ways):
    wrong(monkeypatch, where, name)
    assert load(fresh).ways == ways
    assert "note: llama cannot share a prompt between answers;" in capsys.readouterr().err


def test_each_way_to_sample_gives_the_same(fresh):
    policy = load(fresh)
    tokens = []
    for ways in (SHARED, PADDED, (False, False, True), NO_CACHE):
        policy.ways = ways
        tokens.append([[s.tokens for s in a] for a in policy.sample(PROMPTS, 3, 6, 1.0, 0)])
    assert all(t == tokens[0] for t in tokens)


@pytest.mark.parametrize(
    ("where", "name", "done"),
    [("head.Head", "logits", "sampled"), ("policy.TorchPolicy", "optim_step", "trained")],
)
def test_what_is_wrong_in_every_way_ends_in_one_line(fresh, monkeypatch, where, name, done):
    monkeypatch.setattr("miniact.backends.torch.policy.TorchPolicy.load_adapter", lambda *_: None)
    if done == "trained":
        monkeypatch.setattr(
            "miniact.backends.torch.policy.TorchPolicy.optim_step", lambda *_: float("nan")
        )
    else:
        wrong(monkeypatch, where, name)
    with pytest.raises(UserError, match=rf"^model\.path: .*llama\) cannot be {done} here: [^\n]*$"):
        load(fresh)


def test_an_adapter_that_is_not_read_back_is_noticed(fresh, monkeypatch):
    monkeypatch.setattr("miniact.backends.torch.policy.TorchPolicy.load_adapter", lambda *_: None)
    with pytest.raises(UserError, match=r"cannot be saved and read back here: .* are others"):
        load(fresh)


def test_what_is_left_to_chance_in_training_is_noticed(fresh, model, monkeypatch):
    monkeypatch.setattr("miniact.backends.torch.load.remove_chance", lambda model: None)
    with pytest.raises(UserError, match=r"cannot be trained here: .*as it is scored"):
        load(model("gpt2"))  # it has dropout, as the only one here


def test_a_check_leaves_no_trace(fresh, monkeypatch):
    checked = load(fresh)
    monkeypatch.setattr("miniact.backends.torch.policy.check", lambda *args, **kwargs: None)
    plain = load(fresh)
    for name, weight in plain.trainable.items():
        assert np.array_equal(checked.trainable[name].detach().numpy(), weight.detach().numpy())
        assert checked.trainable[name].grad is None
    assert not checked.optimizer.state_dict()["state"] and checked.ends == plain.ends


def test_what_cannot_be_built_ends_in_one_line(fresh, monkeypatch):
    def fail(*args: Any) -> None:
        raise RuntimeError("a kernel that\nis not there")

    monkeypatch.setattr("miniact.backends.torch.policy.attach", fail)
    with pytest.raises(UserError, match=r"^model\.path: .* \(RuntimeError: a kernel that is not"):
        load(fresh)
