"""Models of any size with random weights, made on the device itself: nothing to download.

What a card is asked, memory and speed, does not depend on what the weights are. A model is built
layer by layer, so that only one layer at a time exists in more than its 4 bits.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes.nn.modules
import torch
import transformers
from bitsandbytes.functional import quantize_4bit
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

import miniact.backends.torch.policy as torch_policy
from miniact.backends.models import find_model
from miniact.tools.cost import Shape

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def write_shape(folder: Path, shape: Shape) -> Path:
    """config.json of a Qwen3 of this shape, with the shipped model's tokenizer and no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=40960,
        tie_word_embeddings=shape.tied,
        use_sliding_window=False,
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": None}))
    for name in TOKENIZER:
        shutil.copy(Path(find_model("builtin:tiny").path) / name, folder / name)
    return folder


def random_base(folder: Path, adapter: str, device: torch.device, dtype: torch.dtype) -> Any:
    """As `load_base`, but the weights are drawn."""
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    if adapter == "qlora":
        options = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        head = [name for name, m in model.named_modules() if m is model.get_output_embeddings()]
        replace_with_bnb_linear(model, head, options)
        model.is_loaded_in_4bit = True
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            _draw_4bit(module, device, dtype)
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            module.to_empty(device=device, recurse=False)
            model._init_weights(module)
    model.tie_weights()
    return model.eval()


def _draw_4bit(module: Any, device: torch.device, dtype: torch.dtype) -> None:
    size = (module.out_features, module.in_features)
    weight = torch.empty(size, dtype=dtype, device=device).normal_(0, 0.02)
    packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    module.weight = bitsandbytes.nn.modules.Params4bit(
        packed, quant_state=state, quant_type="nf4", module=module, bnb_quantized=True
    )
    module.quant_state = state


@contextlib.contextmanager
def random_weights() -> Iterator[None]:
    """In it, policies are loaded with random weights from folders that hold none."""
    load_base = torch_policy.load_base
    torch_policy.load_base = random_base
    try:
        yield
    finally:
        torch_policy.load_base = load_base
