"""The second tier on a real Redis, and beside one that is not there."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from typing import Any

import pytest

from tests.gateway.cache.desk import answer, cache, call, keep
from tidemill.gateway.cache import Kept
from tidemill.gateway.cache.redis_tier import RedisTier
from tidemill.gateway.usage import Usage
from tidemill.kernel import InvalidInput

REDIS_URL = os.environ.get("TIDEMILL_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")
PATIENT_S = 30.0


@pytest.fixture(scope="module")
def redis_url() -> str:
    redis = pytest.importorskip("redis", reason="redis-py is not installed")
    try:
        with redis.Redis.from_url(REDIS_URL, socket_connect_timeout=3) as client:
            client.ping()
    except redis.RedisError as error:
        pytest.skip(f"no Redis at {REDIS_URL}: {error}")
    return REDIS_URL


@pytest.fixture
def project() -> str:
    return f"p-{uuid.uuid4().hex[:12]}"


def kept(lifetime_s: float = 60.0) -> Kept:
    now_s = time.time()
    return Kept(answer(), False, now_s, now_s + lifetime_s, "t1", Usage(3, 4))


def test_workers_share_their_answers(redis_url: str, project: str) -> None:
    async def main() -> None:
        tiers = [RedisTier(redis_url, project=project, timeout_s=PATIENT_S) for _ in range(2)]
        one, other = (cache(project=project, second=tier, now=time.time) for tier in tiers)
        assert keep(one, one.key(call()))
        await asyncio.gather(*tiers[0]._writes)
        key = other.key(call())
        assert key is not None
        assert other.look(key) is None
        found: list[Any] = []
        task = other.look_further(key, found.append)
        assert task is not None
        await task
        assert found[0].body == answer()
        assert found[0].usage == Usage(3, 4)
        assert found[0].trace_id == "t1"
        for tier in tiers:
            await tier.close()

    asyncio.run(main())


def test_keys_carry_project_and_tenant_and_run_out(redis_url: str, project: str) -> None:
    async def main() -> None:
        tier = RedisTier(redis_url, project=project, timeout_s=PATIENT_S)
        tier.put("acme", b"d" * 32, kept())
        tier.put("acme", b"e" * 32, kept(lifetime_s=-1))
        await asyncio.gather(*tier._writes)
        assert await tier.get("acme", b"d" * 32) is not None
        assert await tier.get("rival", b"d" * 32) is None
        assert await tier.get("acme", b"e" * 32) is None
        name = f"tidemill:{project}/acme:answer:{(b'd' * 32).hex()}"
        assert 0 < await tier._client.pttl(name) <= 60_000
        await tier._client.set(name, b"not ours")
        assert await tier.get("acme", b"d" * 32) is None  # unreadable is a miss
        await tier._client.delete(name)
        await tier.close()

    asyncio.run(main())


def test_a_redis_that_is_not_there_is_left_alone() -> None:
    pytest.importorskip("redis", reason="redis-py is not installed")

    async def main() -> None:
        tier = RedisTier("redis://127.0.0.1:1/0", project="demo", timeout_s=PATIENT_S, pause_s=3600)
        assert await tier.get("acme", b"d" * 32) is None
        assert tier.failures == 1
        assert await tier.get("acme", b"d" * 32) is None
        tier.put("acme", b"d" * 32, kept())
        assert (tier.failures, tier.dropped) == (1, 1)
        await tier.close()

    asyncio.run(main())


def test_a_redis_that_stalls_is_a_miss() -> None:
    pytest.importorskip("redis", reason="redis-py is not installed")

    async def main() -> None:
        gone = asyncio.Event()

        async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            gone.set()

        server = await asyncio.start_server(stall, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        tier = RedisTier(f"redis://127.0.0.1:{port}/0", project="demo", timeout_s=0.05)
        assert await tier.get("acme", b"d" * 32) is None
        assert tier.failures == 1
        await tier.close()
        async with asyncio.timeout(PATIENT_S):
            await gone.wait()
        server.close()
        await server.wait_closed()

    asyncio.run(main())


def test_what_is_no_url_is_said() -> None:
    pytest.importorskip("redis", reason="redis-py is not installed")
    with pytest.raises(InvalidInput, match="nonsense"):
        RedisTier("nonsense", project="demo")
