"""Loading a Hugging Face model for MLX: precision, device, QLoRA, LoRA or all weights.

The model definitions are mlx-lm's. LoRA is our own, so that its scale, its start and its names are
PEFT's, and both backends read one adapter format. The 4-bit base of QLoRA differs between them:
here MLX's affine groups (w ≈ scale·q + bias, for every 64 weights), there bitsandbytes' NF4.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.models.switch_layers import SwitchGLU, SwitchLinear, SwitchMLP
from mlx_lm.utils import load_model
from safetensors import safe_open

from miniact import UserError
from miniact.backends.mlx.head import check_head, output_layer
from miniact.backends.models import rope_at_top
from miniact.backends.targets import lora_layers, note_experts
from miniact.config.sections import ModelConfig


def pick_device(name: str) -> None:
    """Set MLX's default device: auto is the GPU of a Mac, and the CPU elsewhere."""
    devices: dict[str, Any] = {"auto": mx.default_device(), "cpu": mx.cpu}
    if mx.is_available(mx.gpu):
        devices |= {"gpu": mx.gpu, "mps": mx.gpu}
    if name not in devices:
        raise UserError(
            f"model.device: {name!r} is not usable here with MLX; one of {', '.join(devices)}"
        )
    mx.set_default_device(devices[name])


def pick_dtype(name: str) -> mx.Dtype:
    if name == "auto":
        name = "bfloat16" if mx.default_device() == mx.Device(mx.gpu) else "float32"
    return getattr(mx, name)


def read_config(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """The model's config.json; UserError on what MLX cannot load, before mlx-lm tries."""
    settings = json.loads((folder / "config.json").read_text())
    method = (settings.get("quantization_config") or {}).get("quant_method", "")
    if "bitsandbytes" in method or "bnb" in method:
        raise UserError(
            f"model.path: {config.path!r} is quantised by bitsandbytes, which MLX cannot read; "
            "take the unquantised model with model.adapter: qlora, or model.backend: torch"
        )
    if "model_file" in settings:  # code from a hub is never run
        raise UserError(f"model.path: {config.path!r} wants to run its own code; not supported")
    return settings


def load_base(folder: Path, config: ModelConfig) -> Any:
    """The base model in the configured precision; 4-bit for adapter: qlora."""
    settings = read_config(folder, config)
    try:
        model = _build(folder, config, settings)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # each architecture of mlx-lm fails in its own way
        reason = " ".join(str(error).split())
        raise UserError(
            f"model.path: mlx-lm cannot load {config.path!r} (model type "
            f"{settings.get('model_type')!r}): {reason:.200}; model.backend: torch may know it"
        ) from None
    _note_window(model, settings)
    return model


def _build(folder: Path, config: ModelConfig, settings: dict[str, Any]) -> Any:
    model, loaded = load_model(folder, lazy=True, model_config=rope_at_top(settings))
    model.set_dtype(pick_dtype(config.precision))
    is_quantised = "quantization" in loaded
    if config.adapter == "full" and is_quantised:
        raise UserError(f"model.adapter: full cannot train {config.path!r}, which is quantised")
    if config.adapter == "qlora" and not is_quantised:
        head = output_layer(model)
        nn.quantize(model, class_predicate=lambda p, m: m is not head and _four_bits(p, m))
    mx.eval(model.parameters())  # read and quantised weight by weight, never all in full precision
    check_head(model)
    return model


def _note_window(model: Any, settings: dict[str, Any]) -> None:
    """mlx-lm gives Mistral and Phi-3 full attention, whatever window their config.json names."""
    window = settings.get("sliding_window") if settings.get("use_sliding_window", True) else None
    kinds = set(settings.get("layer_types") or ["sliding_attention"])
    is_ignored = all(type(c) is KVCache for c in make_prompt_cache(model))
    if window and "sliding_attention" in kinds and is_ignored:
        print(
            f"note: mlx-lm ignores this model's attention window of {window} tokens; longer "
            "sequences come out differently than with PyTorch",
            file=sys.stderr,
        )


def _four_bits(path: str, module: nn.Module) -> dict[str, Any] | bool:
    """How to quantise a layer. One whose width no group size divides keeps its precision.

    So does a router: a rounding there is another expert.
    """
    is_router = path.endswith((".gate", ".router")) or ".router." in path
    if isinstance(module, (nn.Linear, SwitchLinear)) and not is_router:
        for size in (64, 32):
            if module.weight.shape[-1] % size == 0:
                return {"group_size": size, "bits": 4, "mode": "affine"}
    return False


class LoRALinear(nn.Module):
    """y = W x + (α / r) · B A x, with A [r, in] and B [out, r] in float32, named as PEFT does.

    A ~ U(−1/√in, 1/√in), which is PEFT's kaiming_uniform(a = √5); B = 0.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, key: mx.array) -> None:
        super().__init__()
        outputs, inputs = base.weight.shape  # type: ignore[misc]
        if isinstance(base, nn.QuantizedLinear):
            inputs = inputs * 32 // base.bits  # the weight is packed into 32-bit words
        bound = inputs**-0.5
        self.base, self.scale = base, scale
        self.lora_A = mx.random.uniform(-bound, bound, (rank, inputs), key=key)
        self.lora_B = mx.zeros((outputs, rank))

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        update = (x.astype(mx.float32) @ self.lora_A.T) @ self.lora_B.T
        return y + (self.scale * update).astype(y.dtype)


def attach(model: Any, folder: Path, config: ModelConfig, seed: int) -> Any:
    """Add the trainable part. The seed fixes LoRA's A; B is zero."""
    if config.gradient_checkpointing:
        for layer in model.layers:
            layer.__class__ = _checkpointed(type(layer))
    if config.adapter == "full":
        _check_names(folder, config, list(dict(tree_flatten(model.parameters()))))
        return model
    model.freeze()
    modules = dict(model.named_modules())
    chosen = sorted(_targets(model, modules))
    _check_names(folder, config, [f"{path}.weight" for path in chosen])
    keys = mx.random.split(mx.random.key(seed), len(chosen))
    for path, key in zip(chosen, keys):
        lora = LoRALinear(modules[path], config.rank, config.alpha / config.rank, key)
        model.update_modules(tree_unflatten([(path, lora)]))
    return model


def _targets(model: Any, modules: dict[str, nn.Module]) -> set[str]:
    """Paths of the layers that get LoRA."""
    head, linear = output_layer(model), (nn.Linear, nn.QuantizedLinear)
    experts = [path for path, m in modules.items() if isinstance(m, (SwitchGLU, SwitchMLP))]
    chosen = lora_layers(
        [path for path, m in modules.items() if isinstance(m, linear) and m is not head],
        experts,
        [path for path, m in modules.items() if "A_log" in m and "D" in m],
        model.model_type,
    )
    if experts:
        arrays = [dict(tree_flatten(modules[path].parameters())).values() for path in experts]
        note_experts(model.model_type, sum(a.nbytes for each in arrays for a in each))
    return chosen


def _check_names(folder: Path, config: ModelConfig, names: list[str]) -> None:
    """PEFT names its weights as the model folder does, so mlx-lm must name its layers so too."""
    stored: set[str] = set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, "np") as weights:
            stored |= set(weights.keys())
    strange = [name for name in names if name not in stored]
    if strange or not names:
        example = strange[0] if strange else "no linear layers"
        raise UserError(
            f"model.path: mlx-lm names the weights of {config.path!r} in its own way "
            f"({example}), so what MLX trains would not load elsewhere; use model.backend: torch"
        )


def _checkpointed(kind: type) -> type:
    """A layer class whose activations are recomputed in the backward pass.

    In training no cache keeps anything, or the recomputation would append it twice.
    """

    def call(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        if not self.training:
            return kind.__call__(self, x, mask, cache)

        def layer(weights: dict, x: mx.array) -> mx.array:
            self.update(weights)
            return kind.__call__(self, x, mask, cache)

        return mx.checkpoint(layer)(self.trainable_parameters(), x)

    return type(kind.__name__, (kind,), {"__call__": call})


def write_model_files(source: Path, folder: Path, dtype: str) -> None:
    """What makes a folder of weights in this precision a Hugging Face model like `source`."""
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config |= {"dtype": dtype, **rope_at_top(config)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = source / "generation_config.json"
    if generation.is_file():
        (folder / generation.name).write_text(generation.read_text())
