"""One suite over every back end of the store of conversations, over real files and real servers."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tidemill.kernel import InvalidInput, Unavailable
from tidemill.ledger.conversations import ConversationRows, ConversationScope, Entry, open_conversation_rows

REDIS_URL = os.environ.get("TIDEMILL_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")
RETENTION_S = 1000.0


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/conversations.db"
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    redis = pytest.importorskip("redis", reason="the redis driver is not installed")
    try:
        with redis.Redis.from_url(REDIS_URL, socket_connect_timeout=3) as client:
            client.ping()
    except redis.RedisError as error:
        pytest.skip(f"no Redis at {REDIS_URL}: {error}")
    return REDIS_URL


@pytest.fixture
def open_rows(url: str) -> Iterator[Callable[[], ConversationRows]]:
    opened: list[ConversationRows] = []

    def begin() -> ConversationRows:
        opened.append(open_conversation_rows(url))
        return opened[-1]

    yield begin
    for rows in opened:
        rows.close()


@pytest.fixture
def rows(open_rows: Callable[[], ConversationRows]) -> ConversationRows:
    return open_rows()


@pytest.fixture
def scope() -> ConversationScope:
    return ConversationScope(f"p-{uuid.uuid4().hex[:12]}", "default", "desk")


NOW = time.time()


@pytest.fixture(autouse=True)
def _now() -> None:
    """Each test's own moment: Redis ends entries by its own clock, and a whole suite takes minutes."""
    globals()["NOW"] = time.time()


def entry(name: str, parent: str | None = None, *, thread: str = "resp_1", start: str | None = None) -> Entry:
    return Entry(name, thread, NOW, b"\x00sealed " + name.encode() + b"\xff", parent, start)


def add(rows: ConversationRows, scope: ConversationScope, *entries: Entry, expires_at: float | None = None) -> None:
    for one in entries:
        assert rows.add(scope, one, expires_at=expires_at or NOW + RETENTION_S)


def ids(rows: ConversationRows, scope: ConversationScope, head: str, depth_most: int = 100) -> list[str]:
    return [one.entry_id for one in rows.walk(scope, head, now=NOW, depth_most=depth_most).entries]


def test_what_was_added_comes_back_as_it_was(rows: ConversationRows, scope: ConversationScope) -> None:
    first = Entry("resp_1", "resp_1", 1234.5678, bytes(range(256)))
    second = Entry("resp_2", "resp_1", NOW, b"", "resp_1", "resp_1")
    add(rows, scope, first, second)
    assert rows.get(scope, "resp_1", now=NOW) == first
    assert rows.get(scope, "resp_2", now=NOW) == second
    assert rows.get(scope, "resp_3", now=NOW) is None


def test_another_handle_sees_it(open_rows: Callable[[], ConversationRows], scope: ConversationScope) -> None:
    add(open_rows(), scope, entry("resp_1"))
    assert ids(open_rows(), scope, "resp_1") == ["resp_1"]


@pytest.mark.parametrize("field", ["project", "tenant", "key"])
def test_no_scope_sees_or_touches_anothers(rows: ConversationRows, scope: ConversationScope, field: str) -> None:
    add(rows, scope, entry("resp_1"), Entry("conv_1", "conv_1", NOW, b"x"))
    parts = {"project": scope.project, "tenant": scope.tenant, "key": scope.key, field: "other"}
    other = ConversationScope(**parts)
    assert rows.get(other, "resp_1", now=NOW) is None
    assert rows.walk(other, "resp_1", now=NOW, depth_most=9).entries == ()
    assert not rows.replace(other, replace(entry("resp_1"), sealed=b"taken over"))
    assert not rows.remove(other, "resp_1")
    assert not rows.remove(other, "resp_1", whole_thread=True)
    assert not rows.add(other, entry("resp_2"), expires_at=NOW + 9, conversation="conv_1")
    found = rows.get(scope, "resp_1", now=NOW)
    assert found is not None
    assert found.sealed == entry("resp_1").sealed


def test_a_walk_goes_back_to_the_first_entry(rows: ConversationRows, scope: ConversationScope) -> None:
    add(rows, scope, entry("resp_1"), *(entry(f"resp_{n}", f"resp_{n - 1}") for n in range(2, 40)))
    walk = rows.walk(scope, "resp_39", now=NOW, depth_most=39)
    assert [one.entry_id for one in walk.entries] == [f"resp_{n}" for n in range(39, 0, -1)]
    assert walk.complete


def test_branches_keep_apart(rows: ConversationRows, scope: ConversationScope) -> None:
    add(rows, scope, entry("resp_1"), entry("resp_2", "resp_1"), entry("resp_3", "resp_1"), entry("resp_4", "resp_3"))
    assert ids(rows, scope, "resp_2") == ["resp_2", "resp_1"]
    assert ids(rows, scope, "resp_4") == ["resp_4", "resp_3", "resp_1"]


def test_a_walk_is_bounded_and_says_so(rows: ConversationRows, scope: ConversationScope) -> None:
    add(rows, scope, entry("resp_1"), *(entry(f"resp_{n}", f"resp_{n - 1}") for n in range(2, 8)))
    walk = rows.walk(scope, "resp_7", now=NOW, depth_most=6)
    assert len(walk.entries) == 6
    assert not walk.complete


def test_a_walk_ends_where_the_newest_entry_says(rows: ConversationRows, scope: ConversationScope) -> None:
    add(rows, scope, entry("resp_1"), entry("resp_2", "resp_1"), entry("resp_3", "resp_2", start="resp_2"))
    add(rows, scope, entry("resp_4", "resp_3", start="resp_2"))
    walk = rows.walk(scope, "resp_4", now=NOW, depth_most=9)
    assert [one.entry_id for one in walk.entries] == ["resp_4", "resp_3", "resp_2"]
    assert walk.complete
    assert ids(rows, scope, "resp_2") == ["resp_2", "resp_1"]  # an older entry knows nothing of it


def test_a_hole_in_the_history_is_told(rows: ConversationRows, scope: ConversationScope) -> None:
    add(rows, scope, entry("resp_1"), entry("resp_2", "resp_1"), entry("resp_3", "resp_2"))
    assert rows.remove(scope, "resp_2")
    assert not rows.remove(scope, "resp_2")
    walk = rows.walk(scope, "resp_3", now=NOW, depth_most=9)
    assert [one.entry_id for one in walk.entries] == ["resp_3"]
    assert not walk.complete


def test_content_can_be_replaced(rows: ConversationRows, scope: ConversationScope) -> None:
    add(rows, scope, entry("resp_0"), entry("resp_1", "resp_0", start="resp_0"))
    assert rows.replace(scope, Entry("resp_1", "ignored", 1.0, b"other", "ignored"))
    assert rows.get(scope, "resp_1", now=NOW) == replace(entry("resp_1", "resp_0"), sealed=b"other")
    assert not rows.replace(scope, entry("resp_9"))
    assert rows.get(scope, "resp_9", now=NOW) is None


def test_a_conversation_grows_at_its_head(rows: ConversationRows, scope: ConversationScope) -> None:
    add(rows, scope, Entry("conv_1", "conv_1", NOW, b"meta"))
    for name in ("resp_a", "resp_b", "resp_c"):
        assert rows.add(scope, entry(name, thread="conv_1"), expires_at=NOW + 9, conversation="conv_1")
    found = rows.get(scope, "conv_1", now=NOW)
    assert found is not None
    assert found.head == "resp_c"
    assert ids(rows, scope, "resp_c") == ["resp_c", "resp_b", "resp_a"]


def test_concurrent_turns_of_a_conversation_are_all_kept_in_one_line(
    open_rows: Callable[[], ConversationRows], scope: ConversationScope
) -> None:
    handles = [open_rows(), open_rows()]
    add(handles[0], scope, Entry("conv_1", "conv_1", NOW, b"meta"))
    names = [f"resp_{n:02}" for n in range(24)]
    failed: list[BaseException] = []

    def turn(number: int) -> None:
        try:
            kept = entry(names[number], thread="conv_1")
            assert handles[number % 2].add(scope, kept, expires_at=NOW + 99, conversation="conv_1")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=turn, args=(number,)) for number in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    conversation = handles[1].get(scope, "conv_1", now=NOW)
    assert conversation is not None
    assert conversation.head is not None
    assert sorted(ids(handles[1], scope, conversation.head)) == names


def test_a_deleted_conversation_takes_its_thread_along(rows: ConversationRows, scope: ConversationScope) -> None:
    add(rows, scope, Entry("conv_1", "conv_1", NOW, b"meta"), entry("resp_x", thread="resp_x"))
    assert rows.add(scope, entry("resp_a", thread="conv_1"), expires_at=NOW + 9, conversation="conv_1")
    assert rows.remove(scope, "conv_1", whole_thread=True)
    assert rows.get(scope, "conv_1", now=NOW) is None
    assert rows.get(scope, "resp_a", now=NOW) is None
    assert rows.get(scope, "resp_x", now=NOW) is not None
    assert not rows.add(scope, entry("resp_b", thread="conv_1"), expires_at=NOW + 9, conversation="conv_1")
    assert rows.get(scope, "resp_b", now=NOW) is None


def test_a_thread_expires_as_a_whole_after_its_newest_entry(rows: ConversationRows, scope: ConversationScope) -> None:
    add(rows, scope, entry("resp_1"), expires_at=NOW + 100)
    add(rows, scope, entry("resp_2", "resp_1"), expires_at=NOW + 200)
    add(rows, scope, entry("resp_3", "resp_1"), expires_at=NOW + 150)  # never back
    at = {moment: rows.walk(scope, "resp_3", now=NOW + moment, depth_most=9) for moment in (199.0, 200.0)}
    assert [one.entry_id for one in at[199.0].entries] == ["resp_3", "resp_1"]
    assert at[200.0].entries == ()
    assert rows.get(scope, "resp_1", now=NOW + 201) is None


def test_expired_threads_are_swept_and_others_stay(
    rows: ConversationRows, scope: ConversationScope, url: str, open_rows: Callable[[], ConversationRows]
) -> None:
    old = time.time() + 1.0
    for number in range(5):
        add(rows, scope, entry(f"resp_old{number}", thread=f"resp_old{number}"), expires_at=old)
    add(rows, scope, entry("resp_1"))
    deadline = time.monotonic() + 30
    while time.time() <= old or (url.startswith("redis") and rows.get(scope, "resp_old4", now=NOW) is not None):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    removed = rows.sweep(time.time())
    assert removed == 0 if url.startswith("redis") else removed >= 5  # threads of other tests' scopes may end as well
    for number in range(5):  # not even for a reader whose clock is behind
        assert open_rows().get(scope, f"resp_old{number}", now=NOW - 10) is None
    assert rows.get(scope, "resp_1", now=NOW) is not None


ADDING = """
import os, sys
from tidemill.ledger.conversations import ConversationScope, Entry, open_conversation_rows
rows = open_conversation_rows(sys.argv[1])
scope = ConversationScope(sys.argv[2], "default", "desk")
for number in range(10_000):
    rows.add(scope, Entry(f"resp_{number}", "resp_0", 1.0, b"x" * 2000, f"resp_{number - 1}" if number else None),
             expires_at=float(sys.argv[3]))
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(url: str, scope: ConversationScope) -> None:
    arguments = [sys.executable, "-c", ADDING, url, scope.project, str(time.time() + 600)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = -1
        for line in process.stdout:
            last = int(line)
            if last >= 25:
                break
        process.kill()
        last = max([last, *(int(line) for line in process.stdout.read().splitlines() if line.isdigit())])
    rows = open_conversation_rows(url)
    try:
        walk = rows.walk(scope, f"resp_{last}", now=time.time(), depth_most=10_000)
    finally:
        rows.close()
    assert len(walk.entries) == last + 1
    assert walk.complete


def test_the_file_is_its_owners_alone(tmp_path: Path, scope: ConversationScope) -> None:
    rows = open_conversation_rows(f"sqlite:///{tmp_path}/folder/conversations.db")
    add(rows, scope, entry("resp_1"))
    files = list((tmp_path / "folder").iterdir())
    rows.close()
    assert files
    assert {stat.S_IMODE(file.stat().st_mode) for file in files if file.exists()} <= {0o600}


@pytest.mark.parametrize("text", ["sqlite://", "mysql://x", "nonsense", ""])
def test_other_urls_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="no store of conversations"):
        open_conversation_rows(text)


@pytest.mark.parametrize("text", ["postgresql://postgres@127.0.0.1:1/none", "redis://127.0.0.1:1/0"])
def test_a_server_that_does_not_answer_is_told(text: str) -> None:
    with pytest.raises(Unavailable, match="store of conversations"):
        open_conversation_rows(text)


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "conversations.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(Unavailable, match="cannot be used"):
        open_conversation_rows(f"sqlite:///{tmp_path}/conversations.db")
