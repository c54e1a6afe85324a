"""Attention for tokens that share a prompt, without a mask over everything and without copies.

Two objects compute it, one a pass, and both hold what a row shares once for all that share it:

    PackedRow (tree.py)    training: sequences that begin alike are a tree, in one row
    SharedCache (keys.py)  sampling: a prompt's keys are read once per step, not once per answer

`use_shared_attention` tells a model to hand what its layers compute to `_attend`. Sizes: B prompts
of P tokens, R answers, H heads (K of keys and values), D wide.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "miniact_shared"


def use_shared_attention(model: Any, used: bool) -> None:
    """Let the model's layers call `_attend`, or PyTorch's sdpa, whose part it takes."""
    now = model.config._attn_implementation
    if now in ("sdpa", NAME) and now != (wanted := NAME if used else "sdpa"):
        model.set_attn_implementation(wanted)


def _attend(  # noqa: PLR0913  (transformers' signature)
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    shared: Any = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if shared is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    return shared.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def widen(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[…, K, L, D] → […, H, L, D]: the same keys for every query head of a K."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def pick(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x[index] along the first axis; the gradient of this form is a plain, fast sum."""
    return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])


def no_mask(device: torch.device) -> torch.Tensor:
    """A 4D mask is passed through unread: the model must not make one from the positions."""
    return torch.zeros(1, 1, 1, 1, device=device)
