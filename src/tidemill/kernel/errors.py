"""The two families of errors.

::

    Exception
    +- UserError            yours: a sentence that says what, where and how to mend; exit code 2, no traceback
    |  +- InvalidInput      a value that cannot be read as what it should be
    |  +- SettingsError     the project file or the environment
    |  +- NotFound          a reference, file, trace or endpoint that does not exist
    |  +- Conflict          somebody else moved it first (compare-and-swap lost, name taken)
    |  +- Unavailable       something outside is in the way: port taken, no space, no server, store locked
    |  +- MissingExtra      an optional dependency; the message names the extra to install
    +- Fault                ours: an invariant of Tidemill is broken; exit code 1, with traceback

Any other exception that reaches the command line is treated as a ``Fault``.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the caller can mend. The message is one or two plain sentences; ``hint`` says what to do next."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class InvalidInput(UserError):
    """A value that cannot be read as what it should be."""


class SettingsError(UserError):
    """The project file or the environment holds something Tidemill does not understand."""


class NotFound(UserError):
    """A reference, file, trace or endpoint that does not exist."""


class Conflict(UserError):
    """Another writer was first: a compare-and-swap was lost or a name is taken."""


class Unavailable(UserError):
    """Something outside Tidemill is in the way: a port taken, no space left, a server down, a store locked."""


class MissingExtra(UserError):
    """A feature needs an optional dependency.

    Args:
        feature: what was asked for, in the user's words.
        extra: the name of the extra that brings it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra '{extra}'.", hint=f"Install it: pip install 'tidemill[{extra}]'")
        self.extra = extra


class Fault(Exception):
    """An invariant of Tidemill itself is broken: a bug. Shown with its traceback; exit code 1."""

    exit_code = 1
