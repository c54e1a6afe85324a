"""Which layers LoRA sits beside: every linear one but the head, with three exceptions.

Of a mixture of experts only what is not mixed: the experts (arrays, not layers), their router and
what stands beside them stay frozen, so both backends train the same, and every tool that knows LoRA
reads the adapter. Of Mamba only in_proj, for it reads the weights of its other layers itself, past
what sits beside them. Nothing that chooses which keys are seen: a choice has no gradient.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from miniact import UserError

# In a model with experts PEFT takes these names for those of experts, wherever they stand.
NAMES_OF_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def lora_layers(
    linear: Iterable[str], experts: Sequence[str], mambas: Sequence[str], family: str
) -> set[str]:
    """Those of the paths `linear` that get LoRA. UserError if there is none.

    experts, mambas: paths of the modules that hold experts, and of Mamba's mixers.
    """
    mixtures = tuple(f"{path}." for path in _mixtures(experts))
    chosen = {path for path in linear if ".indexer." not in path and not path.startswith(mixtures)}
    if experts:
        chosen = {path for path in chosen if leaf(path) not in NAMES_OF_EXPERTS}
    closed = tuple(f"{path}." for path in mambas)
    chosen = {path for path in chosen if leaf(path) == "in_proj" or not path.startswith(closed)}
    if not chosen:
        raise UserError(
            f"model.path: {family} has no linear layer to put LoRA beside; set model.adapter: full"
        )
    return chosen


def note_experts(family: str, size: int) -> None:
    """Say what is not trained of a mixture of experts, and how many bytes its experts take."""
    print(
        f"note: the experts of {family} ({size / 1e9:.3g} GB) stay frozen; LoRA sits beside the "
        "other layers",
        file=sys.stderr,
    )


def leaf(path: str) -> str:
    """The last part of a module's path."""
    return path.rpartition(".")[2]


def _mixtures(experts: Sequence[str]) -> Iterable[str]:
    """The blocks that hold experts, their router with them."""
    for path in experts:
        block = path.rpartition(".")[0]
        if leaf(block).isdigit():  # Gemma 4: they are parts of the whole layer
            yield from (path, f"{block}.router")
        else:
            yield block
