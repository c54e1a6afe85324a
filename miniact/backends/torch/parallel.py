"""Several processes on PyTorch: torchrun or `accelerate launch` starts them, accelerate connects.

Messages go over gloo, between CPUs, so that a process can wait for hours without holding its card;
gradients go from card to card (NCCL), or over gloo where the model is on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState

from miniact import UserError
from miniact.backends.sampling import stretches
from miniact.config.sections import ModelConfig

TIMEOUT = timedelta(hours=2)  # after the first is ready; the dead are noticed at once without it
FOREVER = timedelta(days=365)  # for the next call: process 0 may be playing episodes
BUCKET = 1 << 24  # numbers that are summed at once: fewer calls, and 64 MB beside the gradients


class TorchTeam:
    """The processes of a torchrun: see `parallel.Team`."""

    def __init__(self) -> None:
        self.has_cards = torch.cuda.is_available()
        try:
            self.state = PartialState(cpu=not self.has_cards, timeout=TIMEOUT)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # the last: RTX 40
            reason = " ".join(str(error).split())
            raise UserError(f"the processes cannot be connected: {reason:.300}") from None
        self.rank, self.size = self.state.process_index, self.state.num_processes
        self.calls = dist.new_group(backend="gloo", timeout=FOREVER)
        self.answers = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def broadcast(self, message: bytes) -> bytes:
        length = torch.tensor([len(message)])
        dist.broadcast(length, 0, group=self.calls)
        sent = _tensor(message) if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
        if len(sent):
            dist.broadcast(sent, 0, group=self.calls)
        return sent.numpy().tobytes()

    def collect(self, message: bytes) -> list[bytes]:
        lengths = [torch.empty(1, dtype=torch.long) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(message)]), group=self.answers)
        padded = torch.zeros(int(max(lengths)), dtype=torch.uint8)
        padded[: len(message)] = _tensor(message)
        rows = [torch.empty_like(padded) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(padded, rows, 0, group=self.answers)
        return [row[: int(n)].numpy().tobytes() for row, n in zip(rows or [], lengths)]

    def place(self, config: ModelConfig) -> ModelConfig:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        cards = torch.cuda.device_count() if self.has_cards else 0
        mine = self.state.local_process_index
        return replace(config, device=own_device(config.device, mine, here, cards))

    @torch.no_grad()
    def sum_gradients(self, policy: Any) -> None:
        parameters = list(policy.trainable.values())
        group = self.answers if policy.device.type == "cpu" else None
        has = torch.tensor([p.grad is not None for p in parameters]).int().to(policy.device)
        dist.all_reduce(has, group=group)
        gradients = []
        for parameter, holders in zip(parameters, has.tolist()):
            if holders:  # where nobody has one there is none: AdamW leaves such weights alone
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat, group=group)
            for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket])):
                gradient.copy_(total.view_as(gradient))

    def checksum(self, policy: Any) -> float:
        """Σ|x| of what is trained and of its moments, in float64."""
        total = 0.0
        for parameter in policy.trainable.values():
            for x in (parameter, *policy.optimizer.state.get(parameter, {}).values()):
                x = torch.as_tensor(x).detach()
                total += float(torch.linalg.vector_norm(x, ord=1, dtype=torch.float64))
        return total

    def close(self) -> None:
        self.state.destroy_process_group()


def own_device(name: str, mine: int, here: int, cards: int) -> str:
    """The device of process number `mine` of those on this computer. UserError if it has none."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"model.device: {name} is one device, and there are {here} processes here, each with "
            "its own; use auto or cpu"
        )
    if name == "cpu" or (name == "auto" and not cards):
        return "cpu"
    if here > cards:
        raise UserError(
            f"{here} processes on a computer with {cards} GPUs: start one for each (torchrun "
            f"--nproc-per-node {cards}), or set model.device=cpu"
        )
    return f"cuda:{mine}"


def _tensor(message: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(message), np.uint8))


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Gradients in their order, in lists that together hold at most BUCKET numbers, or just one."""

    def fits(part: list[int]) -> bool:
        return sum(gradients[i].numel() for i in part) <= BUCKET

    for part in stretches(range(len(gradients)), fits):
        yield [gradients[i] for i in part]
