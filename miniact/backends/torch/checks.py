"""What miniact needs of PyTorch on a device: sdpa, bfloat16, 4-bit products."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F

from miniact.backends.checks import Check, tried, version
from miniact.backends.torch.device import pick_device, pick_dtype
from miniact.backends.torch.kernels import PLAIN, choose
from miniact.backends.torch.probe import Probe
from miniact.config.sections import ModelConfig

DRIVER = Path("/proc/driver/nvidia/version")
NF4_ERROR = 0.15  # relative, of a restored weight; NF4 itself makes 9 %


def facts(model: ModelConfig) -> dict[str, str]:
    probe = Probe(model.device, model.precision)
    packages = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    about = {name: version(name) for name in packages}
    about["device"] = f"{probe.device}: {probe.describe()}"
    about["memory free"] = f"{probe.free() / 1e9:.1f} GB"
    if probe.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(probe.device)
        about["CUDA"] = f"{torch.version.cuda or torch.version.hip}, capability {major}.{minor}"
    if DRIVER.is_file():
        about["driver"] = DRIVER.read_text().splitlines()[0].partition("Module")[2].strip()[:40]
    return about


def device_checks(model: ModelConfig) -> list[Check]:
    device = pick_device(model.device)
    dtype = pick_dtype(model.precision, device)
    return [
        tried("card", "install a PyTorch built for its driver: pytorch.org", lambda: _card(device)),
        tried("bfloat16", "", lambda: _bfloat16(device)),
        tried(
            "attention (sdpa)",
            "update PyTorch, or set model.dtype: float32",
            lambda: _attention(device, dtype),
        ),
        tried("attention of trees", "", lambda: _trees(device, dtype)),
        tried(
            "NF4 (qlora)",
            "pip install -U bitsandbytes, or set model.adapter: lora",
            lambda: _nf4(device, dtype),
        ),
    ]


def _card(device: torch.device) -> tuple[bool | None, str]:
    if device.type != "cpu":
        return True, str(device)
    built_for = torch.version.cuda or torch.version.hip
    if DRIVER.is_file() and not torch.cuda.is_available():
        return False, f"there is a driver, but PyTorch {torch.__version__} sees no card"
    return None, "none" + (f", though PyTorch is built for CUDA {built_for}" if built_for else "")


def _bfloat16(device: torch.device) -> tuple[bool | None, str]:
    if pick_dtype("auto", device) == torch.bfloat16:
        return True, "the device's own; dtype: auto takes it"
    return None, "not the device's own; dtype: auto takes float32"


def _attention(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Causal, and with a mask, as prompts and answers need it; against the formula in float64."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 48, 32, generator=generator, dtype=torch.float64)
    sees = torch.ones(48, 48, dtype=torch.bool).tril()
    scores = (q @ k.transpose(-1, -2) / 32**0.5).masked_fill(~sees, float("-inf"))
    expected = scores.softmax(-1) @ v
    q, k, v = (x.to(device, dtype) for x in (q, k, v))
    results = (
        F.scaled_dot_product_attention(q, k, v, is_causal=True),
        F.scaled_dot_product_attention(q, k, v, attn_mask=sees.to(device)),
    )
    error = max(float((r.cpu().double() - expected).abs().max()) for r in results)
    return error < (1e-4 if dtype == torch.float32 else 0.05), f"largest error {error:.1e}"


def _trees(device: torch.device, dtype: torch.dtype) -> tuple[bool | None, str]:
    """Which kernel computes what a row shares; it was compared with the plain way just now."""
    name = choose(device, dtype, 8, 2, (64, 64))
    return (None if name == PLAIN else True), f"computed by {name}"


def _nf4(device: torch.device, dtype: torch.dtype) -> tuple[bool | None, str]:
    """A product of 4-bit weights: that of few rows and that of many are different kernels."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return (None if device.type != "cuda" else False), "bitsandbytes is not installed"
    import bitsandbytes as bnb

    generator = torch.Generator().manual_seed(0)
    W = torch.randn(256, 512, generator=generator).to(device, dtype)
    packed, state = bnb.functional.quantize_4bit(W, compress_statistics=True, quant_type="nf4")
    restored = bnb.functional.dequantize_4bit(packed, state).to(dtype)
    lost = float((restored - W).float().norm() / W.float().norm())
    worst = 0.0
    for rows in (2, 300):
        x = torch.randn(rows, 512, generator=generator).to(device, dtype)
        expected = (x @ restored.T).float()
        y = bnb.matmul_4bit(x, packed, quant_state=state).float()
        worst = max(worst, float((y - expected).norm() / expected.norm()))
    seen = f"products off by {worst:.1e}, weights by {lost:.0%} (NF4 itself: 9 %)"
    return worst < 0.02 and lost < NF4_ERROR, seen
