"""AdamW as every stage starts it, and its state as a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from miniact.backends.common import check_moments


def fresh_adamw(trainable: Mapping[str, torch.Tensor]) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        trainable.values(),
        lr=0.0,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,  # PyTorch's default is 0.01
    )


def save_state(optimizer: torch.optim.AdamW, file: Path) -> None:
    flat = {}
    for i, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            flat[f"{i}.{name}"] = torch.as_tensor(value).contiguous()
    save_file(flat, file)


def load_state(
    optimizer: torch.optim.AdamW, trainable: Mapping[str, torch.Tensor], file: Path
) -> None:
    """Into a fresh optimizer of these weights. UserError if the state is not theirs."""
    saved = load_file(file)
    stepped = {name.partition(".")[0] for name in saved}  # parameters that had a gradient
    expected = {
        f"{i}.{field}": [] if field == "step" else parameter.shape
        for i, parameter in enumerate(trainable.values())
        for field in ("step", "exp_avg", "exp_avg_sq")
        if str(i) in stepped
    }
    check_moments(file, saved, expected)
    state: dict[int, dict[str, Any]] = {}
    for name, value in saved.items():
        i, _, field = name.partition(".")
        state.setdefault(int(i), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
