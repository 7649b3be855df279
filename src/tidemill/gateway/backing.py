"""Opens what stands behind a worker, when it is first needed: leases, kept answers, conversations.

Nothing here loads a library before that; opening happens before the loop serves, or in a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidemill.gateway.answers import Refusal
from tidemill.gateway.backing_options import BackingOptions
from tidemill.gateway.front import Request
from tidemill.gateway.upstream import UpstreamPool
from tidemill.kernel import InvalidInput, Route, Scope, UserError
from tidemill.kernel.routing_policy import CacheMode

if TYPE_CHECKING:
    from tidemill.gateway.admission.limits import Limiter
    from tidemill.gateway.cache import AnswerCache, AnswerStore, SimilarAnswers
    from tidemill.gateway.cache.redis_tier import RedisTier
    from tidemill.gateway.conversations import Conversations
    from tidemill.gateway.dialects.responses import ResponsesDialect
    from tidemill.gateway.guardrails import Guardrails
    from tidemill.kernel import ApiKey
    from tidemill.ledger.accounts import LeaseStore
    from tidemill.ledger.conversations import ConversationScope

_log = logging.getLogger(__name__)

_KEY_BYTES: Final = 32


def open_limiter(services: BackingOptions, *, project: str, worker: str, folder: Path) -> Limiter | None:
    """The worker's limits; ``None`` where no store is named. The store itself is opened with the first limit.

    Args:
        services: what stands behind the worker.
        project: whose limits.
        worker: its name.
        folder: its folder of segments.
    """
    url = services.limits_url
    if url is None:
        return None
    from tidemill.gateway.admission.desks import LimiterOptions
    from tidemill.gateway.admission.limits import Limiter
    from tidemill.ledger.accounts import load_driver

    load_driver(url)  # a snapshot may bring the first limit while requests are served

    def open_store(tenant: str) -> LeaseStore:
        from tidemill.ledger.accounts import open_lease_store

        return open_lease_store(url, Scope(project, tenant))

    return Limiter(worker, folder, open_store, LimiterOptions(unavailable=services.limits_unavailable))


def open_guardrails(services: BackingOptions) -> Guardrails | None:
    """Guardrails that are not built in, with those that are; ``None`` where the project names none.

    Raises:
        SettingsError: they cannot be loaded.
    """
    source = services.guardrails
    if source is None:
        return None
    from tidemill.gateway.guardrails import Guardrails, load_guardrails

    return Guardrails(load_guardrails(source.factory, Path(source.folder) if source.folder is not None else None))


class KeptAnswers:
    """The answers of all routes of a worker that may be given again.

    Args:
        services: what stands behind the worker.
        project: whose gateway.
        pool: connections, for the embedding model.
        resolve_secret: for its key.
    """

    def __init__(
        self, services: BackingOptions, *, project: str, pool: UpstreamPool, resolve_secret: Callable[[str], str]
    ) -> None:
        self._services = services
        self._project = project
        self._pool = pool
        self._resolve_secret = resolve_secret
        self._store: AnswerStore | None = None
        self._second: RedisTier | None = None
        self._similar: SimilarAnswers | None = None

    def of(self, route: Route, guardrails: str) -> AnswerCache | None:
        """The kept answers of a route; ``None`` where none are kept.

        Args:
            route: the route.
            guardrails: names all that answers have passed.

        Raises:
            UserError: what the route's policy needs cannot be had.
        """
        mode = route.policy.cache.mode
        if mode is CacheMode.OFF:
            return None
        from tidemill.gateway.cache import AnswerCache, AnswerStore

        if self._store is None:
            self._store = AnswerStore(max_bytes=self._services.cache_bytes)
        if self._second is None and self._services.cache_url is not None:
            from tidemill.gateway.cache.redis_tier import RedisTier

            self._second = RedisTier(self._services.cache_url, project=self._project)
        similar = self._index() if mode is CacheMode.SEMANTIC else None
        return AnswerCache(
            route,
            project=self._project,
            guardrails=guardrails,
            store=self._store,
            second=self._second,
            similar=similar,
        )

    def _index(self) -> SimilarAnswers | None:
        embeddings = self._services.embeddings
        if self._similar is None and embeddings is not None:
            from tidemill.gateway.cache import SimilarAnswers
            from tidemill.gateway.cache.embedding import PooledEmbedder

            reference = embeddings.api_key_ref
            api_key = self._resolve_secret(reference) if reference is not None else None
            embed = PooledEmbedder(self._pool, url=embeddings.url, model=embeddings.model, api_key=api_key)
            self._similar = SimilarAnswers(embed)
        elif embeddings is None:
            _log.warning("no embedding model is named, so the semantic cache finds the very same questions only")
        return self._similar

    def sweep(self, now_s: float) -> None:
        """Forget answers whose time is over. ``now_s`` is in seconds since 1970."""
        if self._store is not None:
            self._store.sweep(now_s)

    async def close(self) -> None:
        """Let go of what was opened."""
        if self._similar is not None:
            await self._similar.close()
        if self._second is not None:
            await self._second.close()


class ConversationDesk:
    """``/v1/responses`` and the store behind it.

    A store that cannot be opened leaves the rest of the worker serving: requests that need it get 503, and it is tried
    again.

    Args:
        services: what stands behind the worker.
        project: whose gateway.
        state_folder: where the workers of this host keep the key that seals conversations.
        resolve_secret: for a key of several hosts.
    """

    def __init__(
        self, services: BackingOptions, *, project: str, state_folder: Path, resolve_secret: Callable[[str], str]
    ) -> None:
        self._service = services.conversations
        self._project = project
        self._state_folder = state_folder
        self._resolve_secret = resolve_secret
        self._store: Conversations | None = None
        self._pages: Any = None

    def open(self) -> None:
        """Open the store if one is named and it is not open yet. Blocks; may fail silently but for the log."""
        service = self._service
        if service is None or self._store is not None:
            return
        from tidemill.gateway.conversations import Conversations, Retention, Vault
        from tidemill.ledger.conversations import open_conversation_rows
        from tidemill.telemetry.sealing import shared_secret

        try:
            if service.key_ref is None:
                key = shared_secret(self._state_folder / "conversations.key")
            else:
                key = _key_of(self._resolve_secret(service.key_ref))
            rows = open_conversation_rows(service.url)
        except (UserError, OSError) as error:
            _log.error("conversations cannot be kept at present: %s", error)
            return
        retention = Retention(service.retention_s, service.bytes_most, service.depth_most)
        self._store = Conversations(rows, Vault(key), retention)

    @property
    def missing(self) -> bool:
        """Whether a store is named but not open."""
        return self._service is not None and self._store is None

    def scope(self, key: ApiKey) -> ConversationScope:
        """Whose conversations a key's are: nobody else's."""
        from tidemill.ledger.conversations import ConversationScope

        return ConversationScope(self._project, key.tenant, key.name)

    def dialect(self, key: ApiKey) -> ResponsesDialect:
        """A new dialect for one request. While the store cannot be opened it refuses what needs the store, only."""
        from tidemill.gateway.dialects.responses import ResponsesDialect

        missing = _store_missing() if self.missing else None
        return ResponsesDialect(self._store, self.scope(key), missing=missing)

    async def page(self, request: Request, key: ApiKey) -> bytes:
        """The JSON of a page of kept responses or conversations.

        Raises:
            Refusal: there is none, or it cannot be served.
        """
        if self._pages is None:
            from tidemill.gateway.conversations.pages import ConversationPages
            from tidemill.gateway.dialects.responses import check_metadata
            from tidemill.gateway.dialects.responses_items import read_items

            if self.missing:
                raise _store_missing()
            self._pages = ConversationPages(self._store, read_items=read_items, read_metadata=check_metadata)
        body: bytes = await self._pages.answer(request.method, request.target, request.body, self.scope(key))
        return body

    async def sweep(self) -> None:
        """Delete what has been kept for long enough, and open what could not be opened."""
        if self.missing:
            await asyncio.to_thread(self.open)
        elif self._store is not None:
            try:
                await self._store.sweep()
            except Refusal as refusal:
                _log.warning("conversations were not swept: %s", refusal.message)

    async def close(self) -> None:
        """Let go of the store."""
        store, self._store = self._store, None
        if store is not None:
            await store.close()


def _store_missing() -> Refusal:
    text = "The store of conversations cannot be reached at present. Try again, or send 'store': false."
    return Refusal(503, text, "conversations_unavailable", retry_after_s=10.0)


def _key_of(text: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise InvalidInput("the key of conversations is not 64 hexadecimal digits")
    return key
