"""miniact: Agentic Critical Training (ACT) in code that is meant to be read.

Start with `types.py` (what flows), then `method/act.py` (the idea), then `method/grpo.py` and
`method/losses.py` (the mathematics), then `backends/torch/` (the only place where PyTorch appears).
"""

__version__ = "0.1.0"


class UserError(Exception):
    """What went wrong, where, what was expected, and how to mend it: in one line. Exit code 2."""


class Interrupted(Exception):
    """Ctrl-C at a step boundary: everything is saved and the run can be resumed. Exit code 130."""
