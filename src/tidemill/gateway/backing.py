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
from tidemill.kernel import InvalidInput, Scope, UserError

if TYPE_CHECKING:
    from tidemill.gateway.admission.limits import Limiter
    from tidemill.gateway.conversations import Conversations
    from tidemill.gateway.dialects.responses import ResponsesDialect
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

    def open_store(tenant: str) -> LeaseStore:
        from tidemill.ledger.accounts import open_lease_store

        return open_lease_store(url, Scope(project, tenant))

    return Limiter(worker, folder, open_store, LimiterOptions(unavailable=services.limits_unavailable))


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
        """A new dialect for one request.

        Raises:
            Refusal: 503 while the store cannot be opened.
        """
        from tidemill.gateway.dialects.responses import ResponsesDialect

        self._check()
        return ResponsesDialect(self._store, self.scope(key))

    async def page(self, request: Request, key: ApiKey) -> bytes:
        """The JSON of a page of kept responses or conversations.

        Raises:
            Refusal: there is none, or it cannot be served.
        """
        if self._pages is None:
            from tidemill.gateway.conversations.pages import ConversationPages
            from tidemill.gateway.dialects.responses import check_metadata
            from tidemill.gateway.dialects.responses_items import read_items

            self._check()
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

    def _check(self) -> None:
        if self.missing:
            text = "The store of conversations cannot be reached at present. Try again, or send 'store': false."
            raise Refusal(503, text, "conversations_unavailable", retry_after_s=10.0)


def _key_of(text: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise InvalidInput("the key of conversations is not 64 hexadecimal digits")
    return key
