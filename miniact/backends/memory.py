"""The memory of this process, and what to do where memory runs out."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from miniact import UserError
from miniact.config.sections import ModelConfig

T = TypeVar("T")
GB = 1e9
_INFO = Path("/proc/meminfo")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

# how CUDA, cuBLAS, Metal, PyTorch on a CPU and MLX say it; no two of them raise the same type
_COMPLAINTS = (
    *("out of memory", "outofmemory", "alloc_failed", "insufficient memory"),
    *("can't allocate memory", "unable to allocate", "attempting to allocate"),
)


def ran_out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(part in said for part in _COMPLAINTS)


def until_it_fits(run: Callable[[], T], take_less: Callable[[], None]) -> T:
    """run(); each time memory runs out, free what that pass held, `take_less()` and again.

    It ends, because `take_less` raises a UserError when there is nothing left to give up.
    """
    while True:
        try:
            return run()
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        # only here, behind the except block, has the traceback let go of the failed pass
        gc.collect()
        take_less()


class Budgets:
    """What one pass may take. Sampling and training apart: one of them says nothing of the other.

    training, prefill: tokens. sampling: bytes of keys and values (and logits), measured when it is
    first asked for, with the model in its place.
    """

    def __init__(
        self, config: ModelConfig, usable: Callable[[], float], release: Callable[[], None]
    ) -> None:
        self.training = self.prefill = config.max_tokens_per_batch
        self._sampling = config.sample_memory * GB
        self._usable, self._release = usable, release

    @property
    def sampling(self) -> float:
        self._sampling = self._sampling or self._usable()
        return self._sampling

    def less_for_sampling(self, least: float, most: float) -> None:
        """Halve it. least, most: bytes of one answer alone, and of everything at once."""
        self._release()
        now = min(self.sampling, most)
        if now <= least:
            raise UserError(
                "out of memory while sampling a single answer; lower prompt.max_tokens or the "
                "stage's max_tokens, or set model.adapter: qlora"
            )
        self._sampling, self.prefill = max(now / 2, least), max(self.prefill // 2, 1)
        _note(f"sampling; model.sample_memory → {self._sampling / GB:.3g}")

    def less_for_training(self, least: int) -> None:
        """Halve it. least: tokens of the longest prompt and answer."""
        self._release()
        if self.training <= least:
            raise UserError(
                f"out of memory in a pass of {least} tokens, the longest prompt and answer; set "
                "model.gradient_checkpointing: true, or lower prompt.max_tokens or the stage's "
                "max_tokens"
            )
        self.training = max(self.training // 2, least)
        _note(f"training; model.max_tokens_per_batch → {self.training}")


def _note(what: str) -> None:
    print(f"note: out of memory in {what}", file=sys.stderr)


class ProcessMemory:
    """Linux counts the peak since a reset; elsewhere it is the peak since the start."""

    def used(self) -> int:
        return self._read("VmRSS:")

    def peak(self) -> int:
        return self._read("VmHWM:")

    def usable(self) -> float:
        """A modest share for keys and values; the same at every start, unless memory is scarce."""
        return min(_installed() / 8, self.free() / 2)

    def free(self) -> float:
        """Memory that a new process could take without swapping."""
        if _INFO.exists():
            for line in _INFO.read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024.0
        return _installed()

    def reset_peak(self) -> None:
        if _RESET.exists():
            _RESET.write_text("5")

    def _read(self, field: str) -> int:
        if _STATUS.exists():
            for line in _STATUS.read_text().splitlines():
                if line.startswith(field):
                    return int(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _installed() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
