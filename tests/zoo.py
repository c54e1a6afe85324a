"""Tiny policies of both backends, each made once, and how to train and compare them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import random_batch, write_adapter, write_model

from miniact.backends.protocol import Policy, load_policy
from miniact.config.sections import ModelConfig

HAS_MLX = importlib.util.find_spec("mlx_lm") is not None
NO_MLX = pytest.mark.skipif(not HAS_MLX, reason="mlx is not installed: pip install 'miniact[mlx]'")
BACKENDS = ("torch", pytest.param("mlx", marks=NO_MLX))
BUDGET = 48  # tokens per micro-batch: few, so that a batch takes several


class Zoo:
    """Tiny models and policies, each made once; `policy` hands one out as good as new."""

    def __init__(self, root: Path, tokenizer: Any) -> None:
        self.root, self.tokenizer = root, tokenizer
        self.policies: dict[tuple, Policy] = {}

    def model(self, kind: str) -> Path:
        """A model folder. A sixth of the vocabulary ends an answer, so that lengths vary."""
        folder = self.root / kind
        if not folder.is_dir():
            write_model(folder, kind, self.tokenizer)
            file = folder / "generation_config.json"
            ends = [self.tokenizer.eos_token_id, *range(40)]
            file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ends}))
        return folder

    def load(self, backend: str, kind: str, seed: int = 0, **options: Any) -> Policy:
        defaults = {"adapter": "lora", "rank": 4, "alpha": 6, "max_tokens_per_batch": BUDGET}
        config = ModelConfig(
            path=str(self.model(kind)), backend=backend, device="cpu", **{**defaults, **options}
        )
        return load_policy(config, seed)

    def start(self, kind: str) -> Path:
        """An adapter in which B is not 0."""
        folder = self.root / f"{kind}-start"
        if not folder.is_dir():
            fresh = self.root / f"{kind}-fresh"
            self.load("torch", kind).save_adapter(fresh)
            write_adapter(folder, fresh)
        return folder

    def policy(self, backend: str, kind: str = "llama-tied", **options: Any) -> Policy:
        key = (backend, kind, *sorted(options.items()))
        if key not in self.policies:
            self.policies[key] = self.load(backend, kind, **options)
        policy = self.policies[key]
        full = options.get("adapter") == "full"
        policy.load_adapter(self.model(kind) if full else self.start(kind))
        policy.optim_step(0.0, 1.0)  # drops gradients that another test may have left
        policy.reset_optimizer()
        policy.freeze_reference()
        return policy


def gradients(policy: Any) -> dict[str, np.ndarray]:
    """∂L/∂w by PEFT's names: the one thing here that the protocol does not show."""
    if type(policy).__name__ == "TorchPolicy":
        return {n.replace(".default", ""): p.grad.numpy() for n, p in policy.trainable.items()}
    from mlx.utils import tree_flatten

    return {policy._saved_name(n): np.array(g) for n, g in tree_flatten(policy.gradients)}


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """‖a − b‖ / ‖b‖ of the tensor where it is largest."""
    assert a.keys() == b.keys()
    return max(float(np.linalg.norm(a[n] - b[n]) / np.linalg.norm(b[n])) for n in a)


def train(policy: Policy, loss: Any, steps: int, lr: float = 3e-3) -> list[dict[str, float]]:
    """`steps` updates on changing batches, two forward_backwards each."""
    log = []
    for step in range(steps):
        answers = [[2, 5, 3], [1 + step % 4]]
        metrics = {}
        for part in range(2):
            groups = random_batch([4 + step % 5, 2], answers, seed=step % 7 + part)
            metrics = policy.forward_backward(groups, loss)
        metrics["grad_norm"] = policy.optim_step(lr, 0.5)
        log.append(metrics)
    return log
