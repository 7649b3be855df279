"""Which answers are kept, for whom, and for how long."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.cache.desk import RELEASE_2, Time, answer, cache, call, keep, route
from tidemill.gateway.cache import AnswerCache, AnswerStore, CachedAnswer, Kept, stream_of
from tidemill.gateway.cache.store import ENTRY_BYTES
from tidemill.gateway.usage import Usage


def look(where: AnswerCache, *texts: str, **more: Any) -> CachedAnswer | None:
    key = where.key(call(*texts, **more))
    return None if key is None else where.look(key)


def test_the_same_request_gets_the_same_answer() -> None:
    time = Time()
    desk = cache(now=time)
    assert keep(desk, desk.key(call()))
    time.now_s += 7
    found = look(desk)
    assert found is not None
    assert found.body == answer()
    assert found.content_type == b"application/json"
    assert found.usage == Usage(3, 4)
    assert found.attributes() == {
        "tidemill.cache": "hit",
        "tidemill.cached_trace_id": "t1",
        "tidemill.cache_age_s": 7.0,
    }
    assert found.header() == b"x-tidemill-cache: hit\r\nage: 7\r\n"
    assert look(desk, "why?") is None


def test_an_answer_runs_out() -> None:
    time = Time()
    desk = cache(route(ttl_s=60), now=time)
    keep(desk, desk.key(call()))
    time.now_s += 59.9
    assert look(desk) is not None
    time.now_s += 0.1
    assert look(desk) is None


PARTITIONS: dict[str, dict[str, Any]] = {
    "project": {"project": "other"},
    "tenant": {"where": route(tenant="rival")},
    "endpoint": {"where": route(endpoint="shop")},
    "model": {"where": route(model="m2")},
    "guardrails": {"guardrails": "h"},
    "release": {"release": RELEASE_2},
    "key": {"key_name": "other"},
    "user": {"user": "ben"},
    "operation": {"operation": "text_completion"},
    "system prompt": {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "how?"}]},
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "top_p": {"top_p": 0.5},
    "seed": {"seed": 1},
    "n": {"n": 2},
    "an unknown field": {"reasoning_effort": "high"},
}


@pytest.mark.parametrize("what", PARTITIONS)
def test_no_answer_crosses_a_partition(what: str) -> None:
    """One store, as all routes of a worker share it; only this one thing differs."""
    store, time = AnswerStore(), Time()
    change = dict(PARTITIONS[what])
    there = {name: change.pop(name) for name in ("where", "project", "guardrails") if name in change}
    here = cache(store=store, now=time)
    other = cache(store=store, now=time, **there)
    assert keep(here, here.key(call(user="anna")))
    assert look(here, user="anna") is not None
    assert look(other, **{"user": "anna", **change}) is None


def test_a_tenant_may_share_answers_among_its_users() -> None:
    desk = cache(route(per_user=False))
    keep(desk, desk.key(call(user="anna")))
    assert look(desk, user="ben", key_name="other") is not None
    assert look(desk) is not None


def test_no_user_is_not_a_user_without_a_name() -> None:
    desk = cache()
    keep(desk, desk.key(call(user="")))
    assert look(desk) is None


@pytest.mark.parametrize(
    ("temperature", "most", "kept"),
    [(0, 0, True), (0.2, 0, False), (None, 0, False), (None, 1, True), (0.7, 1, True), (1.5, 1, False)],
)
def test_only_answers_that_are_not_drawn_at_random_are_kept(temperature: float, most: float, kept: bool) -> None:
    desk = cache(route(max_temperature=most))
    assert (desk.key(call(temperature=temperature)) is not None) == kept


@pytest.mark.parametrize("operation", ["embeddings", "moderation"])
def test_what_knows_no_temperature_is_always_the_same(operation: str) -> None:
    desk = cache()
    key = desk.key(call(operation=operation, temperature=None))
    assert keep(desk, key, b'{"data": []}', finish_reasons=())
    assert key is not None
    assert desk.look(key) is not None


@pytest.mark.parametrize("operation", ["transcription", "speech", "responses"])
def test_other_operations_are_never_kept(operation: str) -> None:
    assert cache().key(call(operation=operation)) is None


@pytest.mark.parametrize(
    ("given_", "facts"),
    [
        (answer(), {"status": 500}),
        (answer(), {"status": 206}),
        (answer(), {"finish_reasons": ()}),
        (answer(), {"finish_reasons": ("content_filter",)}),
        (answer(), {"finish_reasons": ("tool_calls",)}),
        (answer(None, tool_calls=[{"id": "1"}]), {}),  # finish_reason says stop, as some servers do
        (b'{"choices": [{"message": {"tool_calls": [', {}),
        (b"x" * 300_000, {}),
    ],
)
def test_what_is_not_safe_to_give_again_is_not_kept(given_: bytes, facts: dict[str, Any]) -> None:
    desk = cache()
    key = desk.key(call())
    assert not keep(desk, key, given_, **facts)
    assert key is not None
    assert desk.look(key) is None


def test_an_answer_that_could_call_a_tool_but_does_not_is_kept() -> None:
    desk = cache()
    assert keep(desk, desk.key(call()), answer(tool_calls=None))
    assert not keep(desk, desk.key(call(n=2)))  # only one of two choices finished


@pytest.mark.parametrize(("header", "looked", "kept"), [(b"no-store", False, False), (b"No-Cache", False, True),
                                                        (b"max-age=5", False, True), (b'max-age="10"', True, True),
                                                        (b"max-stale, x=1", True, True),
                                                        (b"max-age=0, no-store", False, False)])  # fmt: skip
def test_the_client_may_forbid_it(header: bytes, looked: bool, kept: bool) -> None:
    time = Time()
    desk = cache(now=time)
    keep(desk, desk.key(call()), answer("old"))
    time.now_s += 7
    key = desk.key(call(cache_control=header))
    assert (key is not None and desk.look(key) is not None) == looked
    assert (key is not None) == kept
    if key is not None:
        keep(desk, key, answer("new"))
        found = look(desk)
        assert found is not None
        assert found.body == answer("new")


def test_a_stream_and_a_whole_answer_stand_for_each_other() -> None:
    desk = cache()
    keep(desk, desk.key(call()))
    found = look(desk, stream=True)
    assert found is not None
    assert found.content_type == b"text/event-stream"
    assert found.body == stream_of(answer())

    keep(desk, desk.key(call("why?", stream=True)), stream_of(answer("thus")), streamed=True)
    back = look(desk, "why?")
    assert back is not None
    assert json.loads(back.body) == json.loads(answer("thus"))


def test_usage_comes_with_a_replay_for_those_who_asked() -> None:
    desk = cache()
    told = json.loads(answer())
    told["usage"] = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    stream = stream_of(json.dumps(told).encode(), include_usage=True)
    keep(desk, desk.key(call(stream=True, stream_options={"include_usage": True})), stream, streamed=True)
    asked = look(desk, stream=True, stream_options={"include_usage": True})
    silent = look(desk, stream=True)
    assert asked is not None
    assert silent is not None
    assert b'"usage"' in asked.body
    assert b'"usage"' not in silent.body


def test_events_that_turn_out_unreadable_are_dropped() -> None:
    store = AnswerStore()
    desk = cache(store=store)
    keep(desk, desk.key(call(stream=True)), b"data: {broken\n\ndata: [DONE]\n\n", streamed=True)
    assert look(desk) is None
    assert len(store) == 0


# -- the store ------------------------------------------------------------------------------------------------


def kept(size: int, expires_at: float = 10.0) -> Kept:
    return Kept(b"x" * size, False, 0.0, expires_at, "t")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 400)), max_size=60))
def test_the_store_stays_within_its_bounds_and_counts_right(entries: list[tuple[int, int]]) -> None:
    most = 4 * (ENTRY_BYTES + 200)
    store = AnswerStore(max_bytes=most, max_entries=4, max_answer_bytes=300)
    held: dict[bytes, int] = {}
    for name, size in entries:
        digest = bytes([name])
        if store.put(digest, kept(size)):
            held[digest] = size
        assert len(store) <= 4
        assert store.bytes <= most
    there = {digest: found for digest in held if (found := store.get(digest, 0.0)) is not None}
    assert store.bytes == sum(found.weight for found in there.values())
    assert len(store) == len(there)
    assert all(len(found.body) == held[digest] for digest, found in there.items())


def test_the_least_recently_used_goes_first() -> None:
    store = AnswerStore(max_entries=2)
    store.put(b"1", kept(1))
    store.put(b"2", kept(1))
    store.get(b"1", 0.0)
    store.put(b"3", kept(1))
    assert [store.get(name, 0.0) is not None for name in (b"1", b"2", b"3")] == [True, False, True]
    assert store.evicted == 1


def test_a_sweep_forgets_what_has_run_out() -> None:
    store = AnswerStore()
    for name in range(20):
        store.put(bytes([name]), kept(1, expires_at=float(name)))
    store.sweep(9.0)
    assert len(store) == 10
    assert store.bytes == 10 * (1 + ENTRY_BYTES)


# -- further --------------------------------------------------------------------------------------------------


class Far:
    """A second tier in this process."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, bytes], Kept] = {}

    async def get(self, tenant: str, digest: bytes) -> Kept | None:
        await asyncio.sleep(0)
        return self.held.get((tenant, digest))

    def put(self, tenant: str, digest: bytes, kept: Kept) -> None:
        self.held[tenant, digest] = kept


def test_another_workers_answer_is_found_further() -> None:
    async def main() -> None:
        far, time = Far(), Time()
        one, other = cache(second=far, now=time), cache(second=far, now=time)
        keep(one, one.key(call()))
        key = other.key(call())
        assert key is not None
        assert other.look(key) is None
        found: list[CachedAnswer | None] = []
        task = other.look_further(key, found.append)
        assert task is not None
        await task
        assert found[0] is not None
        assert found[0].body == answer()
        assert other.look(key) is not None  # nearer from now on
        time.now_s += 3601
        again = other.look_further(key, found.append)
        assert again is not None
        await again
        assert found[1:] == [None]

    asyncio.run(main())


def test_without_anything_further_the_answer_comes_at_once() -> None:
    desk = cache()
    key = desk.key(call())
    found: list[Any] = []
    assert key is not None
    assert desk.look_further(key, found.append) is None
    assert found == [None]
