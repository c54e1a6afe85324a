"""How long a pass takes on a device, from what it computes, moves and starts.

    on the device    FLOPs / speed + bytes / bandwidth + kernels · LEAST
    on the host      kernels · START: each is started by itself, and in a small step the device
                     waits for the host (64 rows of an 8B take no longer than 8)
    seconds          the larger of the two

Counted on a pretended card (tests/tools/test_card.py): kernels a layer, and the bytes that pass
through norms, rotary embeddings, casts and gates. What a real card takes is not measured yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from miniact.config.sections import ModelConfig
from miniact.tools.cost import (
    BYTES,
    NF4,
    Shape,
    Work,
    forward_flops,
    training_flops,
    weight_bytes,
)
from miniact.tools.devices import Device

LEAST = 1e-6  # seconds of a GPU between two kernels, and for one that has next to nothing to do
START = {"cuda": 10e-6, "cpu": 10e-6, "mlx": 4e-6}  # seconds of the host for each kernel
DECODE_KERNELS = 98  # a layer
# Of a layer, forward and backward; and more, where it is computed again in the backward pass: in
# all, and for the answers that see their prompts (torch/tree.py).
TRAINING_KERNELS, ANSWER_KERNELS = (283, 104), (22, 12)
FUSED_ROWS = 64  # up to these a product reads 4 bits; beyond, the weights are restored first
RESTORED = 4.5  # bytes of traffic for a weight that is restored: 0.5 read, 2 written, 2 read
HEAD = 44  # bytes of traffic for a logit, from the product to its gradient
SCORE = 20  # and for the score of a key that one answer's head looks at
TRAINED_SCORE = 36  # the same while training, in each pass; PyTorch's kernels keep it to themselves
FEW_ROWS = {"cpu": 0.25}  # of the speed of large products, that those of a few rows reach


@dataclass(frozen=True)
class Pace:
    """Seconds of one pass, and which of the two it waits for."""

    device: float
    host: float

    @property
    def seconds(self) -> float:
        return max(self.device, self.host)


def _elementwise(shape: Shape) -> float:
    """Bytes that a token moves through a layer beside its products, in a forward pass."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return 145 * shape.hidden + 53 * (q + kv) + 12 * shape.ff * shape.active


def _pace(device: Device, flops: float, moved: float, kernels: float) -> Pace:
    smallest = 0.0 if device.kind == "cpu" else LEAST
    at_work = flops / device.matmul + moved / device.bandwidth + kernels * smallest
    return Pace(at_work, kernels * START[device.kind])


def training(shape: Shape, device: Device, work: Work, model: ModelConfig) -> float:
    """Seconds of one step: all its micro-batches, forward and backward."""
    P, G, C = work.prompt, work.group, work.completion
    micro = max(1.0, work.tokens / model.max_tokens_per_batch)  # as many as the budget makes
    groups, recomputes = work.batch / micro, model.gradient_checkpointing
    passes = 4 if recomputes else 3  # forward, backward (twice the work), and forward again
    flops = training_flops(shape, P, G, C, model.rank, model.adapter == "full")
    if recomputes:
        flops += forward_flops(shape, P, G, C) - 2 * shape.head * G * C
    moved = passes * (P + G * C) * shape.layers * _elementwise(shape) + HEAD * G * C * shape.vocab
    if G > 1 and device.kind == "mlx":
        moved += passes * TRAINED_SCORE * shape.layers * shape.heads * G * C * (P + C / 2)
    restored = (passes - 1) * RESTORED * shape.linear if model.adapter == "qlora" else 0.0
    kernels = shape.layers * training_kernels(work, model) / micro
    return micro * _pace(device, groups * flops, groups * moved + restored, kernels).seconds


def training_kernels(work: Work, model: ModelConfig) -> float:
    """Kernels of one layer in a step: forward, backward, and forward again if it is recomputed."""
    parts = [TRAINING_KERNELS, *([ANSWER_KERNELS] if work.group > 1 else [])]
    layer = sum(n + model.gradient_checkpointing * more for n, more in parts)
    return math.ceil(work.tokens / model.max_tokens_per_batch) * layer


def prefill(shape: Shape, device: Device, work: Work, model: ModelConfig) -> float:
    """Seconds until all prompts of a step have passed, in slices of the budget."""
    P = work.prompt
    slices = max(1.0, work.batch * P / model.max_tokens_per_batch)
    restored = RESTORED * shape.linear if model.adapter == "qlora" else 0.0
    flops = work.batch * forward_flops(shape, P, 0, 0) / slices
    moved = work.batch * P * shape.layers * _elementwise(shape) / slices + restored
    return slices * _pace(device, flops, moved, shape.layers * DECODE_KERNELS).seconds


def decode(
    shape: Shape, device: Device, work: Work, model: ModelConfig, prompts: float = 1
) -> Pace:
    """One more token of all answers to so many prompts, when half of their tokens are there."""
    P, G, seen = work.prompt, work.group, work.prompt + work.completion / 2
    rows = max(1.0, prompts * G)
    weights = weight_bytes(shape, model, device.dtype)
    weights -= 0 if shape.tied else shape.head * BYTES[device.dtype]  # embeddings are looked up
    asleep = shape.mixture(shape.experts) * (1 - min(1.0, rows * shape.active / shape.experts))
    weights -= asleep * BYTES[device.dtype]
    if model.adapter == "qlora" and rows > FUSED_ROWS:
        weights += (RESTORED - NF4) * shape.linear
    kept = rows * seen if device.kind == "mlx" else prompts * P + rows * (seen - P)
    moved = weights + kept * shape.keys * BYTES[device.dtype]
    moved += rows * shape.layers * (SCORE * shape.heads * seen + _elementwise(shape))
    flops = rows * 2 * (shape.computing + shape.head)
    flops += rows * 4 * seen * shape.heads * shape.head_dim * shape.layers
    share = FEW_ROWS.get(device.kind, 1.0)
    return _pace(device, flops / share, moved, shape.layers * DECODE_KERNELS + 40)
