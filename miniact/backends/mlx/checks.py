"""What miniact needs of MLX on a device: attention, bfloat16, 4-bit products."""

from __future__ import annotations

import mlx.core as mx

from miniact.backends.checks import Check, tried, version
from miniact.backends.mlx.load import pick_device, pick_dtype
from miniact.backends.mlx.probe import Probe
from miniact.config.sections import ModelConfig


def facts(model: ModelConfig) -> dict[str, str]:
    pick_device(model.device)
    probe = Probe(model.device, model.precision)
    about = {name: version(name) for name in ("mlx", "mlx-lm", "transformers")}
    return about | {"device": probe.describe(), "memory free": f"{probe.free() / 1e9:.1f} GB"}


def device_checks(model: ModelConfig) -> list[Check]:
    pick_device(model.device)
    dtype = pick_dtype(model.precision)
    return [
        tried("Metal", "", _metal),
        tried("attention", "update MLX", lambda: _attention(dtype)),
        tried(
            "4 bits (qlora)", "update MLX, or set model.adapter: lora", lambda: _four_bits(dtype)
        ),
    ]


def _metal() -> tuple[bool | None, str]:
    there = mx.is_available(mx.gpu)
    return (True, "the GPU computes") if there else (None, "no GPU: MLX computes on the CPU")


def _attention(dtype: mx.Dtype) -> tuple[bool, str]:
    q, k, v = mx.random.normal((3, 2, 4, 48, 32), key=mx.random.key(0))
    sees = mx.tril(mx.ones((48, 48)))
    scores = q @ k.swapaxes(-1, -2) / 32**0.5 + mx.where(sees, 0.0, -1e9)
    expected = mx.softmax(scores, axis=-1) @ v
    there = [x.astype(dtype) for x in (q, k, v)]
    out = mx.fast.scaled_dot_product_attention(*there, scale=32**-0.5, mask="causal")
    error = float(mx.abs(out.astype(mx.float32) - expected).max())
    return error < (1e-3 if dtype == mx.float32 else 0.05), f"largest error {error:.1e}"


def _four_bits(dtype: mx.Dtype) -> tuple[bool, str]:
    W = mx.random.normal((256, 512), key=mx.random.key(0)).astype(dtype)
    x = mx.random.normal((8, 512), key=mx.random.key(1)).astype(dtype)
    packed = mx.quantize(W, group_size=64, bits=4)
    restored = mx.dequantize(*packed, group_size=64, bits=4)
    y = mx.quantized_matmul(x, *packed, transpose=True, group_size=64, bits=4)
    expected = (x @ restored.T).astype(mx.float32)
    error = float(mx.abs(y.astype(mx.float32) - expected).max() / mx.abs(expected).max())
    return error < 0.02, f"products off by {error:.1e}"
