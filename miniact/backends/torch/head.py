"""From hidden states to log-probabilities without ever holding [tokens × vocabulary].

    z = s·W h / T        logits; s is the architecture's own logit scale (1 for most)
    log π(y) = z_y − logsumexp(z)
    ∂ log π(y) / ∂h = (s/T) · (W_y − Σ_v p_v W_v)

A frozen head needs nothing but the last line in the backward pass, and that line can be evaluated
in the forward pass, chunk by chunk: memory is one [chunk × V] buffer plus one gradient of h's
shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from miniact.backends.torch.fast import FEW, few_rows

CHUNK = 512  # rows of logits that exist at once


class Head:
    """The output layer of a causal language model."""

    def __init__(self, model: Any, frozen: bool) -> None:
        self.layer = model.get_output_embeddings()
        config = model.config.get_text_config()
        self.softcap = getattr(config, "final_logit_softcapping", None)
        self.scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
        self.scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # so does Falcon-H1
        self.scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite divides
        plain_layer = type(self.layer) is torch.nn.Linear and self.layer.bias is None
        self.closed_form = frozen and plain_layer and not self.softcap

    def logits(self, hidden_ND: torch.Tensor, temperature: float) -> torch.Tensor:
        """z of shape [N, V] in float32. Only for few rows at a time."""
        few = self.closed_form and hidden_ND.device.type == "cpu" and len(hidden_ND) <= FEW
        z_NV = few_rows(hidden_ND, self.layer.weight) if few else self.layer(hidden_ND)
        z_NV = z_NV.float() * self.scale
        if self.softcap:
            z_NV = self.softcap * torch.tanh(z_NV / self.softcap)
        return z_NV / temperature

    def logp(
        self, hidden_ND: torch.Tensor, target_N: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """log π(target) for each row, shape [N], float32, differentiable in hidden_ND."""
        if self.closed_form:
            return _FrozenHead.apply(
                hidden_ND, target_N, self.layer.weight, self.scale / temperature
            )
        parts = [
            checkpoint(self._chunk, h, y, temperature, use_reentrant=False)
            for h, y in zip(hidden_ND.split(CHUNK), target_N.split(CHUNK))
        ]
        return torch.cat(parts) if parts else hidden_ND.sum(1).float()

    def _chunk(self, h: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
        z_NV = self.logits(h, temperature)
        return z_NV.gather(1, y[:, None])[:, 0] - z_NV.logsumexp(-1)


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND, target_N, weight_VD, scale):  # type: ignore[no-untyped-def]
        logp_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        keep = hidden_ND.requires_grad
        gradient_ND = torch.empty_like(hidden_ND) if keep else None
        for at in range(0, len(hidden_ND), CHUNK):
            h, y = hidden_ND[at : at + CHUNK], target_N[at : at + CHUNK]
            z = (h @ weight_VD.T).float().mul_(scale)
            lse = z.logsumexp(-1)
            logp_N[at : at + CHUNK] = z.gather(1, y[:, None])[:, 0] - lse
            if gradient_ND is not None:
                p = z.sub_(lse[:, None]).exp_().to(weight_VD.dtype)
                gradient_ND[at : at + CHUNK] = (weight_VD[y] - p @ weight_VD) * scale
        ctx.save_for_backward(gradient_ND)
        return logp_N

    @staticmethod
    def backward(ctx: Any, grad_N):  # type: ignore[no-untyped-def]
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * grad_N[:, None].to(gradient_ND.dtype), None, None, None
