"""What one process tells another: JSON, so nobody runs what is sent; a loss travels by its name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from miniact import UserError
from miniact.config.plugins import resolve
from miniact.types import Completion, Group, Loss


def encode(message: Any) -> bytes:
    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value.tolist()  # of numpy

    return json.dumps(message, default=plain).encode()


def to_rows(groups: Sequence[Group]) -> list[list[Any]]:
    return [
        [g.prompt, [[c.tokens, c.weight, c.advantage, c.old_logps, c.ref_logps] for c in answers]]
        for g in groups
        for answers in [g.completions]
    ]


def to_group(row: list[Any]) -> Group:
    """The inverse of `to_rows`, of one group."""

    def array(values: list[float] | None) -> np.ndarray | None:
        return None if values is None else np.asarray(values, np.float32)

    prompt, answers = row
    return Group(
        tuple(prompt),
        tuple(
            Completion(tuple(tokens), weight, advantage, array(old), array(ref))
            for tokens, weight, advantage, old, ref in answers
        ),
    )


def to_name(loss: Loss) -> list[Any]:
    """A loss as [module:name, fields]. UserError for one that has no name to find it by."""
    plain = inspect.isfunction(loss)
    kind: Any = loss if plain else type(loss)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if "." in kind.__qualname__ or not (plain or is_dataclass(loss)):
        raise UserError(
            f"loss: the other processes cannot find {name}; expected a function of a module, or a "
            "dataclass with __call__"
        )
    return [name, None if plain else asdict(loss)]  # type: ignore[call-overload]


def to_loss(name: str, fields: dict | None) -> Loss:
    loss = resolve("loss", name)
    return loss if fields is None else loss(**fields)
