"""Vectors over the worker's own connections, from a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.gateway.cache.desk import answer, cache, call, keep, route
from tidemill.gateway import Limits
from tidemill.gateway.cache import SimilarAnswers
from tidemill.gateway.cache.embedding import PooledEmbedder
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.gateway.upstream import UpstreamPool
from tidemill.kernel import InvalidInput, Unavailable
from tidemill.kernel.routing_policy import CacheMode

WAIT_S = 30.0


def with_pool(main: Callable[[UpstreamPool], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        pool = UpstreamPool(Limits())
        try:
            await main(pool)
        finally:
            pool.close()
            await asyncio.sleep(0)

    asyncio.run(run())


def test_a_vector_comes_over_a_kept_connection() -> None:
    with ScriptedUpstream() as server:

        async def main(pool: UpstreamPool) -> None:
            embed = PooledEmbedder(pool, url=server.url, model="minilm", api_key="key-1", timeout_s=WAIT_S)
            for text in ("one", "two"):
                assert await embed(text) == [0.25, -0.5, 0.125]
            assert len(pool.connections) == 1

        with_pool(main)
    assert [seen.path for seen in server.seen] == ["/v1/embeddings"] * 2


@pytest.mark.parametrize("fault", [Fault.SERVER_ERROR, Fault.RESET])
def test_a_server_that_fails_is_unavailable(fault: Fault) -> None:
    with ScriptedUpstream(always=fault) as server:

        async def main(pool: UpstreamPool) -> None:
            embed = PooledEmbedder(pool, url=server.url, model="minilm", timeout_s=WAIT_S)
            with pytest.raises(Unavailable):
                await embed("one")

        with_pool(main)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    async def main(pool: UpstreamPool) -> None:
        embed = PooledEmbedder(pool, url="http://127.0.0.1:1/v1", model="minilm", timeout_s=WAIT_S)
        with pytest.raises(Unavailable):
            await embed("one")

    with_pool(main)


def test_giving_up_drops_the_connection() -> None:
    with ScriptedUpstream(always=Fault.STALL) as server:

        async def main(pool: UpstreamPool) -> None:
            embed = PooledEmbedder(pool, url=server.url, model="minilm", timeout_s=WAIT_S)
            task = asyncio.ensure_future(embed("one"))
            async with asyncio.timeout(WAIT_S):
                while not server.seen:
                    await asyncio.sleep(0.005)
                task.cancel()
                while pool.connections:
                    await asyncio.sleep(0.005)

        with_pool(main)


def test_the_semantic_cache_works_on_it() -> None:
    with ScriptedUpstream() as server:

        async def main(pool: UpstreamPool) -> None:
            embed = PooledEmbedder(pool, url=server.url, model="minilm", timeout_s=WAIT_S)
            similar = SimilarAnswers(embed, timeout_s=WAIT_S)
            desk = cache(route(mode=CacheMode.SEMANTIC), similar=similar)
            keep(desk, desk.key(call("How do I reset it?")))
            async with asyncio.timeout(WAIT_S):
                while not len(similar):
                    await asyncio.sleep(0.005)
            found: list[Any] = []
            key = desk.key(call("How can I reset it?"))
            assert key is not None
            task = desk.look_further(key, found.append)
            assert task is not None
            await task
            assert found[0].body == answer()
            assert found[0].similarity == pytest.approx(1.0)
            await similar.close()

        with_pool(main)


def test_a_key_of_two_lines_is_refused() -> None:
    with pytest.raises(InvalidInput, match="one line"):
        PooledEmbedder(None, url="http://127.0.0.1:1/v1", model="m", api_key="a\r\nb: c")  # type: ignore[arg-type]
