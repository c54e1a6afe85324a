"""How many weights a model has and where they lie, from its config.json alone, whatever its family.

The model is built without memory (PyTorch's meta device), so that experts, shared layers and tied
weights count as what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from miniact import UserError
from miniact.backends.torch.load import lora_paths


@dataclass(frozen=True)
class Weights:
    """Numbers of weights."""

    total: int
    linear: int  # of linear layers but the head: what qlora stores in 4 bits
    experts: int  # of a mixture's experts, which qlora leaves as they are
    lora_width: int  # Σ (in + out) of the layers with LoRA: it has rank times as many


def count_weights(folder: Path) -> Weights:
    """The weights of the model that `folder`/config.json describes. UserError if none is known."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # each architecture fails in its own way
        reason = " ".join(str(error).split())
        raise UserError(f"model.path: {folder}: cannot count its weights: {reason:.200}") from None
    modules, head = dict(model.named_modules()), model.get_output_embeddings()
    linear = [m for m in modules.values() if isinstance(m, torch.nn.Linear) and m is not head]
    experts = [m for path, m in modules.items() if path.endswith(".experts")]
    return Weights(
        total=model.num_parameters(),
        linear=sum(m.weight.numel() for m in linear),
        experts=sum(p.numel() for m in experts for p in m.parameters()),
        lora_width=sum(sum(modules[path].weight.shape) for path in lora_paths(model)),
    )
