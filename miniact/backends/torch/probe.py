"""What PyTorch can do on this machine, and how much memory it took."""

from __future__ import annotations

import time

import torch

from miniact.backends.memory import ProcessMemory
from miniact.backends.torch.device import pick_device, pick_dtype
from miniact.backends.torch.memory import free


def large_enough(device: torch.device) -> int:
    """n of an n × n product beside which starting it does not count: 2048³ takes 25 µs on a GPU."""
    return 2048 if device.type == "cpu" else 8192


class Probe:
    """Peak memory and matmul speed of a device. Sizes in bytes, speeds in FLOP/s."""

    def __init__(self, device: str, dtype: str) -> None:
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.process = ProcessMemory()
        self.kind = "cuda" if self.device.type == "cuda" else "cpu"
        self.precision = str(self.dtype).removeprefix("torch.")

    def free(self) -> float:
        return free(self.device)

    def touch(self, model: torch.nn.Module) -> None:
        """Read every weight, so that a file that is only mapped counts as used from now on."""
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.sum()

    def used(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return self.process.used()

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.process.reset_peak()

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self.process.peak()

    def matmul(self, n: int = 0, repeats: int = 6) -> float:
        """The best of a few n × n products, in the precision that the model computes in."""
        n = n or large_enough(self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        a, b = torch.randn(2, n, n, generator=generator, device=self.device).to(self.dtype)
        best = 0.0
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            a @ b
            self.wait()
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
        return best

    def bandwidth(self, size: int = 1 << 28) -> float:
        """Bytes/s at which this many bytes are read."""
        x = torch.ones(size // 4, device=self.device)
        best = 0.0
        for _ in range(3):
            self.wait()
            start = time.perf_counter()
            x.sum()
            self.wait()
            best = max(best, size / (time.perf_counter() - start))
        return best

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def describe(self) -> str:
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"{torch.get_num_threads()} CPU threads"
        return f"{name}, {self.precision}, torch {torch.__version__}"
