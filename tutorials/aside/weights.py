"""Weights and gradients of both backends under the same names; how far apart two sets are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

FILE = "adapter_model.safetensors"  # PEFT's, in an adapter's folder


def adapter(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / FILE)


def write_noise(folder: Path, seed: int, scale: float = 0.05) -> None:
    """Fill an adapter's A and B with random numbers, in place."""
    rng = np.random.default_rng(seed)
    shapes = {name: weight.shape for name, weight in sorted(adapter(folder).items())}
    noise = {n: rng.normal(scale=scale, size=s).astype(np.float32) for n, s in shapes.items()}
    save_file(noise, folder / FILE)


def gradients(policy: Any) -> dict[str, np.ndarray]:
    """Of every trained matrix, by its name without what each library puts around it."""
    if hasattr(policy, "gradients"):  # MLX
        from mlx.utils import tree_flatten

        return {name: np.array(gradient) for name, gradient in tree_flatten(policy.gradients)}
    named = {name: weight.grad.numpy() for name, weight in policy.trainable.items()}
    return {_bare(name): gradient for name, gradient in named.items()}


def _bare(name: str) -> str:
    return name.replace("base_model.model.", "").replace(".default", "").removesuffix(".weight")


def apart(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """‖a − b‖ / ‖b‖ of the matrix where it is largest."""
    assert a.keys() == b.keys()
    return max(float(np.linalg.norm(a[n] - b[n]) / np.linalg.norm(b[n])) for n in a)
