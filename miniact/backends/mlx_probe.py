"""What MLX can do on this machine, and how much memory it took."""

from __future__ import annotations

import time
from importlib import metadata

import mlx.core as mx


class Probe:
    """Peak memory and matmul speed. Sizes in bytes, speeds in FLOP/s."""

    def __init__(self, device: str, dtype: str) -> None:
        self.dtype = mx.float32 if dtype in ("auto", "float32") else getattr(mx, dtype)

    def used(self) -> int:
        return mx.get_active_memory()

    def reset_peak(self) -> None:
        mx.reset_peak_memory()

    def peak(self) -> int:
        return mx.get_peak_memory()

    def matmul(self, n: int = 1024, repeats: int = 4) -> float:
        """The best of a few n × n products."""
        a, b = mx.random.normal((2, n, n), key=mx.random.key(0)).astype(self.dtype)
        mx.eval(a, b)
        best = 0.0
        for _ in range(repeats):
            start = time.perf_counter()
            mx.eval(a @ b)
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
        return best

    def wait(self) -> None:
        mx.synchronize()

    def describe(self) -> str:
        return f"{mx.default_device()}, {self.dtype}, mlx {metadata.version('mlx')}"
