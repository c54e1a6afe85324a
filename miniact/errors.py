"""Errors that a user can cause. The command line shows them as one line, without a traceback."""


class UserError(Exception):
    """What went wrong, where, what was expected, and how to mend it: in one line. Exit code 2."""


class Interrupted(Exception):
    """Ctrl-C at a step boundary: everything is saved and the run can be resumed. Exit code 130."""
