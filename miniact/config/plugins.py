"""Code of one's own, named in a config as `module:name` and imported when it is needed.

    env.name: my_module:MyEnv     recipe: [il, my_module:my_stage]     stage.rl.reward: my_module:f

Only a config that is run names such code: no data file, no model, no run folder that is only read.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
import traceback
from typing import Any

from miniact import UserError

FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_plugin(name: str) -> bool:
    return ":" in name


def short(name: str) -> str:
    """What a folder or a label is called after it: module:name → name.

    >>> short("my_module:my_stage"), short("act")
    ('my_stage', 'act')
    """
    return name.rpartition(":")[2]


def check_form(where: str, name: str) -> None:
    """UserError unless the name is of the form module:name, both of them plain identifiers."""
    if not FORM.fullmatch(name):
        raise UserError(f"{where}: {name!r}; expected module:name, for example my_module:my_name")


def section_of(stage: str) -> str:
    """The section of `stage` that holds a stage's keys: its own, or `plugin`."""
    return "plugin" if is_plugin(stage) else stage


def named(config: Any) -> list[tuple[str, str]]:
    """(key, module:name) of all that a run of this config would import."""
    places = [("env.name", config.env.name), *(("log.to", name) for name in config.log.to)]
    for i, stage in enumerate(config.recipe):
        section = section_of(stage)
        reward = getattr(getattr(config.stage, section), "reward", "")
        places += [(f"recipe[{i}]", stage), (f"stage.{section}.reward", reward)]
    return [(where, name) for where, name in dict.fromkeys(places) if is_plugin(name)]


@functools.cache
def resolve(where: str, name: str) -> Any:
    """Import `module` and return what it calls `name`, something that can be called.

    The current folder is looked at last, so that a file in it hides no installed module. Raises
    UserError, naming `where`, if the import fails or nothing callable has that name.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # `python -m` puts it there, the command `miniact` does not
        sys.path.append(os.getcwd())
    try:
        target = getattr(importlib.import_module(module), attribute, None)
    except (Exception, SystemExit) as error:
        raise UserError(f"{where}: {module} cannot be imported: {_reason(error, module)}") from None
    if target is None:
        file = getattr(sys.modules[module], "__file__", None) or module
        raise UserError(f"{where}: {file} has no {attribute!r}; expected what {name} names")
    if not callable(target):
        raise UserError(f"{where}: {name} is {target!r:.60}; expected a class or a function")
    return target


def _reason(error: BaseException, module: str) -> str:
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return f"{error}; run miniact in the folder that holds it, or put that on PYTHONPATH"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    return " ".join(f"{type(error).__name__}: {error}{where}".split())
