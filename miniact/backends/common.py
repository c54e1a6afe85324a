"""What both backends do alike: model folders, and checks of what they are to load."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miniact import UserError
from miniact.backends.models import find_model
from miniact.config.sections import ModelConfig

HUB_FILES = ["*.json", "*.jinja", "*.txt", "tokenizer.model", "model*.safetensors"]  # no code


def config_folder(path: str) -> Path:
    """A folder that holds the config.json of `model.path`; of a hub model, nothing else."""
    return model_folder(path, files=["config.json"])


def model_folder(path: str, files: Sequence[str] = HUB_FILES) -> Path:
    """`model.path` as a folder of safetensors: a GGUF is converted, a hub model is downloaded."""
    source = find_model(path)
    if source.gguf:
        from miniact.backends.torch.load import materialise

        source = materialise(source)
    if source.is_local:
        return Path(source.path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source.path, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model.path: cannot fetch {source.path!r}: {reason:.200}") from None


def weight_file(folder: Path, adapter: str) -> Path:
    """The file that holds the saved weights; UserError where there is none."""
    file = folder / ("model.safetensors" if adapter == "full" else "adapter_model.safetensors")
    if not file.is_file():
        raise UserError(f"{folder}: no {file.name}; expected a folder that miniact or PEFT saved")
    return file


def check_same_shape(folder: Path, saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuse saved weights (name → array) that do not fit the model's."""
    for name, array in sorted(saved.items(), key=lambda item: item[0]):
        if name not in mine:
            raise UserError(
                f"{folder}: has {name}, which this model lacks; adapter of another model?"
            )
        if tuple(array.shape) != tuple(mine[name].shape):
            raise UserError(
                f"{folder}: {name} has shape {tuple(array.shape)}, expected "
                f"{tuple(mine[name].shape)}; adapter of another model, or another model.rank"
            )
    missing = [n for n in mine if n not in saved and "lora" in n]
    if missing:
        raise UserError(f"{folder}: lacks {missing[0]}; adapter of another model?")


def check_moments(
    file: Path, saved: Mapping[str, Any], expected: Mapping[str, Sequence[int]]
) -> None:
    """Refuse an optimizer's state that this model's AdamW cannot go on from."""
    for name in sorted(saved.keys() | expected.keys()):
        if name not in saved or list(saved[name].shape) != list(expected.get(name, [-1])):
            raise UserError(
                f"{file}: {name} is not as AdamW keeps it for this adapter here (saved by the "
                "other backend, an 8-bit optimizer or for another adapter?); finish this stage "
                f"where it was begun, or delete {file.parent} to begin the stage anew"
            )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a LoRA adapter whose update is (α / r)·B·A and nothing else."""
    try:
        saved = json.loads((folder / "adapter_config.json").read_text())
    except (OSError, ValueError):
        raise UserError(
            f"{folder}: no readable adapter_config.json; expected an adapter of miniact or PEFT"
        ) from None
    if "r" not in saved or "lora_alpha" not in saved:
        raise UserError(f"{folder}: adapter_config.json has no r and lora_alpha; expected LoRA")
    for name in ("use_rslora", "use_dora", "alpha_pattern"):
        if saved.get(name):
            raise UserError(f"{folder}: uses {name}; expected plain LoRA, scaled by alpha / r")
    return saved


def check_scale(folder: Path, config: ModelConfig) -> None:
    """Refuse an adapter that was trained with another α / r."""
    saved = read_adapter_config(folder)
    if saved["lora_alpha"] / saved["r"] != config.alpha / config.rank:
        raise UserError(
            f"{folder}: was trained with alpha/rank {saved['lora_alpha']}/{saved['r']}; "
            f"set model.alpha and model.rank to these (they are {config.alpha}/{config.rank})"
        )
