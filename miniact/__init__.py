"""miniact: Agentic Critical Training (ACT) in code that is meant to be read.

Start with act_loop.py in the root: the whole method on one page. Then `types.py` (what flows), then
`method/`: `act.py` and `rl.py` (the loops), `grpo.py` and `losses.py` (the mathematics). Only
`backends/` knows PyTorch and MLX. Each folder says in its `__init__.py` what its files are.

What `import miniact` offers is in `API`: imported when first used, so that nothing is loaded that
is not needed, PyTorch least of all. docs/api.md shows it at work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from miniact.backends.protocol import load_policy
    from miniact.config import load_config
    from miniact.envs import make_env
    from miniact.experiments.compare import compare
    from miniact.experiments.pipeline import run_recipe as run
    from miniact.method.prompts import Prompter
    from miniact.method.stage import Stage, imitate, reinforce
    from miniact.tools.agent import load_agent
    from miniact.types import (
        Completion,
        Group,
        Question,
        Reflection,
        Rollout,
        Sample,
        Scored,
        Shown,
        State,
        Step,
        Trajectory,
    )

__version__ = "0.1.0"

API = {  # name: where it lives
    "load_config": "miniact.config:load_config",
    "run": "miniact.experiments.pipeline:run_recipe",
    "compare": "miniact.experiments.compare:compare",
    "load_policy": "miniact.backends.protocol:load_policy",
    "Prompter": "miniact.method.prompts:Prompter",
    "make_env": "miniact.envs:make_env",
    "load_agent": "miniact.tools.agent:load_agent",
    "Stage": "miniact.method.stage:Stage",
    "imitate": "miniact.method.stage:imitate",
    "reinforce": "miniact.method.stage:reinforce",
    **{
        name: f"miniact.types:{name}"
        for name in (
            *("Step", "Trajectory", "State", "Question", "Shown", "Sample", "Scored", "Rollout"),
            *("Completion", "Group", "Reflection"),
        )
    },
}
__all__ = ["Interrupted", "UserError", "__version__", *API]


if not TYPE_CHECKING:  # or every misspelt name would pass

    def __getattr__(name: str) -> Any:
        """A name of the API, imported when it is first asked for."""
        if name not in API:
            raise AttributeError(f"module 'miniact' has no attribute {name!r}")
        module, _, attribute = API[name].partition(":")
        globals()[name] = value = getattr(importlib.import_module(module), attribute)
        return value


def __dir__() -> list[str]:
    return __all__


class UserError(Exception):
    """What went wrong, where, what was expected, and how to mend it: in one line. Exit code 2."""


class Interrupted(Exception):
    """Ctrl-C at a step boundary: everything is saved and the run can be resumed. Exit code 130."""
