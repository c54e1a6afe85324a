"""From hidden states to log-probabilities on MLX: the twin of torch/head.py, with its equations.

Only the output layer is taken from the model. What the architecture does to the logits (a scale, a
cap) is repeated here, and compared with the model's own forward pass once, when it is loaded.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from miniact import UserError

CHUNK = 512  # rows of logits that exist at once


def output_layer(model: Any) -> Any:
    """The head's module: `lm_head`, or the input embedding where both are one."""
    tied = getattr(model.args, "tie_word_embeddings", False) or not hasattr(model, "lm_head")
    return model.model.embed_tokens if tied else model.lm_head


class Head:
    """The output layer of a causal language model."""

    def __init__(self, model: Any, frozen: bool) -> None:
        self.layer, args = output_layer(model), model.args
        self.project = getattr(self.layer, "as_linear", self.layer)
        self.softcap = getattr(args, "final_logit_softcapping", None)
        self.scale = getattr(args, "logit_scale", None) or 1.0  # Cohere multiplies
        self.scale /= getattr(args, "logits_scaling", None) or 1.0  # Granite divides
        plain_layer = type(self.layer) in (nn.Linear, nn.Embedding) and "bias" not in self.layer
        self.closed_form = frozen and plain_layer and not self.softcap

    def logits(self, hidden_ND: mx.array, temperature: float) -> mx.array:
        """z of shape [N, V] in float32. Only for few rows at a time."""
        z_NV = self.project(hidden_ND).astype(mx.float32) * self.scale
        if self.softcap:
            z_NV = self.softcap * mx.tanh(z_NV / self.softcap)
        return z_NV / temperature

    def logp(
        self, hidden_ND: mx.array, target_N: mx.array, temperature: float, gradient: bool
    ) -> mx.array:
        """log π(target) for each row, shape [N], float32; gradient: it will be differentiated."""
        if gradient and self.closed_form:
            return _frozen_logp(hidden_ND, target_N, self.layer.weight, self.scale / temperature)
        parts: list[mx.array] = []
        for at in range(0, len(hidden_ND), CHUNK):
            h, y = _after(hidden_ND[at : at + CHUNK], parts), target_N[at : at + CHUNK]
            parts.append(self._chunk(h, y, temperature))
        return mx.concatenate(parts)

    def _chunk(self, h: mx.array, y: mx.array, temperature: float) -> mx.array:
        def chunk(h: mx.array) -> mx.array:
            z_NV = self.logits(h, temperature)
            return mx.take_along_axis(z_NV, y[:, None], 1)[:, 0] - mx.logsumexp(z_NV, -1)

        return nn.utils.checkpoint(self.layer, chunk)(h)


def _frozen_logp(
    hidden_ND: mx.array, target_N: mx.array, weight_VD: mx.array, scale: float
) -> mx.array:
    """log π(target), with ∂ log π / ∂h formed beside it for the backward pass."""

    @mx.custom_function
    def logp(hidden_ND: mx.array) -> tuple[mx.array, mx.array]:
        logps: list[mx.array] = []
        gradients: list[mx.array] = []
        for at in range(0, len(hidden_ND), CHUNK):
            h, y = _after(hidden_ND[at : at + CHUNK], gradients), target_N[at : at + CHUNK]
            z = (h @ weight_VD.T).astype(mx.float32) * scale
            lse = mx.logsumexp(z, -1)
            p = mx.exp(z - lse[:, None]).astype(weight_VD.dtype)
            logps.append(mx.take_along_axis(z, y[:, None], 1)[:, 0] - lse)
            gradients.append((weight_VD[y] - p @ weight_VD) * scale)
        return mx.concatenate(logps), mx.concatenate(gradients)

    @logp.vjp
    def _(primal: mx.array, cotangents: Any, outputs: Any) -> mx.array:
        gradient_ND = outputs[1]  # not differentiated itself, so cotangents[1] is 0
        return gradient_ND * cotangents[0][:, None].astype(gradient_ND.dtype)

    outputs: Any = logp(hidden_ND)
    return outputs[0]


def _after(h: mx.array, earlier: list[mx.array]) -> mx.array:
    """h, but not before the earlier chunk is done: else MLX may hold the logits of all at once."""
    return mx.depends(h, earlier[-1]) if earlier else h


def check_head(model: Any) -> None:
    """UserError unless head(body(x)) are the logits that the model itself computes."""
    x_BL = mx.array([[0, 1, 2]])
    own = model(x_BL).astype(mx.float32)
    ours = Head(model, frozen=True).logits(model.model(x_BL), 1.0)
    if own.shape != ours.shape or not mx.allclose(own, ours, rtol=1e-2, atol=1e-2):
        raise UserError(
            f"model.path: mlx-lm forms the logits of {model.model_type} in a way that miniact does "
            "not know; use model.backend: torch"
        )
