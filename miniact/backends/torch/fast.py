"""Two layers with fewer passes over memory, and less kept for the backward pass.

LoRA    y = x Wᵀ + s·(x Aᵀ) Bᵀ      ∂x = g W + s·(g B) A    ∂A = s·(g B)ᵀ x    ∂B = s·gᵀ (x Aᵀ)

PEFT writes this as separate layers, a product with s = α/r and a sum, each of which reads and
writes [tokens × width] once more, and beside a bfloat16 or 4-bit base it does so in float32. Here
the small products are added in place, in the precision of x. A and B themselves stay float32, and
so do their gradients: small steps must not be lost. One form for all bases; of a 4-bit W (NF4)
only the forward product is bitsandbytes' own, and W is restored for the backward one.

Gate    y = silu(a)·b               ∂a = g·b·silu'(a)       ∂b = g·silu(a)

Only a and b are kept; silu(a) is computed again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

FEW = 64  # rows; on a CPU such a product is up to 1.6 times faster with the weight on the left


def few_rows(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x Wᵀ as (W xᵀ)ᵀ, and laid out as if it were not."""
    return (weight @ x.reshape(-1, x.shape[-1]).T).T.contiguous().view(*x.shape[:-1], -1)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, base, A, B, scale):  # type: ignore[no-untyped-def]
        x_TI = x.reshape(-1, x.shape[-1])
        h_TR = x_TI @ A.to(x.dtype).T
        y = base(x)  # no view of it goes out: some models go on with it in place
        y.view(-1, y.shape[-1]).addmm_(h_TR, B.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x_TI, h_TR, A, B)
        ctx.base, ctx.scale, ctx.shape = base, scale, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, grad):  # type: ignore[no-untyped-def]
        x_TI, h_TR, A, B = ctx.saved_tensors
        g_TO = grad.reshape(-1, grad.shape[-1])
        gh_TR = (g_TO @ B.to(g_TO.dtype)).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx_TI = g_TO @ _restored(ctx.base.weight, g_TO.dtype)
            dx = dx_TI.addmm_(gh_TR, A.to(g_TO.dtype)).view(ctx.shape)
        dA, dB = gh_TR.T @ x_TI, (g_TO.T @ h_TR).mul_(ctx.scale)
        return dx, None, dA.to(A.dtype), dB.to(B.dtype), None


def _restored(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    """W [out, in] as it computes: itself, or what its 4 bits stand for."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state).to(dtype)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a, b):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(a, b)
        return F.silu(a).mul_(b)

    @staticmethod
    def backward(ctx: Any, grad):  # type: ignore[no-untyped-def]
        a, b = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * b, a), F.silu(a).mul_(grad)


def _lora(layer: Any, x: torch.Tensor) -> torch.Tensor:
    base = layer.base_layer
    if layer.disable_adapters:
        few = x.device.type == "cpu" and x.numel() <= FEW * x.shape[-1]
        plain = type(base) is torch.nn.Linear and base.bias is None
        return few_rows(x, base.weight) if few and plain else base(x)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return _LoRALinear.apply(x, base, A, B, layer.scaling["default"])


def _gated_mlp(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    return mlp.down_proj(_Gate.apply(mlp.gate_proj(x), mlp.up_proj(x)))


def is_lora(module: Any) -> bool:
    """Whether it is one of PEFT's layers with LoRA, told without importing PEFT."""
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


def _is_known_lora(module: Any) -> bool:
    base = getattr(module, "base_layer", None)
    known = type(base) is torch.nn.Linear or type(base).__name__ == "Linear4bit"
    return known and is_lora(module)


@torch.no_grad()
def _is_gated_mlp(module: Any, dtype: torch.dtype) -> bool:
    """By its parts, and by what it computes: other architectures may scale or clip inside."""
    if not all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj")):
        return False
    size = getattr(module.gate_proj, "in_features", None)
    if not isinstance(size, int):  # a mixture of experts keeps all of them in one array
        return False
    device = next(module.parameters()).device
    x = torch.linspace(-1, 1, size, dtype=dtype, device=device)[None]
    return torch.equal(module(x), _gated_mlp(module, x))


def speed_up(model: Any, dtype: torch.dtype) -> None:
    """Give the layers of `model` that compute exactly the above these forwards."""
    for module in model.modules():
        if _is_known_lora(module):
            module.forward = functools.partial(_lora, module)
    for module in model.modules():
        if _is_gated_mlp(module, dtype):
            module.forward = functools.partial(_gated_mlp, module)


@contextlib.contextmanager
def merged(model: Any) -> Iterator[None]:
    """Fold LoRA into the base for a while, which then costs no more than the base.

    Copies are made and thrown away, so nothing drifts. A 4-bit base cannot take the sum.
    """
    layers: list[Any] = [m for m in model.modules() if is_lora(m)]
    if len({id(layer.base_layer.weight) for layer in layers}) < len(layers):  # Zamba 2
        yield  # one weight cannot take two sums
        return
    kept = [layer.base_layer.weight.data for layer in layers]
    for layer, weight in zip(layers, kept):
        layer.base_layer.weight.data = weight + layer.get_delta_weight("default")
    try:
        with model.disable_adapter():
            yield
    finally:
        for layer, weight in zip(layers, kept):
            layer.base_layer.weight.data = weight
