"""What there is to compute on: this machine as it is measured now, or a card by its name.

The table holds what large products and long reads reach, about 85 % of a data sheet's figures (60 %
of the arithmetic of an H100 and a B200). None of these cards was at hand: docs/gpu.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from miniact import UserError
from miniact.backends.protocol import resolve_backend
from miniact.config.sections import ModelConfig

GIB = float(2**30)
LEFT = 0.98  # of a card's memory, by the driver

CARDS = {  # GiB; TFLOP/s in bfloat16 (0: it has none) and in float32; GB/s
    "2080ti": (11, 0, 11, 550),
    "3060": (12, 22, 11, 310),
    "3080": (10, 50, 25, 670),
    "3090": (24, 62, 30, 830),
    "4060ti-16": (16, 37, 18, 250),
    "4070": (12, 50, 25, 440),
    "4080": (16, 85, 42, 640),
    "4090": (24, 145, 55, 920),
    "5080": (16, 95, 47, 850),
    "5090": (32, 180, 85, 1600),
    "a10": (24, 90, 25, 520),
    "a6000": (48, 125, 32, 670),
    "l4": (24, 60, 20, 260),
    "l40s": (48, 290, 75, 760),
    "t4": (15, 0, 5, 270),
    "v100": (32, 0, 13, 780),
    "a100-40": (40, 250, 17, 1350),
    "a100-80": (80, 250, 17, 1750),
    "h100": (80, 600, 45, 2800),
    "h200": (141, 600, 45, 4100),
    "b200": (180, 1350, 60, 6800),
}
CHIPS = {  # Apple's, which share the computer's memory: TFLOP/s, GB/s
    **{"m1": (2.1, 58), "m1-pro": (4.2, 170), "m1-max": (8.4, 340), "m1-ultra": (17, 680)},
    **{"m2": (2.8, 85), "m2-pro": (5.4, 170), "m2-max": (11, 340), "m2-ultra": (22, 680)},
    **{"m3": (2.8, 85), "m3-pro": (4.0, 128), "m3-max": (11, 340), "m3-ultra": (22, 700)},
    **{"m4": (3.4, 102), "m4-pro": (6.9, 230), "m4-max": (13, 460)},
}


@dataclass(frozen=True)
class Device:
    """What there is to compute on. Bytes; FLOP/s and bytes/s, 0 where they are not known."""

    kind: str  # cpu | cuda | mlx
    name: str
    dtype: str
    free: float
    matmul: float
    bandwidth: float
    is_measured: bool = True


def detect(model: ModelConfig) -> Device:
    """The device that the config would run on, and how fast it is at this moment."""
    if resolve_backend(model.backend) == "mlx":
        from miniact.backends.mlx.probe import Probe
    else:
        from miniact.backends.torch.probe import Probe  # type: ignore[assignment]
    probe: Any = Probe(model.device, model.precision)
    about = probe.kind, probe.describe(), probe.precision
    return Device(*about, probe.free(), probe.matmul(), probe.bandwidth())


def card(name: str, model: ModelConfig) -> Device:
    """The device that a user names: 24GB, 4090, a100-80, m3-16. UserError where it is not known."""
    plain = re.sub(r"nvidia|geforce|rtx|apple|\s", "", name.lower())
    size = re.fullmatch(r"(\d+)gi?b", plain)
    if size:
        free, what = LEFT * GIB * int(size[1]), f"a card of {size[1]} GB"
        return Device("cuda", what, _dtype(model, True), free, 0.0, 0.0, False)
    if plain in CARDS:
        _refuse(model, "mlx", name)
        gib, half, single, bandwidth = CARDS[plain]
        dtype = _dtype(model, half > 0)
        speed = single if dtype == "float32" else half or single
        what = f"{plain} ({gib} GB)"
        return Device("cuda", what, dtype, LEFT * GIB * gib, speed * 1e12, bandwidth * 1e9, False)
    chip, _, memory = plain.rpartition("-")
    if chip in CHIPS and memory.isdigit():
        _refuse(model, "torch", name)
        share = 2 / 3 if int(memory) <= 36 else 3 / 4  # of its memory, that Metal gives to a GPU
        teraflops, bandwidth = CHIPS[chip]
        what = f"{chip} ({memory} GB, {share:.0%} for its GPU)"
        free, dtype = share * GIB * int(memory), _dtype(model, True)
        return Device("mlx", what, dtype, free, teraflops * 1e12, bandwidth * 1e9, False)
    if plain in CHIPS:
        raise UserError(f"--gpu: {name!r} shares the computer's memory; say how much: {plain}-16")
    raise UserError(
        f"--gpu: {name!r} is not known; expected one of {', '.join(CARDS)}, or a memory such as "
        f"24GB, or one of Apple's chips and its memory such as m3-16 ({', '.join(CHIPS)})"
    )


def _dtype(model: ModelConfig, has_bfloat16: bool) -> str:
    if model.precision != "auto":
        return model.precision
    return "bfloat16" if has_bfloat16 else "float32"


def _refuse(model: ModelConfig, backend: str, name: str) -> None:
    if model.backend == backend:
        raise UserError(f"--gpu: model.backend: {backend} does not run on {name}; leave it out")
