"""`miniact reference`: every config key and every logged metric, as one page or one by one.

Nothing is written twice: keys come from the dataclasses of config.py, metrics from metrics.py.
docs/reference.md is this module's output; a test keeps it up to date.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from miniact.config import STAGES, Config
from miniact.errors import UserError
from miniact.metrics import EVALUATION, TRAINING, Metric

WIDTH = 92  # of an entry in the terminal


@dataclass(frozen=True)
class Key:
    """One config key as the reference shows it."""

    name: str  # in full: stage.act.lr
    kind: str  # its type
    default: str
    allowed: str
    meaning: str
    owner: type  # the dataclass that declares it; the stages share some
    healthy = ""

    @property
    def about(self) -> str:
        return "; ".join(
            part for part in (self.kind, self.allowed, f"default {self.default}") if part
        )


Entry = Key | Metric


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
        low = "" if meta["low"] is None else f"≥ {meta['low']:g}"
        found.append(
            Key(
                f"{where}.{field.name}" if where else field.name,
                types[field.name].__name__,
                json.dumps(default, ensure_ascii=False),
                ", ".join(map(str, meta["choices"])) or low,
                meta["doc"],
                next(c for c in cls.__mro__ if field.name in inspect.get_annotations(c)),
            )
        )
    return found


def config_keys() -> list[Key]:
    """Every key that a config can hold."""
    return [key for where, cls in sections() for key in keys_of(where, cls)]


# ---- one entry -----------------------------------------------------------------------------


def _fits(pattern: str, text: str) -> bool:
    """Whether a text is what a pattern says, in which CAPITALS stand for any word."""
    return re.fullmatch(re.sub("[A-Z]{2,}", r"\\w+", re.escape(pattern)), text) is not None


def matches(name: str, asked: str) -> bool:
    """Whether `asked` is a part of a dotted name.

    >>> matches("stage.act.lr", "lr"), matches("stage.act.lr", "stage.act")
    (True, True)
    >>> matches("splits.SPLIT.success", "splits.id.success"), matches("stage.act.lr", "r")
    (True, False)
    """
    parts, wanted = name.split("."), asked.split(".")
    return any(
        not parts[at].isupper()  # an entry is not found by that which stands for any word
        and all(map(_fits, parts[at:], wanted))
        for at in range(len(parts) - len(wanted) + 1)
    )


def find(asked: str) -> list[Entry]:
    """The entries with this name, in this section, or with this label in a table of results.

    Raises UserError with a suggestion if there are none.
    """
    entries: list[Entry] = [*config_keys(), *TRAINING, *EVALUATION]
    labelled = [m for m in EVALUATION if m.label and _fits(m.label, asked)]
    found = [e for e in entries if matches(e.name, asked) or e in labelled]
    if not found:
        parts = dict.fromkeys(part for e in entries for part in e.name.split("."))
        known = [*parts, *(e.name for e in entries), *(m.label for m in EVALUATION if m.label)]
        near = difflib.get_close_matches(asked, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "miniact reference prints all"
        raise UserError(f"{asked}: no config key, section or metric has this name; {hint}")
    return found


def describe(entries: Sequence[Entry]) -> str:
    """Entries as text for a terminal."""
    shown = []
    for entry in entries:
        healthy = f" Healthy: {entry.healthy}." if entry.healthy else ""
        body = textwrap.wrap(f"{entry.meaning}.{healthy}", WIDTH - 4)
        shown.append("\n".join([f"{entry.name}  ({entry.about})", *(f"    {x}" for x in body)]))
    return "\n".join(shown) + "\n"


# ---- the page ------------------------------------------------------------------------------

INTRO = """\
# Reference

Every config key and every logged figure. Written from `miniact/config.py` and `miniact/metrics.py`
by `miniact reference --out docs/reference.md`: edit those. One entry, one section or one word of a
table, in the terminal: `miniact reference zero_variance`, `miniact reference stage.act`,
`miniact reference stuck`."""

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
    training = [
        (m.name, "all" if m.stages == STAGES else ", ".join(m.stages), m.unit, m.meaning, m.healthy)
        for m in TRAINING
    ]
    evaluation = [(m.name, m.label, m.unit, m.meaning) for m in EVALUATION]
    parts = [
        *(INTRO, KEYS_INTRO, *key_tables()),
        *(TRAINING_INTRO, table(("metric", "stages", "unit", "meaning", "healthy"), training)),
        *(EVALUATION_INTRO, table(("figure", "in tables", "unit", "meaning"), evaluation)),
    ]
    return "\n\n".join(parts) + "\n"
