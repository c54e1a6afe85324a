"""Environments: the protocol that they keep, and the registry that builds them by name.

To add one, write a class with the methods of `Env` in a file of its own and name it in the config
as module:Class; to ship it, add a line to `_REGISTRY`. `tests/envs/test_env_contract.py` then
checks determinism, the expert, the splits, illegal actions and closing.

household.py      the built-in world: ALFWorld's tasks and commands at toy size
household_facts.py  what can be known there, in sentences: what a thought is checked against
scienceworld.py   the ScienceWorld simulator, all 30 tasks
alfworld/         ALFWorld: the environment, its engine, the expert, generated games
webshop/          WebShop: pages, goals, search, the expert, an invented catalogue
workers.py        an environment in a process of its own
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from miniact import UserError
from miniact.config.plugins import is_plugin, resolve
from miniact.config.strict import suggestion

OVER = "No episode is running."


@dataclass(frozen=True, slots=True)
class Turn:
    """What the environment answers to `reset` or to one action."""

    observation: str
    done: bool = False
    success: bool = False  # the task is solved; only ever True together with done
    score: float = 0.0  # 0..1
    applied: bool = True  # False: the action did not apply and changed nothing
    lost: bool = False  # the simulator died or hung: the episode is over and counts as failed


class Env(Protocol):
    """A text world that plays one episode at a time. Everything is determined by the task id.

    Where its calls wait for another process, it may say so by an attribute `waits = True`: then
    several environments are called at once, each from a thread of its own.
    """

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its splits, "train" first."""
        ...

    def tasks(self, split: str, n: int, seed: int) -> list[str]:
        """n distinct task ids of a split (fewer if it has fewer). Splits never share an id."""
        ...

    def reset(self, task_id: str) -> tuple[str, Turn]:
        """Start an episode. Returns the task description and the first observation."""
        ...

    def step(self, action: str) -> Turn:
        """Act. What does not apply, or is no action at all, is data and never an error."""
        ...

    def admissible(self) -> tuple[str, ...] | None:
        """The actions that apply now, sorted; None where the environment cannot list them."""
        ...

    def expert_action(self) -> str | None:
        """The expert's action in the present state; None where the expert does not know one."""
        ...

    def close(self) -> None:
        """Free everything (processes, files). Safe to call twice."""
        ...


_REGISTRY = {
    "household": "miniact.envs.household:Household",
    "scienceworld": "miniact.envs.scienceworld:ScienceWorld",
    "alfworld": "miniact.envs.alfworld.env:ALFWorld",
    "webshop": "miniact.envs.webshop.env:WebShop",
}


def make_env(name: str, **options: Any) -> Env:
    """Build an environment by name. Its module is imported only now: extras stay optional."""
    return build_env(name, find_env(name), options)


def find_env(name: str) -> str:
    """Where an environment is: "module:Class". One of the user's own is imported and checked."""
    if is_plugin(name):
        target = resolve("env.name", name)
        if isinstance(target, type):
            _check_protocol(name, target)
        return name
    if name not in _REGISTRY:
        raise UserError(
            f"env.name: unknown environment {name!r}; {suggestion(name, sorted(_REGISTRY))} "
            "(one of your own goes by module:Class)"
        )
    return _REGISTRY[name]


def check_env(name: str, options: dict[str, Any], splits: Iterable[str]) -> None:
    """UserError for a wrong name, option or split, as far as it shows before anything is built."""
    module, _, attribute = find_env(name).partition(":")
    target = getattr(importlib.import_module(module), attribute)
    try:
        inspect.signature(target).bind(**options)
    except TypeError as error:
        raise UserError(f"env.options: {name} does not take {options}: {error}") from None
    known = getattr(target, "splits", None)
    if isinstance(known, tuple):  # else it is known only when the environment is built
        check_names("eval.splits: unknown split", known, *splits)


def _check_protocol(name: str, env: Any) -> None:
    lacks = [part for part in vars(Env) if not part.startswith("_") and not hasattr(env, part)]
    if isinstance(env, type):  # its __init__ may set them
        lacks = [part for part in lacks if part != "splits"]
    if lacks:
        raise UserError(f"env.name: {name} lacks {', '.join(lacks)}; see miniact.envs.Env")


def build_env(name: str, target: str, options: dict[str, Any]) -> Env:
    """Import "module:Class" and build it; the name is for messages."""
    module, cls = target.split(":")
    try:
        env = getattr(importlib.import_module(module), cls)(**options)
    except TypeError as error:
        raise UserError(f"env.options: {name} does not take {options}: {error}") from None
    _check_protocol(name, env)
    return env


def check_extra(name: str, *modules: str) -> None:
    """Raises UserError where a module of an optional extra cannot be imported."""
    try:
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'{name} is an extra: run `pip install "miniact[{name}]"` ({error})'
        ) from None


def check_names(problem: str, known: Iterable[str], *names: str) -> None:
    """Raises UserError, which begins with `problem`, on a name that is not among the known."""
    for name in names:
        if name not in known:
            raise UserError(f"{problem} {name!r}, one of {', '.join(known)}")
