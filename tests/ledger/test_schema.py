"""The version of a store's tables: made, moved up and down, copied before, refused."""

from __future__ import annotations

import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from tidemill.kernel import InvalidInput, Scope, SystemClock, Unavailable, Verdict
from tidemill.ledger import downgrade, open_ledger, schema, upgrade
from tidemill.ledger.__main__ import main
from tidemill.ledger.database import Database
from tidemill.ledger.tables import SCHEMA_VERSION, metadata

SCOPE = Scope("demo")
NewUrl = Callable[[], str]


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    make: NewUrl = request.getfixturevalue("new_postgres_database")
    return make()


def tables_of(url: str) -> set[str]:
    database = Database(url, SCOPE, SystemClock())
    with database.read() as connection:
        found = set(inspect(connection).get_table_names())
    database.close()
    return found


def test_the_newest_migration_is_the_version_of_the_tables() -> None:
    scripts = ScriptDirectory.from_config(schema.alembic_config())
    assert scripts.get_current_head() == SCHEMA_VERSION


def test_migrations_go_up_and_down_and_up(empty_url: str) -> None:
    for _ in range(2):
        assert upgrade(empty_url) == SCHEMA_VERSION
        assert tables_of(empty_url) == {*metadata.tables, "alembic_version"}
        with open_ledger(empty_url, blobs="memory://", scope=SCOPE) as ledger:
            ledger.decisions.record("gate", "s", Verdict(True, "r"), actor="a")
            assert ledger.audit.verify().entries == 1
        assert downgrade(empty_url, "base") is None
        assert tables_of(empty_url) == {"alembic_version"}


def test_migrations_make_the_tables_that_the_code_has(empty_url: str) -> None:
    upgrade(empty_url)
    database = Database(empty_url, SCOPE, SystemClock())
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    database.close()


def test_migrations_and_a_new_store_are_the_same_to_the_letter(tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path}/moved.db")
    open_ledger(f"sqlite:///{tmp_path}/new.db", blobs="memory://", scope=SCOPE).close()

    def described(name: str) -> set[tuple[str, str]]:
        connection = sqlite3.connect(tmp_path / name)
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        connection.close()
        return {(name, " ".join(sorted(re.split(r",?\s+", sql)))) for name, sql in rows}

    assert described("moved.db") == described("new.db")


def test_a_new_store_is_the_owner_s_alone(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/a/b/ledger.db", blobs="memory://", scope=SCOPE) as ledger:
        ledger.decisions.record("gate", "s", Verdict(True, "r"), actor="a")
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a" / "b").iterdir()}
    assert modes == {0o600}


def test_an_older_file_is_copied_and_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    url = f"sqlite:///{path}"
    upgrade(url)
    downgrade(url, "base")  # older than any
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE kept (x)")
    with pytest.raises(Unavailable, match="has schema none"):
        open_ledger(url, blobs="memory://", scope=SCOPE, migrate=False)
    with open_ledger(url, blobs="memory://", scope=SCOPE) as ledger:
        ledger.decisions.record("gate", "s", Verdict(True, "r"), actor="a")
    copy = path.with_name(f"ledger.db.before-{SCHEMA_VERSION}")
    assert tables_of(f"sqlite:///{copy}") == {"alembic_version", "kept"}
    assert tables_of(url) == {"alembic_version", "kept", *metadata.tables}
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_a_server_is_brought_up_to_date_by_command_alone(new_postgres_database: NewUrl) -> None:
    url = new_postgres_database()
    upgrade(url)
    downgrade(url, "base")
    with pytest.raises(Unavailable, match=r"python -m tidemill\.ledger upgrade"):
        open_ledger(url, blobs="memory://", scope=SCOPE)


def test_a_newer_store_is_refused(empty_url: str) -> None:
    upgrade(empty_url)
    database = Database(empty_url, SCOPE, SystemClock())
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(Unavailable, match="newer Tidemill"):
        open_ledger(empty_url, blobs="memory://", scope=SCOPE)


def test_without_leave_nothing_is_made(empty_url: str) -> None:
    with pytest.raises(Unavailable, match=r"There is no ledger|has schema none"):
        open_ledger(empty_url, blobs="memory://", scope=SCOPE, migrate=False)


@pytest.mark.parametrize("url", ["nonsense", "sqlite://", "sqlite:///:memory:", "mysql://localhost/x"])
def test_a_url_that_cannot_hold_a_ledger_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        open_ledger(url, blobs="memory://", scope=SCOPE)


def test_what_is_in_the_way_is_said_in_a_sentence(tmp_path: Path) -> None:
    garbled = tmp_path / "notes.txt"
    garbled.write_text("no database, but a text that is long enough to be taken for one\n" * 20)
    with pytest.raises(Unavailable, match="not a SQLite database"):
        open_ledger(f"sqlite:///{garbled}", blobs="memory://", scope=SCOPE)
    with pytest.raises(Unavailable, match="cannot be made"):
        open_ledger(f"sqlite:///{garbled}/ledger.db", blobs="memory://", scope=SCOPE)
    with pytest.raises(Unavailable, match=r"cannot be opened"):
        open_ledger(f"sqlite:///{tmp_path}", blobs="memory://", scope=SCOPE)
    with pytest.raises(Unavailable, match="does not answer") as caught:
        open_ledger("postgresql+psycopg://ann:secret@127.0.0.1:1/x", blobs="memory://", scope=SCOPE)
    assert "secret" not in str(caught.value)


def test_the_command_moves_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    assert main(["upgrade", url]) == 0
    assert main(["downgrade", url, "--to", "base"]) == 0
    assert capsys.readouterr().out == f"schema {SCHEMA_VERSION}\nschema none\n"
    assert main(["upgrade", "nonsense"]) == 2
    assert "not a database URL" in capsys.readouterr().err


def test_opening_loads_no_more_than_it_needs(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    open_ledger(url, blobs="memory://", scope=SCOPE).close()
    program = (
        "import sys, tidemill.ledger as l; assert 'sqlalchemy' not in sys.modules\n"
        "from tidemill.kernel import Scope\n"
        f"ledger = l.open_ledger({url!r}, blobs='memory://', scope=Scope('demo')); ledger.artifacts.list()\n"
        "print(*[m for m in ('alembic', 'pyarrow', 'obstore', 'duckdb', 'pandas', 'psycopg') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
