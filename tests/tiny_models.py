"""Tiny Hugging Face models with random weights, and batches for them, for the tests of backends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from miniact.backends.layout import Layout
from miniact.method.grpo import weigh
from miniact.types import Completion, Group

KINDS = ("llama-tied", "llama-untied", "qwen3-tied", "qwen3-untied")
THETA = 700.0  # not the 10,000 that mlx-lm assumes where it finds none


def write_model(folder: Path, kind: str, tokenizer: Any, **options: Any) -> Path:
    """A model of two layers. Its weights are large, so that its predictions are not uniform."""
    import torch
    import transformers

    name, _, tying = kind.partition("-")
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tying == "tied",
        "initializer_range": 0.12,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
        **({"head_dim": 24} if name == "qwen3" else {}),  # not hidden_size / heads
        **options,
    }
    config_class = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}[name]
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**common))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms start at 1, where a forgotten one would go unseen
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_adapter(folder: Path, like: Path, scale: float = 0.1) -> Path:
    """Copy an adapter with random A and B: a fresh one has B = 0, which would hide mistakes."""
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(3)
    folder.mkdir(parents=True, exist_ok=True)
    weights = load_file(like / "adapter_model.safetensors")
    noise = {n: rng.normal(size=w.shape, scale=scale) for n, w in sorted(weights.items())}
    save_file(
        {n: w.astype(np.float32) for n, w in noise.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_bytes((like / "adapter_config.json").read_bytes())
    return folder


def random_batch(
    prompts: Sequence[int], answers: Sequence[Sequence[int]], seed: int = 0, vocab: int = 256
) -> list[Group]:
    """Groups of these lengths: prompts[i], and answers[i][j] to it; GRPO's fields are filled."""
    rng = np.random.default_rng(seed)

    def completion(length: int) -> Completion:
        return Completion(
            tuple(rng.integers(0, vocab, length).tolist()),
            advantage=float(rng.normal()),
            old_logps=rng.normal(-5, 0.4, length).astype(np.float32),
            ref_logps=rng.normal(-5, 0.4, length).astype(np.float32),
        )

    groups = [
        Group(tuple(rng.integers(0, vocab, p).tolist()), tuple(map(completion, lengths)))
        for p, lengths in zip(prompts, answers)
    ]
    return weigh(groups, "grpo", 8)


@st.composite
def batches(draw: Any, most_answers: int = 3) -> list[Group]:
    """A few groups of unequal lengths."""
    prompts = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    answers = [
        draw(st.lists(st.integers(1, 6), min_size=1, max_size=most_answers)) for _ in prompts
    ]
    return random_batch(prompts, answers, seed=draw(st.integers(0, 99)))


@st.composite
def trees(draw: Any) -> list[Group]:
    """Groups whose prompts begin alike in many ways: states of trajectories, some asked twice.

    Two tokens in all make things alike by chance too, down to prompts that others begin with.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vocab = draw(st.sampled_from([2, 250]))
    most = draw(st.sampled_from([1, 4, 14]))  # tokens of a turn, a question or an answer

    def tokens(least: int = 1) -> tuple[int, ...]:
        return tuple(rng.integers(0, vocab, rng.integers(least, most + 1)).tolist())

    head, groups = tokens(0) + tokens(0), []
    for _ in range(draw(st.integers(1, 2))):
        history = head + tokens()
        for _ in range(draw(st.integers(1, 4))):
            for _ in range(draw(st.integers(1, 2))):
                answers = [tokens() for _ in range(draw(st.integers(1, 3)))]
                groups.append(Group(history + tokens(0), tuple(map(Completion, answers))))
            history += tokens()
    order = rng.permutation(len(groups))
    return weigh([_with_numbers(groups[i], rng) for i in order], "grpo", 8)


def _with_numbers(group: Group, rng: np.random.Generator) -> Group:
    """The group with drawn advantages and log-probs."""
    lengths = [len(c.tokens) for c in group.completions]
    old, ref = ([rng.normal(-5, 0.4, n).astype(np.float32) for n in lengths] for _ in range(2))
    advantages = rng.normal(size=len(lengths)).tolist()
    return group.having(advantage=advantages, old_logps=old, ref_logps=ref)


def visible_BLL(layout: Layout) -> np.ndarray:
    """visible[b, q, k]: may token q look at token k? Shape [B, L, L], bool: what a layout means.

    In a tree its own segment up to itself, and all that a link shows it. Plainly: all before it.
    """
    B, L = layout.token_BL.shape
    if layout.tree is None:
        return np.broadcast_to(np.tri(L, dtype=bool), (B, L, L))
    seen_LL = np.zeros((L, L), dtype=bool)
    for first, end in layout.tree.segments:
        seen_LL[first:end, first:end] = np.tri(end - first, dtype=bool)
    for first, end, key, last in layout.tree.links:
        assert not seen_LL[first:end, key:last].any()  # nothing is seen twice
        seen_LL[first:end, key:last] = True
    return seen_LL[None]


# ---- families ------------------------------------------------------------------------------------

SMALL = {  # whatever of it a family's config has; the rest is its default
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "head_dim": 16},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
    **{"n_embd": 64, "n_head": 4, "n_layer": 2, "n_inner": 128, "intermediate_size_mlp": 128},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "shared_intermediate_size": 64,
    },
    **{"n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},
    **{"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8},
    **{"v_head_dim": 16, "global_head_dim": 16, "hidden_size_per_layer_input": 16},
    **{"mamba_d_state": 8, "mamba_d_head": 16, "mamba_n_heads": 8, "mamba_n_groups": 1},
    **{"mamba_d_ssm": 128, "mamba_chunk_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 16},
    **{"ssm_state_size": 8, "state_size": 8, "chunk_size": 8, "mamba_dt_rank": 8},
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16},
    **{
        "linear_value_head_dim": 16,
        "block_ff_dim": 128,
        "sliding_window": 8,
        "num_kv_shared_layers": 0,
    },
    **{"initializer_range": 0.12, "pad_token_id": None, "bos_token_id": None},
}
FAMILY_OPTIONS: dict[str, dict[str, Any]] = {  # what the sizes above do not fit
    "deepseek_v3": {"num_key_value_heads": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "zamba2": {"layer_types": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]},
}


def write_family(folder: Path, family: str, tokenizer: Any) -> Path:
    """A tiny model of any type that transformers knows as a causal language model."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    known = {name for c in kind.__mro__ for name in getattr(c, "__annotations__", {})}
    sizes = {name: size for name, size in SMALL.items() if name in known}
    sizes |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    if "vocab_size_per_layer_input" in known:
        sizes["vocab_size_per_layer_input"] = len(tokenizer)
    torch.manual_seed(1)
    config = kind(**sizes | FAMILY_OPTIONS.get(family, {}))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms start at 1, where a forgotten one would go unseen
            parameter.data += torch.empty(parameter.shape).uniform_(-0.2, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
