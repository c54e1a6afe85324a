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
from transformers.pytorch_utils import Conv1D

from miniact import UserError
from miniact.backends.models import ModelSource, rope_at_top
from miniact.backends.targets import leaf, lora_layers, note_experts
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
    options: dict[str, Any] = {"dtype": dtype}  # transformers takes sdpa where a model has it
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
    remove_chance(model)
    if adapter != "qlora":
        return model.to(device)
    if device.type == "cpu":
        refuse_odd_widths(model)
    return model


def read_model(folder: Path) -> dict[str, torch.Tensor]:
    """Saved weights by the names of a model in memory; a file may name each expert on its own."""
    source = ModelSource(str(folder), is_local=True)
    return _from_pretrained(source, str(folder), dtype=torch.float32).state_dict()


def can_share_prompts(model: Any) -> bool:
    """Sliding windows and linear attention ignore a custom mask: they train the plain way.

    So does what has an attention of its own. (`check` tries the rest, with short prompts.)
    """
    if model.config._attn_implementation != "sdpa":
        return False
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    return kinds == {"full_attention"} and window is None


def remove_chance(model: Any) -> None:
    """No dropout and no jitter: what is sampled and what is trained must be one policy."""
    for module in model.modules():
        for name, value in vars(module).items():
            is_chance = "drop" in name or "jitter" in name or type(module) is torch.nn.Dropout
            if is_chance and isinstance(value, float):
                setattr(module, name, 0.0)


def body_of(model: Any) -> Any:
    """What computes hidden states: the model without its head."""
    body = model.get_decoder()
    return model.model if body is model else body  # Llama 4 takes itself for its body


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
        target_modules=_targets(model),
        lora_dropout=0.0,  # dropout would make the sampled and the scored policy differ
        bias="none",
        task_type="CAUSAL_LM",
    )
    attached = get_peft_model(model, lora)
    config_of_peft: Any = attached.peft_config["default"]  # its set of names is saved in any order
    config_of_peft.target_modules = sorted(config_of_peft.target_modules)
    return attached


def lora_paths(model: Any) -> set[str]:
    """Paths of the layers that get LoRA."""
    modules, head = dict(model.named_modules()), model.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)
    return lora_layers(
        [p for p, m in modules.items() if isinstance(m, kinds) and m is not head],
        [p for p in modules if leaf(p) == "experts"],
        [p for p, m in modules.items() if hasattr(m, "A_log") and hasattr(m, "D")],
        model.config.model_type,
    )


def _targets(model: Any) -> list[str]:
    """As PEFT's target_modules: names where they say it all, else whole paths."""
    chosen, modules = lora_paths(model), dict(model.named_modules())
    experts = [m for path, m in modules.items() if leaf(path) == "experts"]
    if experts:
        size = sum(p.nbytes for module in experts for p in module.parameters())
        note_experts(model.config.model_type, size)
    names = {leaf(path) for path in chosen}
    return sorted(names if {p for p in modules if leaf(p) in names} == chosen else chosen)


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
