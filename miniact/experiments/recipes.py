"""What a comparison compares: recipes by name, seeds, and the rows of the paper's tables.

    --recipes "il; act,il,rl; long: il stage.il.steps=870"

Recipes stand between semicolons: stages in order, `base` for none (the untrained model). Overrides
make another row of the same stages, and then it needs a name of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from miniact import UserError
from miniact.config import Config
from miniact.config.plugins import is_plugin, short
from miniact.config.sections import STAGES

BASE = "base"
SAFE_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Recipe:
    """One row of a comparison. `name` is also the name of its folder."""

    name: str
    stages: tuple[str, ...]
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For people: il → act → rl, unless the recipe has a name of its own."""
        stages = [short(stage) for stage in self.stages or (BASE,)]
        return " → ".join(stages) if self.name == "-".join(stages) else self.name

    @property
    def settings(self) -> list[str]:
        """As key=value overrides of the config."""
        return [f"recipe={','.join(self.stages) or '[]'}", *self.overrides]


def parse_recipe(text: str) -> Recipe:
    """`[NAME:] stage,stage,… [key=value …]`, where a stage may be module:function.

    >>> parse_recipe("long: il,rl stage.il.steps=870").label
    'long'
    >>> parse_recipe("act,il").label
    'act → il'
    >>> parse_recipe("il,my_module:my_stage").label
    'il → my_stage'
    """
    head, colon, rest = text.partition(":")
    first = re.split(r"[,\s]", rest)[0]  # no stage of ours: then the colon is a plug-in's
    is_name = colon and "=" not in head and (first in ("", BASE, *STAGES) or is_plugin(first))
    name, rest = (head.strip(), rest) if is_name else ("", text)
    stages, *overrides = rest.split() or [""]
    if "=" in stages or any("=" not in part for part in overrides):
        raise UserError(
            f"--recipes: {text.strip()!r}; expected stages with commas between, then key=value, as "
            'in "il; act,il,rl; long: il stage.il.steps=870"'
        )
    names = tuple(s for s in stages.split(",") if s and s != BASE)
    if overrides and not name:
        raise UserError(
            f"--recipes: {text.strip()!r} has overrides, so it needs a name: NAME: {text.strip()}"
        )
    name = name or "-".join(map(short, names)) or BASE
    if not SAFE_NAME.fullmatch(name):
        raise UserError(f"--recipes: {name!r} is no folder name; use letters, digits, - _ + .")
    return Recipe(name, names, tuple(overrides))


def parse_recipes(text: str, config: Config) -> list[Recipe]:
    """All recipes of a comparison; the word `default` stands for `default_recipes`."""
    recipes: list[Recipe] = []
    for part in text.split(";"):
        if part.strip() == "default":
            recipes += default_recipes(config)
        elif part.strip():
            recipes.append(parse_recipe(part))
    names = [recipe.name.lower() for recipe in recipes]  # some disks know no capitals
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--recipes: {twice!r} stands there twice; give one of them another name")
    if not recipes:
        raise UserError('--recipes: none given; expected for example "il; act,il,rl"')
    return recipes


def default_recipes(config: Config) -> list[Recipe]:
    """The rows of the paper's tables, as far as this config can run them, what matters most first.

    The controls that train as often (il → il, il → rl → rl) are among them. What needs reasoning
    (Early Experience, ACT without it, the prompt with and without) is there where replies have any.
    """
    rows = ["base", "il", "il,rl", "il,act,rl", "act,il,rl", "il,il", "il,rl,rl"]
    rows += ["act", "act,il", "rl", "act,rl", "choice_sft,il,rl", "dpo,il,rl"]
    if config.prompt.form == "tags":
        longest = max(config.eval.max_tokens, config.stage.act.max_tokens)
        if config.eval.thinking:
            rows.append(f"base-no-thinking: base eval.thinking=false eval.max_tokens={longest}")
        else:
            rows.append(f"base-thinking: base eval.thinking=true eval.max_tokens={longest}")
        if config.env.name != "none":
            rows.append("reflect")
        if config.stage.act.thinking:
            rows.append("act-no-reasoning-il-rl: act,il,rl stage.act.thinking=false")
    return [parse_recipe(row) for row in rows]


def parse_seeds(text: str) -> list[int]:
    """Seeds as ranges and single numbers.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first >= 1000:
            raise UserError(f"--seeds: {text!r}; expected numbers and ranges, as in 0-4 or 0,2,7")
        seeds += [n for n in range(first, last + 1) if n not in seeds]
    return seeds
