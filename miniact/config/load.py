"""From a YAML file and `section.key=value` overrides to a checked `Config`, and back.

Here stand the rules between sections, and what became of keys that are gone.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from miniact import UserError
from miniact.config.plugins import check_form, is_plugin, short
from miniact.config.sections import LIMITS, STAGES, Config
from miniact.config.strict import build, suggestion


def _divides(section: dict) -> bool:
    return section.get("variant") != "dr_grpo"


# A key that is gone: the value, given its section, that says what holds now; what replaces it.
MOVED: dict[str, tuple[Callable[[dict], Any], str]] = {
    "model.weight_decay": (lambda _: 0, "AdamW decays no weights: leave it out"),
    "stage.act.scale_rewards": (_divides, "stage.act.variant: dr_grpo alone does not divide"),
    "stage.rl.scale_rewards": (_divides, "stage.rl.variant: dr_grpo alone does not divide"),
}


def load_config(
    path: str | Path | None, overrides: Sequence[str] = (), *, saved: bool = False
) -> Config:
    """Read a YAML file (None: all defaults), apply `section.key=value` overrides, check everything.

    path may also be the name of a config that ships with miniact: "household".
    saved: the file is an older run's, and may hold a key that is gone if it says what holds now.
    Raises UserError, naming file or key, on anything unknown or of the wrong type or range.
    """
    try:
        data = _override({} if path is None else _read(find_config(path)), overrides)
        _refuse_moved(data, saved)
        return _checked(data)
    except UserError as error:
        raise UserError(f"{path}: {error}" if path else str(error)) from None


def config_folders() -> list[Path]:
    """Where tiny_configs/ may lie: here, in a checkout, in a wheel."""
    package = Path(__file__).parents[1]
    return [folder / "tiny_configs" for folder in (Path("."), package.parent, package)]


def shipped() -> dict[str, str]:
    """Name → what its first line says, of every config that can be named without a folder."""
    files = {f.stem: f for folder in reversed(config_folders()) for f in folder.glob("*.yaml")}
    heads = {name: file.read_text(encoding="utf-8").splitlines() for name, file in files.items()}
    return {name: head[0].lstrip("# ") if head else "" for name, head in sorted(heads.items())}


def find_config(name: str | Path) -> Path:
    """A file, or the name of a shipped one, with or without its folder. UserError if neither is."""
    path = Path(name)
    files = [path]
    if path.parent in (Path("."), Path("tiny_configs")):
        stem = path.name.removesuffix(".yaml")  # not Path.stem: names hold dots
        files += [folder / f"{stem}.yaml" for folder in config_folders()]
    for file in files:
        if file.is_file():
            return file
    names = list(shipped())
    raise UserError(
        f"no such config file; expected a YAML file or the name of a shipped one; "
        f"{suggestion(path.name.removesuffix('.yaml'), names)}"
    )


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """The same config with some `section.key=value` changed, checked again."""
    data = _override(to_dict(config), overrides)
    _refuse_moved(data, saved=False)
    return _checked(data)


def to_dict(config: Any) -> dict:
    return dataclasses.asdict(config)


def differing(before: dict, after: dict, where: str = "") -> list[str]:
    """The keys, as section.key, in which two resolved configs differ."""
    keys = []
    for name, value in after.items():
        known = before.get(name)
        if isinstance(value, dict) and isinstance(known, dict) and name != "options":
            keys += differing(known, value, f"{where}{name}.")
        elif known != value:
            keys.append(where + name)
    return keys


def changed_keys(saved: Path, config: Config) -> list[str]:
    """The keys in which a run folder's config.yaml differs from `config`, open limits aside."""
    known = load_config(saved, saved=True)
    return differing(to_dict(known), to_dict(with_limits_of(known, config)))


def with_limits_of(known: Config, config: Config) -> Config:
    """The config with what it leaves open as a run has settled it before."""
    open_keys = [key for key in ("prompt.max_tokens", *LIMITS) if not value_of(config, key)]
    if config.prompt.form == "auto":
        open_keys += ["prompt.form", *THINKING]
    return with_overrides(config, [f"{key}={_written(value_of(known, key))}" for key in open_keys])


THINKING = (  # every key that lets the model think
    *("pairs.thinking", "eval.thinking", "eval.judge_thinking"),
    *(f"stage.{name}.thinking" for name in (*STAGES, "plugin")),
)


def _written(value: Any) -> str:
    return "auto" if value is None else str(value)


def value_of(config: Config, key: str) -> Any:
    value: Any = to_dict(config)
    for name in key.split("."):
        value = value[name]
    return value


def _read(path: str | Path) -> dict:
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}); expected a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or 2020-13-45
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from None
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise UserError(f"expected sections such as model: and env:, got {data!r:.60}")
    return data


def _override(data: dict, overrides: Sequence[str]) -> dict:
    for override in overrides:
        name, sep, text = override.partition("=")
        if not sep:
            raise UserError(f"{override!r}: expected key=value, for example stage.act.steps=50")
        *sections, last = name.split(".")
        node = data
        for section in sections:
            inner = node.get(section, {})
            if not isinstance(inner, dict):
                raise UserError(f"{name}: {section} is no section")
            node[section] = dict(inner)  # a copy: two sections may be one object, by a YAML alias
            node = node[section]
        try:
            node[last] = yaml.safe_load(text) if text else ""
        except (yaml.YAMLError, ValueError):
            node[last] = text
    return data


def _refuse_moved(data: dict, saved: bool) -> None:
    for name, (unchanged, instead) in MOVED.items():
        *sections, last = name.split(".")
        node: Any = data
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            continue
        if not saved or node.pop(last) != unchanged(node):
            raise UserError(f"{name}: no longer a key; {instead}")


def _open_limits(data: dict) -> dict:
    """Beside a trajectory file, limits that are not set are open (0); elsewhere none can be."""
    env = data.get("env")
    from_data = isinstance(env, dict) and bool(env.get("trajectories"))
    data = copy.deepcopy(data)
    for name in ("prompt.max_tokens", *LIMITS):
        *sections, last = name.split(".")
        node: Any = data
        for section in sections:
            if isinstance(node, dict) and node.get(section, {}) is not None:
                node = node.setdefault(section, {})
        if not isinstance(node, dict):
            continue  # `build` says what is wrong
        if from_data:
            node.setdefault(last, 0)
        elif node.get(last) == 0:
            del node[last]
    return data


def _checked(data: dict) -> Config:
    """Build the config and check what holds between its sections."""
    config = build(Config, _open_limits(data), "")
    for i, name in enumerate(config.recipe):
        if is_plugin(name):
            check_form(f"recipe[{i}]", name)
            if short(name) in STAGES:  # its folder and its figures would pass for that stage's
                raise UserError(f"recipe[{i}]: {name}: {short(name)} is taken; rename the function")
        elif name not in STAGES:
            raise UserError(f"recipe[{i}]: unknown stage {name!r}; {suggestion(name, STAGES)}")
    _check_pairs(config)
    _check_replies(config)
    if "reflect" in config.recipe and config.env.name == "none":
        raise UserError("stage.reflect: acts in the environment, and env.name is none; name one")
    return config


def _check_pairs(config: Config) -> None:
    """What holds between pairs and the stages that use them."""
    pairs, refresh = config.pairs, config.stage.act.refresh_pairs
    if pairs.choices > pairs.k + 1 and (refresh or not pairs.file):
        raise UserError(
            f"pairs.choices: {pairs.choices} candidates need pairs.k of at least "
            f"{pairs.choices - 1}, got {pairs.k}"
        )
    if refresh and pairs.source == "admissible":
        raise UserError(
            "stage.act.refresh_pairs: admissible alternatives do not depend on the policy; use 0, "
            "or pairs.source: policy"
        )


def _check_replies(config: Config) -> None:
    """What holds between the form of a reply and those who ask for it: reasoning, and room."""
    reflects = "reflect" in config.recipe
    if config.prompt.form == "chat" and reflects:
        raise UserError("stage.reflect: writes its action in tags; use prompt.form: tags")
    if config.prompt.form == "plain":
        if reflects:
            raise UserError("stage.reflect: plain replies hold no reasoning; use prompt.form: tags")
        asking = [config.eval, config.pairs, *vars(config.stage).values()]
        if config.eval.judge_thinking or any(section.thinking for section in asking):
            raise UserError(
                "prompt.form: plain replies hold no reasoning; use tags, or thinking: false"
            )
    answers = [config.stage.act.max_tokens, config.stage.rl.max_tokens, config.eval.max_tokens]
    answers += [config.stage.reflect.max_tokens] if reflects else []
    answers += [config.stage.plugin.max_tokens] if any(map(is_plugin, config.recipe)) else []
    longest = config.prompt.max_tokens + max(answers)  # 0: not known yet, see settle.py
    if longest > config.model.max_tokens_per_batch:
        raise UserError(
            f"model.max_tokens_per_batch: {config.model.max_tokens_per_batch} is less than one "
            f"prompt and its answer, {longest}; raise it, or lower prompt.max_tokens"
        )
