"""Conversations of a cluster in PostgreSQL, in a schema of their own beside the ledger's tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from tidemill.kernel import MissingExtra, Unavailable
from tidemill.ledger.conversations.sql import TABLES, Statements
from tidemill.ledger.postgres_texts import PostgresTexts

if TYPE_CHECKING:
    import psycopg

_CONNECT_TIMEOUT_S: Final = 10
_SCHEMA: Final = "tidemill_conversations"
_LOCK: Final = 7_402_118_253_994_117_001  # of making the tables; any number that nothing else uses


class PostgresRows(Statements):
    """The back end.

    Args:
        url: ``postgresql://user@host/name``.

    Raises:
        MissingExtra: the driver is not installed.
        Unavailable: the server does not answer, or refuses to make the tables.
    """

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ModuleNotFoundError as error:
            raise MissingExtra("A store of conversations in PostgreSQL", "postgres") from error
        super().__init__(self._begin, lock_rows=" FOR UPDATE")
        self._driver = psycopg
        self._url = url
        self._idle: list[psycopg.Connection[Any]] = []
        self._closed = False
        self._texts = PostgresTexts()
        with self._explained(), self._connect() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
            for statement in TABLES:
                text: Any = statement.format(bytes="BYTEA", real="DOUBLE PRECISION")
                connection.execute(text)
        connection.close()

    def close(self) -> None:
        """Close the connections. The object may not be used afterwards."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _begin(self, _writing: bool) -> Iterator[Any]:
        with self._explained(), self._connection() as connection, connection.transaction():
            yield self._texts.runner(connection)

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        """An idle connection that still answers, or a new one; given back unless something went wrong on it."""
        connection = self._answering() or self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if self._closed:
            connection.close()
        else:
            self._idle.append(connection)

    def _answering(self) -> psycopg.Connection[Any] | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            try:
                connection.execute("SELECT 1")
                connection.rollback()
            except self._driver.Error:
                connection.close()  # the server went away while it was idle
                continue
            return connection

    def _connect(self) -> psycopg.Connection[Any]:
        return self._driver.connect(self._url, connect_timeout=_CONNECT_TIMEOUT_S, options=f"-c search_path={_SCHEMA}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (self._driver.OperationalError, self._driver.InterfaceError, self._driver.ProgrammingError) as error:
            parts = urlsplit(self._url)
            where = f"{parts.hostname}:{parts.port or 5432}{parts.path}"
            text = f"The store of conversations in PostgreSQL at {where} cannot be used: {str(error).strip()}."
            raise Unavailable(text, hint="Start the server, or mend the URL.") from error
