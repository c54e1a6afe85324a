"""What MLX can do on this machine, and how much memory it took."""

from __future__ import annotations

import time
from importlib import metadata
from typing import Any

import mlx.core as mx

from miniact.backends.memory import ProcessMemory
from miniact.backends.mlx.load import pick_dtype

SHARE = 0.8  # of what Metal recommends and nothing holds yet goes to sampling


def usable() -> float:
    """Bytes for the keys and values of sampling where the config names none."""
    if mx.default_device() == mx.Device(mx.gpu):
        most = mx.device_info()["max_recommended_working_set_size"]
        return SHARE * (float(most) - mx.get_active_memory())
    return ProcessMemory().usable()


class Probe:
    """Peak memory and matmul speed. Sizes in bytes, speeds in FLOP/s."""

    def __init__(self, device: str, dtype: str) -> None:
        self.kind, self.process = "mlx", ProcessMemory()
        self.dtype = pick_dtype(dtype)
        self.precision = str(self.dtype).rpartition(".")[2]

    def free(self) -> float:
        return self.process.free()

    def touch(self, model: Any) -> None:
        """Compute every weight now: MLX is lazy."""
        mx.eval(model.parameters())

    def used(self) -> int:
        return mx.get_active_memory()

    def reset_peak(self) -> None:
        mx.reset_peak_memory()

    def peak(self) -> int:
        return mx.get_peak_memory()

    def matmul(self, n: int = 0, repeats: int = 4) -> float:
        """The best of a few n × n products."""
        n = n or (4096 if mx.default_device() == mx.Device(mx.gpu) else 1024)
        a, b = mx.random.normal((2, n, n), key=mx.random.key(0)).astype(self.dtype)
        mx.eval(a, b)
        best = 0.0
        for _ in range(repeats):
            start = time.perf_counter()
            mx.eval(a @ b)
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
        return best

    def bandwidth(self, size: int = 1 << 28) -> float:
        """Bytes/s at which this many bytes are read."""
        x = mx.ones(size // 4)
        mx.eval(x)
        start = time.perf_counter()
        mx.eval(x.sum())
        return size / (time.perf_counter() - start)

    def wait(self) -> None:
        mx.synchronize()

    def describe(self) -> str:
        return f"{mx.default_device()}, {self.precision}, mlx {metadata.version('mlx')}"
