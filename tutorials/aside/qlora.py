"""What tutorial 03 needs beside its lesson: PEFT's layer, a wider tiny model, training, plots."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from aside.pictures import curve, panels
from miniact.backends.models import find_model
from miniact.config.sections import EvalConfig
from miniact.data.trajectories import TrajectoryFile, collect, to_row
from miniact.envs import make_env
from miniact.evaluation.evaluate import next_action_accuracy
from miniact.method import il
from miniact.method.stage import Stage
from miniact.runs.files import read_jsonl, write_jsonl
from miniact.runs.folder import RunFolder
from miniact.runs.log import StageLog
from miniact.runs.progress import Bar


def peft_layer(W_OI: torch.Tensor, A_RI: torch.Tensor, B_OR: torch.Tensor, scale: float) -> Any:
    """PEFT's LoRA layer with these weights."""
    (n_O, n_I), n_R = W_OI.shape, len(A_RI)
    toy = torch.nn.Sequential(torch.nn.Linear(n_I, n_O, bias=False))
    toy[0].weight.data = W_OI.clone()
    toy = get_peft_model(toy, LoraConfig(r=n_R, lora_alpha=scale * n_R, target_modules=["0"]))
    layer = toy.base_model.model[0]
    layer.lora_A["default"].weight.data = A_RI.clone()
    layer.lora_B["default"].weight.data = B_OR.clone()
    return layer


def weights(layer: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(W, A, B) of a layer with LoRA beside it."""
    return tuple(
        m.weight for m in (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"])
    )


def widened(folder: Path, width: int = 128) -> Path:
    """The tiny model made wider with zeros: more channels and heads in which nothing happens.

    It computes the same function. RMSNorm averages over all channels, so its weights make up for
    the zeros.
    """
    source = find_model("builtin:tiny").path
    narrow = AutoModelForCausalLM.from_pretrained(source)
    share = narrow.config.hidden_size / width
    sizes = {"hidden_size": width, "num_attention_heads": 8, "num_key_value_heads": 8}
    sizes |= {"head_dim": 24, "rms_norm_eps": narrow.config.rms_norm_eps * share}
    wide = LlamaForCausalLM(LlamaConfig(**(narrow.config.to_dict() | sizes)))
    filled = wide.state_dict()
    for name, weight in narrow.state_dict().items():
        filled[name].zero_()
        corner = tuple(slice(n) for n in weight.shape)
        filled[name][corner] = weight * (share**0.5 if "norm" in name else 1)
    wide.load_state_dict(filled)
    tokens = torch.arange(5, 45)[None]
    assert torch.allclose(wide(tokens).logits, narrow(tokens).logits, atol=1e-4)
    wide.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def expert_play(folder: Path, seed: int) -> tuple[Any, list]:
    """(states of 300 train tasks with the expert's actions, 200 such states of held-out tasks)."""
    env = make_env("household", max_steps=20)
    played = (collect(env, split, n, seed, "expert") for split, n in (("train", 300), ("id", 60)))
    write_jsonl(folder / "trajectories.jsonl", map(to_row, chain(*played)))
    file = TrajectoryFile(folder / "trajectories.jsonl")
    held = file.states("id")
    chosen = np.random.default_rng(seed).permutation(len(held))[:200]
    return file.states("train"), [held[int(i)] for i in chosen]


def imitate(policy: Any, prompter: Any, config: Any, states: Any, folder: Path) -> list[float]:
    """Train by the package's stage `il`. Returns the loss of each step."""
    with RunFolder(folder) as run, Bar(Console(quiet=True), folder.name) as bar:
        log = StageLog(run, 1, "il", bar)
        il.run(Stage(policy, prompter, config, states, pairs=[], log=log, seed=0))
    return [row["loss"] for _, _, row in read_jsonl(folder / "metrics.jsonl")]


def next_action(policy: Any, prompter: Any, held_out: list) -> dict[str, Any]:
    """How often the likeliest action is the expert's: a rate."""
    measured = next_action_accuracy(policy, prompter, held_out, EvalConfig(max_tokens=10), 0)
    return measured["accuracy"]


def told(rate: dict[str, Any]) -> str:
    return f"{rate['value']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}]"


def levels_picture(W: torch.Tensor, levels: torch.Tensor) -> None:
    """Where the weights of a layer lie in their blocks, and the levels that they are rounded to."""
    blocks = W.detach().reshape(-1, 64)
    scaled = (blocks / blocks.abs().amax(1, keepdim=True)).flatten().numpy()
    (axis,) = panels(f"{len(scaled):,} weights of a layer, and the 16 levels of NF4", width=6.5)
    axis.hist(scaled, bins=81, color="lightgray")
    for level in levels.tolist():
        axis.axvline(level, linewidth=0.8)
    axis.set(xlabel="weight, in units of its block's absmax", ylabel="weights")


def learning_picture(losses: dict[str, list[float]], after: dict[str, dict[str, Any]]) -> None:
    """The loss on either base, and what both reach."""
    (n,) = {rate["n"] for rate in after.values()}
    (axis,) = panels(f"imitation on two bases (next action: held out, n = {n})", width=6.5)
    for (name, values), colour in zip(losses.items(), ("C0", "C1")):
        curve(axis, values, f"{name}: next action {told(after[name])}", colour)
    axis.set(ylabel="loss, nats a reply token", ylim=(0, None))
    axis.legend(loc="upper right")
