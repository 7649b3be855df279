"""Project and tenant: the two names that every key, table, cache, index and file carries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tidemill.kernel.errors import InvalidInput

NAME_PATTERN: Final = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
_NAME = re.compile(NAME_PATTERN)


def check_name(text: str, what: str) -> str:
    """Return ``text`` if it may name a thing: 1 to 64 of ``a-z 0-9 . _ -``, first and last a letter or digit.

    Raises:
        InvalidInput: it may not; the message says what it was meant to name.
    """
    if not _NAME.fullmatch(text):
        raise InvalidInput(
            f"'{text}' cannot name a {what}: use 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning and ending with a letter or digit"
        )
    return text


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose things these are. Nothing is read or written outside a scope."""

    project: str
    tenant: str = "default"

    def __post_init__(self) -> None:
        check_name(self.project, "project")
        check_name(self.tenant, "tenant")
