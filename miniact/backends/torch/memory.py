"""The memory of the device that PyTorch computes on."""

from __future__ import annotations

import torch

from miniact.backends.memory import ProcessMemory

SHARE = 0.8  # of what is free on an accelerator goes to sampling; the rest is for its passes


def free(device: torch.device) -> float:
    """Bytes that tensors can still take; what PyTorch holds in reserve is free to it."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + reserve)
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return ProcessMemory().free()


def usable(device: torch.device) -> float:
    """Bytes for the keys and values of sampling where the config names none."""
    return ProcessMemory().usable() if device.type == "cpu" else SHARE * free(device)


def release(device: torch.device) -> None:
    """Give back what PyTorch holds in reserve."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
