"""The card that is not there, at full size: tensors of cuda:0 that have a shape and no values.

    fake_cuda.install(...); with fake_shapes.shapes() as log: …      a model of 8B in no memory

Counted are launches, the bytes alive and their peak, and a roofline of the time: for each kernel
max(FLOPs / speed, bytes / bandwidth, LEAST). What it cannot show: values, the allocator's waste,
what a kernel really takes.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from fake_cuda import FREE

GRAIN = 512  # bytes: what CUDA's allocator hands out
LEAST = 2.5e-6  # seconds of a kernel that has nothing to do
FUSED = 64  # rows up to which bitsandbytes multiplies by 4-bit weights without restoring them


class Log:
    """What happened on the card. flops, moved: of each launch, for `seconds`."""

    def __init__(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.work: list[tuple[float, float]] = []
        self.now = self.peak = 0
        self.number = 1  # there are no values: every number that is read on the card is this one
        self._alive: set[int] = set()

    def clear(self) -> None:
        """Count anew; what lies there stays."""
        self.kernels.clear()
        self.work.clear()
        self.peak = self.now

    def seconds(self, matmul: float, bandwidth: float) -> float:
        """FLOP/s and bytes/s of a card, as they are reached."""
        return sum(max(f / matmul, moved / bandwidth, LEAST) for f, moved in self.work)

    def hold(self, storage: Any) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // GRAIN) * GRAIN
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._alive.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def _flops(name: str, args: tuple, out: Any) -> float:
    if name in ("mm", "bmm", "addmm", "addmm_", "baddbmm"):
        a, b = args[-2:] if name in ("mm", "bmm") else args[1:3]
        return 2.0 * a.numel() * b.shape[-1]
    if name == "gemm_4bit":
        return 2.0 * args[0].numel() * args[2][0]
    if name.startswith("_flash_attention"):  # as many sequences as there are cuts
        backward = "backward" in name
        q, cuts, causal = (
            (args[1], args[6:8], args[11]) if backward else (args[0], args[3:5], args[8])
        )
        pairs = sum(
            math.prod(lengths) for lengths in zip(*(np.diff(x.on_host).tolist() for x in cuts))
        )
        return 4.0 * q[0].numel() * pairs * (0.5 if causal else 1.0) * (2.5 if backward else 1)
    if "scaled_dot_product" in name:
        backward = "backward" in name
        q, k = args[1:3] if backward else args[:2]
        causal = 0.5 if "flash" in name else 1.0  # only a causal call has no mask
        return 4.0 * q.numel() * k.shape[2] * causal * (2.5 if backward else 1)
    return 0.0


def _moved(name: str, tensors: list, out: list, args: tuple) -> float:
    """Bytes that a kernel reads and writes."""
    if name in ("embedding", "index_select"):
        return 2.0 * sum(t.numel() * t.itemsize for t in out)
    each = {id(t): t.numel() * t.itemsize for t in [*tensors, *out]}
    restored = 0.0
    if name == "gemm_4bit" and args[0].numel() // args[0].shape[-1] > FUSED:
        restored = 2 * 2.0 * args[2][0] * args[2][1]  # in bfloat16: written, and read again
    return sum(each.values()) + restored


@contextlib.contextmanager
def shapes() -> Iterator[Log]:
    import bitsandbytes.nn.modules
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    log = Log()

    def on_card(tree: Any) -> list:
        leaves = tree_leaves(tree)
        return [t for t in leaves if isinstance(t, torch.Tensor) and t.device.type == "cuda"]

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = f._schema.name.partition("::")[2]
            if name == "equal":
                return True
            if name == "_local_scalar_dense":
                return log.number if args[0].dtype != torch.bool else False
            if name == "bincount":  # its length depends on values; here on minlength alone
                length = (kwargs or {}).get("minlength") or args[2]
                f, args, kwargs = torch.ops.aten.new_zeros.default, (args[0], [length]), {}
            out = f(*args, **(kwargs or {}))
            if name == "lift_fresh":  # what comes from the host has values
                with torch._C._DisableTorchDispatch():  # else they are those of a pretended one
                    out.on_host = args[0].numpy().copy()
            elif name == "_to_copy" and hasattr(args[0], "on_host"):
                out.on_host = args[0].on_host
            tensors, results = on_card((args, kwargs)), on_card(out)
            for tensor in results:
                log.hold(tensor.untyped_storage())
            if (tensors or results) and name not in FREE and f.namespace != "prim":
                log.kernels[name] += 1
                log.work.append((_flops(name, args, out), _moved(name, tensors, results, args)))
            return out

    places = (
        (torch.nn.functional, "scaled_dot_product_attention", _as_on_cuda),
        (torch.nn.Module, "_apply", _apply),
        (bitsandbytes.nn.modules, "Params4bit", _packed),
        (torch.ops.aten, "silu_backward", lambda grad, x: grad * x),  # one kernel, as on CUDA
    )
    kept = [getattr(place, name) for place, name, _ in places]
    for place, name, new in places:
        setattr(place, name, new)
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Count():
            yield log
    finally:
        for (place, name, _), old in zip(places, kept):
            setattr(place, name, old)
        torch._C._set_only_lift_cpu_tensors(False)


def _as_on_cuda(q: Any, k: Any, v: Any, attn_mask: Any = None, **options: Any) -> Any:
    """The kernels that CUDA takes: flash without a mask, else the memory-efficient one."""
    import torch

    causal, scale = options.get("is_causal", False), options.get("scale")
    if attn_mask is None:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(q, k, v, 0.0, causal, False, scale=scale)[0]
    if attn_mask.dtype == torch.bool:  # that kernel knows only what is added to the scores
        attn_mask = torch.where(attn_mask, 0.0, float("-inf")).to(q.dtype)
    bias = attn_mask.expand(*q.shape[:3], k.shape[2])
    gradient = torch.is_grad_enabled() and q.requires_grad
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(q, k, v, bias, gradient, 0.0, causal, scale=scale)[0]


def _apply(self: Any, change: Any, recurse: bool = True) -> Any:
    """As torch's, but every tensor is replaced: one without values cannot be swapped in place."""
    import torch

    for child in self.children() if recurse else ():
        child._apply(change)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            new = torch.nn.Parameter(change(parameter.data), parameter.requires_grad)
            self._parameters[name] = new
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = change(buffer)
    return self


def _packed(data: Any, requires_grad: bool = False, **options: Any) -> Any:
    """bitsandbytes' 4-bit weight is a kind of tensor itself, and cannot be one without values."""
    import torch

    weight = torch.nn.Parameter(data, requires_grad)
    defaults = {"quant_state": None, "bnb_quantized": False, "compress_statistics": True}
    vars(weight).update({**defaults, **options})
    return weight
