"""Several processes on MLX: mlx.launch starts them, mlx.core.distributed connects them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from miniact import UserError
from miniact.config.sections import ModelConfig


class MLXTeam:
    """The processes of an mlx.launch: see `parallel.Team`. Nothing here has a timeout."""

    def __init__(self) -> None:
        try:
            self.group = mx.distributed.init(strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the processes cannot be connected: {reason:.300}") from None
        self.rank, self.size = self.group.rank(), self.group.size()

    def _sum(self, x: mx.array) -> mx.array:
        """At once: the order in which sums are taken must be the same everywhere."""
        total = mx.distributed.all_sum(x, group=self.group)
        mx.eval(total)
        return total

    def broadcast(self, message: bytes) -> bytes:
        """A sum to which the others add nothing."""
        length = int(self._sum(mx.array(len(message) if self.rank == 0 else 0)))
        sent_L = np.zeros(length, np.uint8)
        if self.rank == 0:
            sent_L[:] = np.frombuffer(message, np.uint8)
        return np.array(self._sum(mx.array(sent_L))).tobytes() if length else b""

    def collect(self, message: bytes) -> list[bytes]:
        lengths = self._gather(np.array([len(message)], np.int32))[:, 0]
        padded_L = np.zeros(lengths.max(), np.uint8)
        padded_L[: len(message)] = np.frombuffer(message, np.uint8)
        rows = self._gather(padded_L)
        return [row[:n].tobytes() for row, n in zip(rows, lengths)] if self.rank == 0 else []

    def _gather(self, x_L: np.ndarray) -> np.ndarray:
        """Everyone's x, one a row."""
        return np.array(mx.distributed.all_gather(mx.array(x_L)[None], group=self.group))

    def place(self, config: ModelConfig) -> ModelConfig:
        return config  # a computer has one device, and mlx.launch one process for each

    def sum_gradients(self, policy: Any) -> None:
        holders = self._sum(mx.array(int(policy.gradients is not None)))
        if int(holders) == 0:
            return
        if policy.gradients is None:
            policy.gradients = tree_map(mx.zeros_like, policy.model.trainable_parameters())
        policy.gradients = tree_map(self._sum, policy.gradients)

    def checksum(self, policy: Any) -> float:
        """Σ|x| of what is trained and of its moments."""
        state: Any = (policy.model.trainable_parameters(), policy.optimizer.state)
        return sum(float(mx.abs(x).sum()) for x in dict(tree_flatten(state)).values())

    def close(self) -> None: ...
