"""Was miniact started as one of several processes? The environment says so; nothing is imported."""

from __future__ import annotations

import json
import os
from pathlib import Path

MLX_FILES = ("MLX_HOSTFILE", "MLX_IBV_DEVICES")  # a list with an entry for each process


def by_mlx() -> bool:
    return "MLX_RANK" in os.environ


def processes() -> int:
    """How many torchrun, `accelerate launch` or mlx.launch has started; 1: none of them did."""
    if by_mlx():
        for name in MLX_FILES:
            if os.environ.get(name):
                return len(json.loads(Path(os.environ[name]).read_text() or "[0]"))
        return int(os.environ.get("MLX_WORLD_SIZE", 1))
    launched = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    return int(os.environ.get("WORLD_SIZE", 1)) if launched else 1
