"""The store as the gateway uses it: sealing, times, and an event loop that never waits for it."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.gateway.answers import Refusal
from tidemill.gateway.conversations import Conversations, Retention, Vault
from tidemill.gateway.conversations.store import Turn
from tidemill.kernel import FakeClock
from tidemill.ledger.conversations import ConversationScope, open_conversation_rows

SCOPE = ConversationScope("demo", "default", "desk")
KEY = bytes(range(32))


def turn(text: str = "Hi") -> Turn:
    item = {"id": "msg_1", "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    return Turn(input=[item], response={"id": "resp_1"})


def opened(
    path: Path, *, key: bytes = KEY, retention: Retention | None = None, clock: FakeClock | None = None
) -> Conversations:
    return Conversations(open_conversation_rows(f"sqlite:///{path}/c.db"), Vault(key), retention, clock)


@given(st.binary(max_size=200), st.binary(max_size=40), st.integers(0, 300))
def test_what_is_sealed_opens_in_its_place_only(plain: bytes, about: bytes, place: int) -> None:
    vault = Vault(KEY)
    sealed = vault.seal(plain, about)
    assert vault.open(sealed, about) == plain
    assert vault.open(sealed, about + b"x") is None
    assert Vault(bytes(32)).open(sealed, about) is None
    place %= len(sealed)
    assert vault.open(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :], about) is None
    assert vault.open(sealed[:place], about) is None
    assert vault.seal(plain, about) != sealed


def test_an_entry_moved_to_another_place_does_not_open(tmp_path: Path) -> None:
    async def main() -> None:
        store = opened(tmp_path)
        assert await store.keep(SCOPE, "resp_1", turn("secret"))
        with sqlite3.connect(tmp_path / "c.db") as connection:  # what somebody with the file alone could do
            connection.execute("UPDATE conversation_entries SET tenant = 'acme'")
            connection.execute("UPDATE conversation_threads SET tenant = 'acme'")
        connection.close()
        with pytest.raises(Refusal, match="cannot be decrypted"):
            await store.history(ConversationScope("demo", "acme", "desk"), "resp_1")
        await store.close()

    asyncio.run(main())


def test_another_key_opens_nothing_and_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        store = opened(tmp_path)
        await store.keep(SCOPE, "resp_1", turn())
        await store.close()
        other = opened(tmp_path, key=bytes(32))
        with pytest.raises(Refusal, match="another one by now") as refused:
            await other.history(SCOPE, "resp_1")
        assert refused.value.status == 500
        await other.close()

    asyncio.run(main())


def test_retention_counts_from_the_newest_turn(tmp_path: Path) -> None:
    async def main() -> None:
        clock = FakeClock(datetime(2026, 5, 1, tzinfo=UTC))
        store = opened(tmp_path, retention=Retention(retention_s=100), clock=clock)
        await store.keep(SCOPE, "resp_1", turn())
        clock.advance(90)
        history = await store.history(SCOPE, "resp_1")
        await store.keep(SCOPE, "resp_2", turn("two"), after=history)
        clock.advance(90)
        assert len((await store.history(SCOPE, "resp_2")).items) == 2
        assert await store.sweep() == 0
        clock.advance(10)
        with pytest.raises(Refusal) as refused:
            await store.history(SCOPE, "resp_2")
        assert refused.value.status == 404
        assert await store.sweep() == 2
        await store.close()
        with sqlite3.connect(tmp_path / "c.db") as connection:
            for table in ("conversation_entries", "conversation_threads"):
                assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        connection.close()

    asyncio.run(main())


def test_the_loop_runs_on_while_the_store_waits_for_a_lock(tmp_path: Path) -> None:
    async def main() -> None:
        store = opened(tmp_path)
        holder = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        keeping = asyncio.ensure_future(store.keep(SCOPE, "resp_1", turn()))
        for _ in range(50):  # each of these is a turn of the loop that a blocking call would not allow
            await asyncio.sleep(0.002)
            assert not keeping.done()
        holder.execute("COMMIT")
        holder.close()
        assert await asyncio.wait_for(keeping, 30)
        assert (await store.history(SCOPE, "resp_1")).head == "resp_1"
        await store.close()

    asyncio.run(main())


def test_many_turns_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        store = opened(tmp_path)
        names = [f"resp_{number}" for number in range(40)]
        assert all(await asyncio.gather(*(store.keep(SCOPE, name, turn(name)) for name in names)))
        found = await asyncio.gather(*(store.history(SCOPE, name) for name in names))
        assert [history.items[0]["content"][0]["text"] for history in found] == names
        await store.close()

    asyncio.run(main())


def test_a_gateway_without_a_store_loads_no_driver_and_no_cipher() -> None:
    code = (
        "import sys, tidemill.gateway\n"
        "drivers = ('sqlite3', 'psycopg', 'redis', 'tidemill.gateway.conversations.store')\n"
        "print([name for name in drivers if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
