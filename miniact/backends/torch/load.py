"""Loading a Hugging Face model for PyTorch: precision, device, QLoRA, LoRA or all weights.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314): the base is stored in 4-bit NF4 with double
quantisation and stays frozen; rank-r matrices beside every linear layer are trained:
y = W x + (α / r) · B A x, with B = 0 at the start.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from miniact import UserError
from miniact.backends.models import ModelSource, rope_at_top
from miniact.config.sections import ModelConfig

transformers.utils.logging.disable_progress_bar()


def _from_pretrained(source: ModelSource, where: str, **options: Any) -> Any:
    """AutoModelForCausalLM with everything unsafe switched off, errors in one line."""
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            source.path,
            local_files_only=source.is_local,
            trust_remote_code=False,  # code from a hub is never run
            use_safetensors=None if source.gguf else True,  # pickled weights are never loaded
            gguf_file=source.gguf,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: cannot load {source.path!r}: {reason:.300}") from None


def load_base(folder: Path, adapter: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The base model in the configured precision; 4-bit for adapter: qlora."""
    source = ModelSource(str(folder), is_local=True)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if adapter == "qlora":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("model.adapter: qlora needs bitsandbytes; pip install bitsandbytes")
        options["device_map"] = {"": device}
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = _from_pretrained(source, "model.path", **options)
    if adapter != "qlora":
        return model.to(device)
    if device.type == "cpu":
        refuse_odd_widths(model)
    return model


def refuse_odd_widths(model: Any) -> None:
    """On a CPU bitsandbytes 0.50 counts whole blocks of 64 weights a row.

    Where a row is no multiple of 64 long, later rows are restored with the wrong scale: an error of
    24 % where NF4 itself makes 9 %.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit" and module.in_features % 64:
            raise UserError(
                f"model.adapter: qlora needs rows of a multiple of 64 weights on a CPU, and {name} "
                f"has {module.in_features}: bitsandbytes would restore them wrongly; use lora"
            )


def attach(model: Any, config: ModelConfig, seed: int) -> Any:
    """Add the trainable part. The seed fixes LoRA's A; B is zero."""
    if config.adapter == "full":
        return model.requires_grad_(True)
    from peft import LoraConfig, get_peft_model  # seconds, and only for those who need it

    torch.manual_seed(seed)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        lora_dropout=0.0,  # dropout would make the sampled and the scored policy differ
        bias="none",
        task_type="CAUSAL_LM",
    )
    attached = get_peft_model(model, lora)
    config_of_peft: Any = attached.peft_config["default"]  # its set of names is saved in any order
    config_of_peft.target_modules = sorted(config_of_peft.target_modules)
    return attached


def materialise(source: ModelSource) -> ModelSource:
    """Turn a GGUF file into a plain HF folder in the cache, once; other sources pass through.

    transformers reads GGUF by dequantising it (about 20 s for 135M parameters); the folder then
    loads in a second, and MLX can load it too.
    """
    if source.gguf is None:
        return source
    if (source.cache / "config.json").is_file():
        return ModelSource(str(source.cache), is_local=True)
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model.path: {source.gguf} is a GGUF file; pip install gguf to read it")
    loaded = _from_pretrained(source, "model.path", dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are no longer quantised
    fresh = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.path, gguf_file=source.gguf)
    part = source.cache.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    fresh.save_pretrained(part)
    tokenizer.save_pretrained(part)
    add_rope_theta(part)
    part.rename(source.cache)
    return ModelSource(str(source.cache), is_local=True)


def add_rope_theta(folder: Path) -> None:
    """Also write `rope_theta` at the top of config.json, where mlx-lm looks for it."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | rope_at_top(config), indent=2) + "\n")
