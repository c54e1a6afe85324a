"""docs/reference.md: every config key and every logged metric. python dev/make_reference.py

Nothing is written twice: keys come from the dataclasses of config/sections.py, metrics from
metrics.txt. A test keeps the page up to date.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from miniact.config import Config
from miniact.experiments.metrics import EVALUATION, TRAINING

BOUNDS = {"low": "≥", "high": "≤", "below": "<"}


@dataclass(frozen=True)
class Key:
    """One config key as the reference shows it."""

    name: str  # in full: stage.act.lr
    kind: str  # its type
    default: str
    allowed: str
    meaning: str
    owner: type  # the dataclass that declares it; the stages share some


def sections(cls: type = Config, where: str = "") -> Iterator[tuple[str, type]]:
    """(name, dataclass) of every section, Config itself first."""
    yield where, cls
    for name, inner in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(inner):
            yield from sections(typing.cast(type, inner), f"{where}.{name}" if where else name)


def keys_of(where: str, cls: type) -> list[Key]:
    """The keys of one section, inherited ones included."""
    types, found = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        meta = field.metadata
        if not meta:  # a section of its own
            continue
        default = field.default
        if callable(field.default_factory):
            default = field.default_factory()
        switch = types[field.name] == bool | None
        bounds = [f"{BOUNDS[name]} {meta[name]:g}" for name in BOUNDS if name in meta]
        found.append(
            Key(
                f"{where}.{field.name}" if where else field.name,
                "bool" if switch else types[field.name].__name__,
                json.dumps(default, ensure_ascii=False),
                ", ".join(map(str, meta["choices"])) or ", ".join(bounds),
                meta["doc"],
                next(c for c in cls.__mro__ if field.name in inspect.get_annotations(c)),
            )
        )
    return found


def config_keys() -> list[Key]:
    """Every key that a config can hold."""
    return [key for where, cls in sections() for key in keys_of(where, cls)]


INTRO = """\
# Reference

Every config key and every logged figure. Written from `miniact/config/sections.py` and
`miniact/experiments/metrics.txt` by `python dev/make_reference.py`: edit those."""

KEYS_INTRO = """\
## Config keys

In a YAML file the dots are sections; on the command line `key=value` sets any key, in full:
`miniact run household stage.act.lr=1e-4`. Defaults are miniact's own, not the paper's."""

TRAINING_INTRO = """\
## Training metrics

One line of `metrics.jsonl` per step, and the same as TensorBoard events. What is said of a batch
is measured before the step's update."""

EVALUATION_INTRO = """\
## Evaluation figures

In `stages/<k>-<name>/eval.json`, and of all stages in `results.json`. A rate is
`{value, n, low, high}`: the share, of how many, and its 95 % Wilson interval; `value` is null where
n is 0. All of it is measured on held-out tasks, states and pairs. SPLIT and POSITION stand for
names."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column is code; in the others nothing is markup but `code`."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for first, *others in rows:
        cells = [f"`{first}`", *(re.sub(r"([<|*[])", r"\\\1", cell) for cell in others)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def key_tables() -> Iterator[str]:
    """One table per dataclass that declares keys; those of several stages stand there once."""
    header = ("key", "type", "default", "allowed", "meaning")
    groups: dict[type, dict[str, list[Key]]] = {}
    for where, cls in sections():
        for key in keys_of(where, cls):
            groups.setdefault(key.owner, {}).setdefault(where, []).append(key)
    for owner, by_section in groups.items():
        keys = next(iter(by_section.values()))
        title = " · ".join(f"`{where}`" for where in by_section if where) or "Top level"
        doc = owner.__doc__ or ""
        about = "" if doc.startswith(f"{owner.__name__}(") else f"{doc.splitlines()[0]}\n\n"
        short = len(by_section) > 1
        rows = [
            (
                k.name.rpartition(".")[2] if short else k.name,
                k.kind,
                k.default,
                k.allowed,
                k.meaning,
            )
            for k in keys
        ]
        yield f"### {title}\n\n{about}{table(header, rows)}"


def page() -> str:
    """The whole reference as Markdown."""
    training = [(m.name, ", ".join(m.stages), m.unit, m.meaning, m.healthy) for m in TRAINING]
    evaluation = [(m.name, m.label, m.unit, m.meaning) for m in EVALUATION]
    parts = [
        *(INTRO, KEYS_INTRO, *key_tables()),
        *(TRAINING_INTRO, table(("metric", "stages", "unit", "meaning", "healthy"), training)),
        *(EVALUATION_INTRO, table(("figure", "in tables", "unit", "meaning"), evaluation)),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    file = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
    file.write_text(page(), encoding="utf-8")
