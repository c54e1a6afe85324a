"""A trained adapter for use elsewhere: merged into its model, or in mlx-lm's own format.

Files in, files out, with numpy alone: no model is loaded, so it needs neither torch nor MLX, nor
much memory. A safetensors file is 8 bytes of header length, a JSON header that gives the dtype, the
shape and the place of every tensor, then the numbers. Merging copies it and adds (α / r)·B·A in
place, in the dtype that is there.

An adapter of QLoRA was trained on a 4-bit base; merged into the full-precision weights, the result
differs a little from what was trained (by the error of the 4-bit base). That is the usual practice.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from miniact import UserError
from miniact.backends.common import model_folder, read_adapter_config, weight_file
from miniact.backends.models import rope_at_top
from miniact.runs.files import whole_folder, write_json

ALONGSIDE = ("*.json", "*.jinja", "*.txt", "tokenizer.model")  # what a model folder holds besides
MLX_LLAMA = {"rope_theta": 10000.0}  # what mlx-lm's Llama takes where config.json says nothing
KEPT = "miniact.yaml"  # in an exported model: the config of the run that it comes from
LORA = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")


def export(adapter: Path, to: str, out: Path, model: str = "") -> Path:
    """Write `adapter` to the new folder `out`; returns the folder of its base model.

    model: the base, if not the one that the adapter names

    mlx:    for mlx_lm.load(model, adapter_path=out)
    merged: a Hugging Face model that transformers and mlx-lm load

    Raises UserError when something is missing or does not fit.
    """
    if (adapter / "model.safetensors").is_file():
        raise UserError(f"{adapter}: is a whole model already; transformers and mlx-lm load it")
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out")
    file = weight_file(adapter, "lora")
    config = read_adapter_config(adapter)
    base = model_folder(model or config.get("base_model_name_or_path") or "")
    writers = {"mlx": _write_mlx, "merged": _write_merged}
    if to not in writers:
        raise UserError(f"--to {to}: expected one of {', '.join(writers)}")
    pairs = _lora_pairs(file)
    run = next((p for p in adapter.absolute().parents if (p / "config.yaml").is_file()), None)
    with whole_folder(out) as part:
        writers[to](part, pairs, config, base)
        if run:  # so that `miniact ask` knows how its prompts are written
            shutil.copyfile(run / "config.yaml", part / KEPT)
    return base


def _lora_pairs(file: Path) -> dict[str, dict[str, np.ndarray]]:
    """{"model.layers.0.self_attn.q_proj": {"A": [r, in], "B": [out, r]}, …} in float32."""
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in Safetensors(file).tensors().items():
        match = LORA.fullmatch(name)
        if match is None:
            raise UserError(f"{file}: has {name}; expected lora_A and lora_B of linear layers only")
        pairs.setdefault(match[1], {})[match[2]] = tensor
    odd = [layer for layer, pair in pairs.items() if len(pair) != 2]
    if odd or not pairs:
        raise UserError(f"{file}: {odd[0] if odd else 'it'} lacks lora_A or lora_B")
    return pairs


def _write_mlx(out: Path, pairs: dict, config: dict[str, Any], base: Path) -> None:
    """adapters.safetensors and adapter_config.json, where A and B are stored transposed."""
    from safetensors.numpy import save_file

    weights = {}
    for layer, pair in pairs.items():
        weights[f"{layer}.lora_a"] = np.ascontiguousarray(pair["A"].T)
        weights[f"{layer}.lora_b"] = np.ascontiguousarray(pair["B"].T)
    save_file(weights, out / "adapters.safetensors")
    model = json.loads((base / "config.json").read_text())
    settings = {
        "fine_tune_type": "lora",
        "num_layers": model["num_hidden_layers"],
        "lora_parameters": {
            "rank": config["r"],
            "scale": config["lora_alpha"] / config["r"],
            "dropout": 0.0,
            "keys": sorted({re.sub(r".*\blayers\.\d+\.", "", layer) for layer in pairs}),
        },
    }
    write_json(out / "adapter_config.json", settings)
    if rope_at_top(model) not in ({}, MLX_LLAMA if model.get("model_type") == "llama" else {}):
        print(
            f"note: mlx-lm needs rope_theta at the top of {base / 'config.json'}; add it there, or "
            "export --to merged, which does",
            file=sys.stderr,
        )


def _write_merged(out: Path, pairs: dict, config: dict[str, Any], base: Path) -> None:
    """The base's files with W + (α / r)·B·A in place of W."""
    scale = config["lora_alpha"] / config["r"]
    model = json.loads((base / "config.json").read_text())
    if "quantization_config" in model or "quantization" in model:
        raise UserError(f"{base}: is quantised; merge into the unquantised model (--model)")
    for pattern in ALONGSIDE:
        for file in base.glob(pattern):
            shutil.copyfile(file, out / file.name)
    write_json(out / "config.json", model | rope_at_top(model))
    left = set(pairs)
    for file in sorted(base.glob("model*.safetensors")):
        shutil.copyfile(file, out / file.name)
        weights = Safetensors(out / file.name, "r+")
        for layer in [n for n in pairs if f"{n}.weight" in weights.header]:
            pair = pairs[layer]
            weights.add(f"{layer}.weight", scale * (pair["B"] @ pair["A"]))
            left.remove(layer)
    if left:
        raise UserError(f"{base}: has no {min(left)}.weight; adapter of another model?")


class Safetensors:
    """A safetensors file whose numbers can be read as float32 and added to in place."""

    DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}  # noqa: RUF012

    def __init__(self, file: Path, mode: Any = "r") -> None:
        self.file = file
        try:
            self.bytes = np.memmap(file, np.uint8, mode)
            self.start = 8 + int(self.bytes[:8].view(np.uint64)[0])
            self.header = json.loads(self.bytes[8 : self.start].tobytes())
        except (OSError, ValueError, IndexError) as error:
            raise UserError(f"{file}: no safetensors file: {error!s:.100}") from None
        self.header.pop("__metadata__", None)

    def tensors(self) -> dict[str, np.ndarray]:
        return {name: self._read(name) for name in self.header}

    def add(self, name: str, change: np.ndarray) -> None:
        """tensor += change, computed in float32 and rounded to the tensor's own dtype."""
        if tuple(self.header[name]["shape"]) != change.shape:
            raise UserError(
                f"{self.file}: {name} has shape {tuple(self.header[name]['shape'])}, the adapter "
                f"expects {change.shape}; adapter of another model?"
            )
        new = self._read(name) + change
        raw = self._raw(name)
        raw[:] = _to_bf16(new) if raw.dtype == np.uint16 else new.astype(raw.dtype)
        self.bytes.flush()

    def _raw(self, name: str) -> np.ndarray:
        """A view of the stored numbers; BF16 shows as its 16 bits."""
        info = self.header[name]
        if info["dtype"] not in self.DTYPES:
            raise UserError(f"{self.file}: {name} is {info['dtype']}; expected F32, F16 or BF16")
        first, end = info["data_offsets"]
        place = self.bytes[self.start + first : self.start + end]
        return place.view(self.DTYPES[info["dtype"]]).reshape(info["shape"])

    def _read(self, name: str) -> np.ndarray:
        raw = self._raw(name)
        if raw.dtype == np.uint16:
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)


def _to_bf16(x: np.ndarray) -> np.ndarray:
    """The upper 16 bits of float32, rounded to nearest, ties to even.

    >>> [hex(b) for b in _to_bf16(np.array([1.0, 1.00390625, 1.01171875], np.float32))]
    ['0x3f80', '0x3f80', '0x3f82']
    """
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
