"""What a GRPO step costs, from the shape of the model and of the work alone: tokens, FLOPs.

One prompt of P tokens, G answers of C tokens; a product of matrices [a, b] × [b, c] is 2·a·b·c.

    tokens that pass the model    P + G·C                      (the plain layout: G·(P + C))
    query-key pairs               P²/2 + G·C·P + G·C²/2
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from miniact import UserError
from miniact.backends.models import find_model
from miniact.config.sections import ModelConfig
from miniact.runs.files import read_json

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4 = 0.5 + 0.016  # bytes per weight: 4 bits, and double-quantised scales per 64


@dataclass(frozen=True)
class Work:
    """The batches of one stage, at their longest."""

    name: str
    steps: int
    batch: int  # prompts per step
    prompt: int  # P
    group: int  # answers per prompt; 1 for imitation, 2 for DPO
    completion: int  # C
    samples: bool  # whether the stage samples its answers

    @property
    def tokens(self) -> int:
        """Tokens that pass the model in one training step."""
        return self.batch * (self.prompt + self.group * self.completion)


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder-only transformer with gated MLPs."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    vocab: int
    tied: bool
    experts: int = 1  # of a mixture; all are stored, `active` of them compute
    active: int = 1
    shared: int = 0  # the width of what stands beside the experts and always computes

    @property
    def widths(self) -> list[tuple[int, int]]:
        """(in, out) of a block's layers that LoRA sits beside; experts are arrays and stay bare."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, q), (self.hidden, kv), (self.hidden, kv), (q, self.hidden)]
        mlp = [(self.hidden, self.ff), (self.hidden, self.ff), (self.ff, self.hidden)]
        return attention + (mlp if self.experts == 1 else [])

    @property
    def linear(self) -> int:
        """Parameters of those layers: what QLoRA stores in 4 bits."""
        return self.layers * sum(i * o for i, o in self.widths)

    def mixture(self, experts: int) -> int:
        """Parameters of so many experts in every layer, of what chooses them, of what is shared."""
        if self.experts == 1:
            return 0
        each = 3 * self.ff * experts + self.experts + 3 * self.shared
        return self.layers * self.hidden * each

    @property
    def computing(self) -> int:
        """Parameters that one token passes, without the head."""
        return self.linear + self.mixture(self.active)

    @property
    def head(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        stored = self.linear + self.mixture(self.experts)
        return stored + self.head * (1 if self.tied else 2) + norms

    @property
    def keys(self) -> int:
        """Numbers that one token leaves in the cache: its keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def lora(self, rank: int) -> int:
        """Trainable parameters of rank-r matrices beside every linear layer."""
        return self.layers * sum(rank * (i + o) for i, o in self.widths)


def read_shape(config: dict[str, Any], name: str) -> Shape:
    """The shape that a config.json describes. UserError if it is of another kind of model."""
    config = config.get("text_config") or config
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        experts = config.get("num_experts") or config.get("num_local_experts") or 1
        return Shape(
            name=name,
            layers=config["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            ff=config.get("moe_intermediate_size") or config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", True)),
            experts=experts,
            active=config.get("num_experts_per_tok") or 1,
            shared=config.get("shared_expert_intermediate_size") or 0,
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"{name}: config.json has no usable {error}; expected a decoder-only transformer"
        ) from None


def shape_of_folder(folder: Path) -> Shape:
    return read_shape(read_json(folder / "config.json"), folder.name)


# What the shipped configs name, and its sisters: a plan of them needs no download.
KNOWN = {
    "Qwen/Qwen3-0.6B": Shape("Qwen3-0.6B", 28, 1024, 16, 8, 128, 3072, 151936, tied=True),
    "Qwen/Qwen3-1.7B": Shape("Qwen3-1.7B", 28, 2048, 16, 8, 128, 6144, 151936, tied=True),
    "Qwen/Qwen3-4B": Shape("Qwen3-4B", 36, 2560, 32, 8, 128, 9728, 151936, tied=True),
    "Qwen/Qwen3-8B": Shape("Qwen3-8B", 36, 4096, 32, 8, 128, 12288, 151936, tied=False),
    "Qwen/Qwen3-14B": Shape("Qwen3-14B", 40, 5120, 40, 8, 128, 17408, 151936, tied=False),
}


def known_shape(path: str) -> Shape:
    """The shape of `model.path`: a well-known hub name, or what its config.json says."""
    if path in KNOWN:
        return KNOWN[path]
    source = find_model(path)
    if source.is_local and not source.gguf:
        return shape_of_folder(Path(source.path))
    from miniact.backends.common import config_folder

    try:
        folder = config_folder(path)
    except UserError as error:
        raise UserError(
            f"{error}; a folder that holds its config.json is enough to plan, and without a "
            f"network these are known: {', '.join(KNOWN)}"
        ) from None
    return replace(shape_of_folder(folder), name=path)


def pairs(P: float, G: float, C: float) -> float:
    """Products of a query and a key that one group needs, per head."""
    return P * P / 2 + G * C * P + G * C * C / 2


def forward_flops(shape: Shape, P: float, G: float, C: float) -> float:
    """One pass over a prompt and its answers, with the head at the answers' tokens only."""
    attention = 4 * pairs(P, G, C) * shape.heads * shape.head_dim * shape.layers
    return 2 * shape.computing * (P + G * C) + 2 * shape.head * G * C + attention


def training_flops(
    shape: Shape, P: float, G: float, C: float, rank: int, full: bool = False
) -> float:
    """Forward and backward of one group; no recomputation is counted.

    A frozen weight needs the gradient of its input only: as much as its forward pass. A trained one
    needs its own gradient too. The frozen head's gradient is formed with one more product.
    """
    T, N = P + G * C, G * C
    attention = 3 * 4 * pairs(P, G, C) * shape.heads * shape.head_dim * shape.layers
    if full:
        return 6 * shape.computing * T + 6 * shape.head * N + attention
    return (4 * shape.computing + 6 * shape.lora(rank)) * T + 4 * shape.head * N + attention


def weight_bytes(shape: Shape, model: ModelConfig, dtype: str) -> float:
    b = 4 if model.adapter == "full" else BYTES[dtype]  # what is trained is float32
    if model.adapter != "qlora":
        return shape.parameters * b
    return shape.linear * NF4 + (shape.parameters - shape.linear) * b
