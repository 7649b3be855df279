"""Exact answers in Redis, so that the workers of a cluster share hits: the second tier behind a worker's own memory.

Never in the way: a read has a short timeout and misses when it runs out, writes are sent in the background and
dropped when too many wait, and after a failure Redis is left alone for a while. Answers lie there as they are: give
Redis a password and TLS (``rediss://``), and a ``maxmemory`` with ``allkeys-lru``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic, time
from typing import Any, Final

import msgspec

from tidemill.gateway.cache.store import Kept
from tidemill.kernel import InvalidInput, MissingExtra

_log = logging.getLogger(__name__)

_encode: Final = msgspec.msgpack.encode
_kept: Final = msgspec.msgpack.Decoder(Kept)


class RedisTier:
    """A ``SecondTier`` in Redis.

    Args:
        url: ``redis://host:port/number``, ``rediss://…`` or ``unix://…``.
        project: whose answers; tenants are kept apart by their keys.
        timeout_s: of a read; longer is a miss.
        pause_s: how long Redis is left alone after a failure.
        writes_most: writes under way at once; further answers are not shared.

    Raises:
        InvalidInput: not such a URL.
        MissingExtra: redis-py is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        project: str,
        timeout_s: float = 0.05,
        pause_s: float = 5.0,
        writes_most: int = 64,
        now: Callable[[], float] = time,
    ) -> None:
        try:
            from redis import asyncio as redis
        except ModuleNotFoundError as error:
            raise MissingExtra("A cache that workers share", "redis") from error
        self.failures = 0
        self.dropped = 0
        self._project = project
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._writes_most = writes_most
        self._now = now
        self._resumes_at = 0.0
        self._writes: set[asyncio.Task[None]] = set()
        try:
            self._client: Any = redis.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)
        except ValueError as error:
            raise InvalidInput(f"'{url}' is not a URL of Redis: {error}") from error

    async def get(self, tenant: str, digest: bytes) -> Kept | None:
        """The answer under a key; ``None`` if there is none, or Redis does not answer in time."""
        if monotonic() < self._resumes_at:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                data = await self._client.get(self._name(tenant, digest))
            return _kept.decode(data) if data is not None else None
        except Exception as error:  # noqa: BLE001 - whatever is wrong there, the request goes on
            self._failed(error)
            return None

    def put(self, tenant: str, digest: bytes, kept: Kept) -> None:
        """Keep an answer, soon; dropped when too many writes are under way, or Redis is left alone."""
        if monotonic() < self._resumes_at or len(self._writes) >= self._writes_most:
            self.dropped += 1
            return
        task = asyncio.get_running_loop().create_task(self._put(tenant, digest, kept))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def close(self) -> None:
        """Finish the writes under way, then close the connections."""
        await asyncio.gather(*self._writes, return_exceptions=True)
        await self._client.aclose()

    async def _put(self, tenant: str, digest: bytes, kept: Kept) -> None:
        lifetime_ms = int((kept.expires_at - self._now()) * 1000)
        if lifetime_ms <= 0:
            return
        try:
            await self._client.set(self._name(tenant, digest), _encode(kept), px=lifetime_ms)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(error)

    def _name(self, tenant: str, digest: bytes) -> str:
        return f"tidemill:{self._project}/{tenant}:answer:{digest.hex()}"

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self._resumes_at = monotonic() + self._pause_s
        _log.warning("shared cache: left alone for %.0f s: %s", self._pause_s, str(error) or type(error).__name__)
