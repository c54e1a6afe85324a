"""Attention of the parts of a row (parts.py) with its normaliser: the kernels of each device.

    flash       CUDA in 16 bits: all stretches in one call, which knows where each begins
    efficient   CUDA otherwise: the same, on keys that are copied for every query head
    cpu         PyTorch's own for the CPU: a call for each stretch, or for all of one length
    plain       products and a softmax (plain.py): what the others are compared with on first use,
                and what is done where none of them fits (MPS, odd widths) or is right

The operators are PyTorch's, but not of its public interface, which takes no normaliser back.
pyproject.toml bounds the versions, and `kernel_for` looks before it trusts.

Sizes: a row of T tokens; X queries and Y keys of a part of it; H heads of queries, K of keys, D
wide. n stretches of L queries and S keys each.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, Protocol

import torch

from miniact.backends.torch import plain
from miniact.backends.torch.attention import widen
from miniact.backends.torch.parts import Bunch, Part, add, put, take

aten: Any = torch.ops.aten


class Kernel(Protocol):
    def forward(
        self, inputs: tuple[torch.Tensor, ...], part: Part, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q [T, H, D], k, v [T, K, D] → out [X, H, D], and its normaliser's logarithm [H, X]."""
        ...

    def backward(
        self, inputs: tuple[torch.Tensor, ...], whole: tuple[torch.Tensor, ...], part: Part,
        scale: float, sums: list[torch.Tensor],
    ) -> None:  # fmt: skip
        """Add what this part does to q, k and v. whole: ∂out and out [T, H, D], lse [H, T]."""
        ...


# ---- all stretches in one call -------------------------------------------------------------------


class Flash:
    def forward(self, inputs: Any, part: Part, scale: float) -> Any:
        q, k, v = _gathered(inputs, part)
        options = (*part.cuts, *part.longest, 0.0, part.causal, False)
        return aten._flash_attention_forward(q, k, v, *options, scale=scale)[:2]

    def backward(self, inputs: Any, whole: Any, part: Part, scale: float, sums: Any) -> None:
        grad, out = (take(x, part.queries) for x in whole[:2])
        lse = take(whole[2], part.queries, 1).contiguous()
        unused = torch.empty(2, dtype=torch.uint64, device=lse.device)  # dropout's random state
        options = (*part.cuts, *part.longest, 0.0, part.causal, unused, unused)
        q, k, v = _gathered(inputs, part)
        gradients = aten._flash_attention_backward(grad, q, k, v, out, lse, *options, scale=scale)
        _add_all(sums, part, gradients)


class Efficient:
    """It shares no keys between heads, and its normalisers are padded: [n, H, M]."""

    def forward(self, inputs: Any, part: Part, scale: float) -> Any:
        q, k, v = self._widened(inputs, part)
        options = (None, *part.cuts, *part.longest, 0.0, int(part.causal), True)
        out, lse_nHM, *_ = aten._efficient_attention_forward(q, k, v, *options, scale=scale)
        return out[0], lse_nHM.transpose(0, 1).flatten(1).index_select(1, part.padded[1])

    def backward(self, inputs: Any, whole: Any, part: Part, scale: float, sums: Any) -> None:
        grad, out = (take(x, part.queries)[None] for x in whole[:2])
        lse_HX, (M, places) = take(whole[2], part.queries, 1), part.padded
        lse_HnM = lse_HX.new_full((len(lse_HX), len(part.spans) * M), float("inf"))
        lse_HnM.index_copy_(1, places, lse_HX)
        lse = lse_HnM.unflatten(1, (-1, M)).transpose(0, 1).contiguous()
        unused = torch.empty((), dtype=torch.int64, device=lse.device)  # dropout's random state
        options = (0.0, unused, unused, int(part.causal), False)
        q, k, v = self._widened(inputs, part)
        dq, *wide, _ = aten._efficient_attention_backward(
            grad, q, k, v, None, out, *part.cuts, *part.longest, lse, *options, scale=scale
        )
        K = inputs[1].shape[1]
        _add_all(sums, part, (dq[0], *(x[0].unflatten(1, (K, -1)).sum(2) for x in wide)))

    def _widened(self, inputs: Any, part: Part) -> Iterator[torch.Tensor]:
        return (widen(x, inputs[0].shape[1])[None] for x in _gathered(inputs, part))


def _gathered(inputs: Any, part: Part) -> tuple[torch.Tensor, ...]:
    q, k, v = inputs
    return take(q, part.queries), take(k, part.keys), take(v, part.keys)


def _add_all(sums: list[torch.Tensor], part: Part, gradients: Any) -> None:
    for x, where, more in zip(sums, (part.queries, part.keys, part.keys), gradients):
        add(x, where, more)


# ---- a call for each bunch -----------------------------------------------------------------------


class Looped:
    """`attend`, `gradients`: q [n, H, L, D], k, v [n, K, S, D] → out, lse [n, H, L], and back."""

    def __init__(self, attend: Any, gradients: Any) -> None:
        self.attend, self.gradients = attend, gradients

    def forward(self, inputs: Any, part: Part, scale: float) -> Any:
        q, _, v = inputs
        H, X = q.shape[1], sum(b - a for a, b, *_ in part.spans)
        out, lse = v.new_empty(X, H, v.shape[-1]), v.new_empty(H, X, dtype=torch.float32)
        for bunch in part.bunches:
            out_nHLD, lse_nHL = self.attend(*_split(inputs, bunch), part.causal, scale)
            put(out, bunch.at, out_nHLD.transpose(1, 2).flatten(0, 1))
            put(lse, bunch.at, lse_nHL.transpose(0, 1).flatten(1), 1)
        return out, lse

    def backward(self, inputs: Any, whole: Any, part: Part, scale: float, sums: Any) -> None:
        for bunch in part.bunches:
            grad, out = (bunch.split(x, bunch.queries) for x in whole[:2])
            lse_HX = take(whole[2], bunch.queries, 1)
            lse = lse_HX.unflatten(1, (bunch.n, -1)).transpose(0, 1)
            gradients = self.gradients(_split(inputs, bunch), (grad, out, lse), part.causal, scale)
            places = (bunch.queries, bunch.keys, bunch.keys)
            for x, where, more in zip(sums, places, gradients):
                add(x, where, more.transpose(1, 2).flatten(0, 1))


def _split(inputs: Any, bunch: Bunch) -> tuple[torch.Tensor, ...]:
    q, k, v = inputs
    return (
        bunch.split(q, bunch.queries),
        bunch.split(k, bunch.keys),
        bunch.split(v, bunch.keys),
    )


def _on_cpu(q: Any, k: Any, v: Any, causal: bool, scale: float) -> Any:
    shape, K = q.shape[:3], k.shape[1]
    if causal:
        k, v = widen(k, shape[1]), widen(v, shape[1])
    else:  # no order among the queries: those of all heads of a key are more queries to it
        q = plain.more_queries(q, K)
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    return out.reshape(*shape, -1), lse.reshape(shape)


def _on_cpu_backward(inputs: Any, whole: Any, causal: bool, scale: float) -> Any:
    (q, k, v), (grad, out, lse) = inputs, whole
    K, shape = k.shape[1], q.shape
    if causal:
        k, v = widen(k, shape[1]), widen(v, shape[1])
    else:
        q, grad, out = (plain.more_queries(x, K) for x in (q, grad, out))
        lse = lse.reshape(*q.shape[:3])
    dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, causal, scale=scale
    )
    if causal and shape[1] > K:
        dk, dv = (x.unflatten(1, (K, -1)).sum(2) for x in (dk, dv))
    return dq.reshape(shape), dk, dv


# ---- which one -----------------------------------------------------------------------------------

PLAIN = "plain products"
KERNELS: dict[str, Kernel] = {
    "flash attention": Flash(),
    "memory-efficient attention": Efficient(),
    "attention on the CPU": Looped(_on_cpu, _on_cpu_backward),
    PLAIN: Looped(plain.attend, plain.gradients),
}
LOST = {torch.float32: 1e-3}  # that rounding may make, as a share of a result; in 16 bits 2 %


def kernel_for(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Kernel:
    """The fastest that is right for tensors like these, [T, heads, D]."""
    return KERNELS[choose(q.device, q.dtype, q.shape[1], k.shape[1], (q.shape[2], v.shape[2]))]


@cache
def choose(
    device: torch.device, dtype: torch.dtype, H: int, K: int, widths: tuple[int, int]
) -> str:
    """The kernel's name. widths: of queries and keys, and of values."""
    D = widths[0]
    for name in _fitting(device, dtype) if widths == (D, D) and D % 8 == 0 else ():
        try:
            lost = _lost(KERNELS[name], device, dtype, (H, K, D))
            reason = f"it is off by {lost:.1e}"
            if lost <= LOST.get(dtype, 0.02):
                return name
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = " ".join(str(error).split())[:100]
        print(
            f"note: PyTorch's {name} cannot be used on {device} ({reason}); another way is taken, "
            "more slowly and with the same result",
            file=sys.stderr,
        )
    return PLAIN


def _fitting(device: torch.device, dtype: torch.dtype) -> list[str]:
    if device.type == "cpu":
        return ["attention on the CPU"]
    if device.type != "cuda":
        return []
    flash = dtype != torch.float32 and torch.cuda.get_device_capability(device) >= (8, 0)
    return [*(["flash attention"] if flash else []), "memory-efficient attention"]


@torch.no_grad()
def _lost(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, sizes: tuple[int, int, int]
) -> float:
    """How far the worst result of a small example is from the plain way's, as a share of it."""
    H, K, D = sizes
    chance = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(170, n, D, generator=chance) for n in (H, K, K, H))
    q, k, v, grad = (x.to(device, dtype) for x in (q, k, v, grad))
    worst = 0.0
    for part in (
        Part([(a, b, a, b) for a, b in ((0, 140), (140, 150), (150, 170))], True, device),
        Part([(3, 9, 20, 131), (141, 163, 0, 111)], False, device),
        Part([(1, 2, 0, 9), (5, 6, 3, 80)], False, device),
    ):
        out, lse = KERNELS[PLAIN].forward((q, k, v), part, 0.1)
        whole = [grad, torch.zeros_like(q), lse.new_zeros(H, len(q))]
        put(whole[1], part.queries, 0.8 * out)  # as if other parts were in them
        put(whole[2], part.queries, lse + 0.3, 1)
        results = []
        for way in (kernel, KERNELS[PLAIN]):
            sums = [torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v)]
            way.backward((q, k, v), tuple(whole), part, 0.1, sums)
            results.append([*way.forward((q, k, v), part, 0.1), *sums])
        for mine, expected in zip(*results):
            distance = (mine.float() - expected.float()).norm() / expected.float().norm()
            worst = max(worst, float(distance)) if distance == distance else float("inf")
    return worst
