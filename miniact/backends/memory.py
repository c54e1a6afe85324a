"""The memory of this process: resident bytes now, and the most since the last reset."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_INFO = Path("/proc/meminfo")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class ProcessMemory:
    """Linux counts the peak since a reset; elsewhere it is the peak since the start."""

    def used(self) -> int:
        return self._read("VmRSS:")

    def peak(self) -> int:
        return self._read("VmHWM:")

    def free(self) -> float:
        """Memory that a new process could take without swapping."""
        if _INFO.exists():
            for line in _INFO.read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024.0
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))  # all there is

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
