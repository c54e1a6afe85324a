"""The policy: all that miniact asks of a model, and the only door to a backend.

Stages are plain Python and numpy over this protocol, so they run unchanged on PyTorch, on MLX and
on the scripted policy of the tests. Log-probabilities are in nats, at the temperature that is
passed.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from miniact import UserError
from miniact.backends.launch import by_mlx, processes
from miniact.config.sections import ModelConfig
from miniact.types import Group, Loss, Sample


class Policy(Protocol):
    """A language model with trainable weights (an adapter, or all of them) and an optimizer."""

    tokenizer: Any  # a transformers tokenizer; both backends share it
    name: str  # the model's path, for provenance

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[list[Sample]]:
        """n answers to each prompt. Temperature 0 is greedy. Same arguments, same answers."""
        ...

    def logprobs(
        self, groups: Sequence[Group], temperature: float = 1.0, reference: bool = False
    ) -> list[list[np.ndarray]]:
        """log π(y_t | x, y_<t) of every completion of every group, without a gradient.

        reference=True scores with the weights that `freeze_reference` kept.
        """
        ...

    def forward_backward(
        self, groups: Sequence[Group], loss: Loss, temperature: float = 1.0
    ) -> dict[str, float]:
        """Add ∂loss/∂θ over these groups to the gradients. Returns the loss's metrics, summed.

        And `repeated_tokens`, as layout.py counts them.
        """
        ...

    def optim_step(self, lr: float, max_grad_norm: float) -> float:
        """One AdamW step on the gathered gradients, then forget them. Returns their L2 norm."""
        ...

    def freeze_reference(self) -> None:
        """Keep today's trainable weights as π_ref."""
        ...

    def reset_optimizer(self) -> None:
        """Forget the optimizer's moments: every stage starts with fresh ones."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the trainable weights (PEFT's format, or a whole model for adapter: full)."""
        ...

    def load_adapter(self, folder: Path) -> None:
        """Continue from weights that `save_adapter` wrote. UserError if they do not fit."""
        ...

    def save_optimizer(self, file: Path) -> None:
        """Write the optimizer's state as safetensors."""
        ...

    def load_optimizer(self, file: Path) -> None: ...


def resolve_backend(name: str) -> str:
    """auto → mlx on Apple silicon where it is installed, else torch."""
    if name != "auto":
        return name
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return "mlx" if apple and importlib.util.find_spec("mlx_lm") else "torch"


def load_policy(config: ModelConfig, seed: int = 0) -> Policy:
    """Load the model that the config names, and its adapter if `start` does; else a fresh one.

    In a launch of several processes it computes on all of them, and only the first returns from
    here: see parallel.py.
    """
    policy = _load_with_others(config, seed) if processes() > 1 else _load_alone(config, seed)
    if config.start:
        policy.load_adapter(Path(config.start))
    return policy


def join_others() -> None:
    """Where several processes were launched, go on in the first alone; the others serve it."""
    if processes() > 1:
        from miniact.backends.parallel import join

        join(_load_alone)


def _load_with_others(config: ModelConfig, seed: int) -> Policy:
    from miniact.backends.parallel import ParallelPolicy, join

    backend = resolve_backend(config.backend)
    if by_mlx() != (backend == "mlx"):
        launcher = "mlx.launch" if backend == "mlx" else "torchrun or accelerate launch"
        raise UserError(f"model.backend: several processes of {backend} are started by {launcher}")
    return ParallelPolicy(join(_load_alone), config, seed)


def _load_alone(config: ModelConfig, seed: int) -> Policy:
    try:
        return _backend(config)(config, seed)
    except UserError:
        raise
    except Exception as error:  # each architecture fails in its own way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"model.path: {config.path} cannot be used with model.backend: "
            f"{resolve_backend(config.backend)}, model.adapter: {config.adapter} and what is "
            f"installed here ({reason:.200}); change one of them"
        ) from error


def _backend(config: ModelConfig) -> Callable[[ModelConfig, int], Policy]:
    """The class that computes. A backend is imported here and nowhere else."""
    if resolve_backend(config.backend) == "torch":
        from miniact.backends.torch.policy import TorchPolicy

        return TorchPolicy
    if importlib.util.find_spec("mlx_lm") is None:
        raise UserError(
            "model.backend: mlx is not installed; on a Mac or Linux: pip install 'miniact[mlx]'"
        )
    from miniact.backends.mlx.policy import MLXPolicy

    return MLXPolicy
