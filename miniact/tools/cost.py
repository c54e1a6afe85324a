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
from miniact.runs.files import read_json


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

    @property
    def widths(self) -> list[tuple[int, int]]:
        """(in, out) of every linear layer of a block: what LoRA sits beside."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, q), (self.hidden, kv), (self.hidden, kv), (q, self.hidden)]
        mlp = [(self.hidden, self.ff), (self.hidden, self.ff), (self.ff, self.hidden)]
        return attention + mlp * self.experts

    @property
    def linear(self) -> int:
        """Parameters of all linear layers but the head."""
        return self.layers * sum(i * o for i, o in self.widths)

    @property
    def computing(self) -> int:
        """Those of them that one token passes."""
        idle = 3 * self.hidden * self.ff * (self.experts - self.active)
        return self.linear - self.layers * idle

    @property
    def head(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        return self.linear + self.head * (1 if self.tied else 2) + norms

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
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"{name}: config.json has no usable {error}; expected a decoder-only transformer"
        ) from None


def shape_of_folder(folder: Path) -> Shape:
    return read_shape(read_json(folder / "config.json"), folder.name)


# What the shipped configs name, so that a plan of them needs no download.
KNOWN = {
    "Qwen/Qwen3-0.6B": Shape("Qwen3-0.6B", 28, 1024, 16, 8, 128, 3072, 151936, tied=True),
    "Qwen/Qwen3-8B": Shape("Qwen3-8B", 36, 4096, 32, 8, 128, 12288, 151936, tied=False),
}


def known_shape(path: str) -> Shape:
    """The shape of `model.path`: a well-known hub name, or what its config.json says."""
    if path in KNOWN:
        return KNOWN[path]
    source = find_model(path)
    if source.is_local and not source.gguf:
        return shape_of_folder(Path(source.path))
    from miniact.backends.common import config_folder

    return replace(shape_of_folder(config_folder(path)), name=path)


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
