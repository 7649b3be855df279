"""Column types that read and write the same on SQLite and PostgreSQL."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import BigInteger, Dialect, Text
from sqlalchemy.types import TypeDecorator

from tidemill.kernel import canonical_json

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Moment(TypeDecorator[datetime]):
    """An aware time in UTC, kept as whole microseconds since 1970: exact, sortable, the same on every back end."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - an override
        """Write a time as microseconds."""
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - an override
        """Read microseconds as a time."""
        return None if value is None else _EPOCH + value * _MICROSECOND


class CanonicalJson(TypeDecorator[Any]):
    """A JSON value kept as canonical text, so that a digest over it comes out the same after a round trip."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:  # noqa: ARG002 - an override
        """Write canonical JSON; ``None`` is JSON's null."""
        return canonical_json(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002 - an override
        """Read JSON text."""
        return None if value is None else json.loads(value)
