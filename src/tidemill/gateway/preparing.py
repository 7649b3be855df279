"""The steps between a request and its intent that some endpoints have: admission, history, guardrails, kept answers.

Made only for requests that have such a step; all others go straight to their intent. Each step is passed at once where
nothing has to be waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from tidemill.gateway.admission import Admissible, Ticket, Waiting
from tidemill.gateway.answers import Refusal
from tidemill.gateway.cache import CacheCall, CachedAnswer, CacheKey
from tidemill.gateway.payloads import AskedOptions
from tidemill.gateway.usage import images_in
from tidemill.kernel import UserError

if TYPE_CHECKING:
    from tidemill.gateway.app import Gateway
    from tidemill.gateway.exchange import Exchange
    from tidemill.gateway.guardrails import Blocked

_log = logging.getLogger(__name__)


def prepare_at_once(gateway: Gateway, exchange: Exchange) -> bool:
    """Take the steps of a request that is only admitted and looked for among kept answers, if none has to wait.

    Args:
        gateway: the worker's parts.
        exchange: the request; it is told the outcome.

    Returns:
        Whether they were taken; else nothing was, and a ``Preparation`` must take them.
    """
    junction, body = exchange.junction, exchange.body
    cache = junction.cache
    if cache is not None and cache.has_further:
        return False
    if junction.admitted:
        exchange.ticket = gateway.admission.enter_at_once(_admissible(exchange, body))
        if exchange.ticket is None:
            return False
    if cache is not None and not exchange.operation.form:
        key = cache.key(_cacheable(exchange, body))
        if key is not None:
            found = cache.look(key)
            if found is not None:
                exchange.kept_answer(found)
                return True
            exchange.cache_key = key
    exchange.prepared(body)
    return True


def _admissible(exchange: Exchange, body: bytes) -> Admissible:
    """What admission must know of a request, when it is sent with this body."""
    asked, key, junction = exchange.asked, exchange.key, exchange.junction
    return Admissible(
        key,
        junction.route,
        exchange.operation.name,
        key.priority or junction.policy.priority,
        len(body),
        asked.output_tokens_most,
        asked.answers_most,
        exchange.identity.span_id,
        junction.dearest,
        images_in(body),
    )


def _cacheable(exchange: Exchange, body: bytes) -> CacheCall:
    """What the cache must know of it."""
    asked, options = exchange.asked, exchange.asked.stream_options
    return CacheCall(
        exchange.operation.name,
        exchange.lane.release.release,
        exchange.key.name,
        body,
        asked.stream,
        asked.user,
        asked.temperature,
        isinstance(options, AskedOptions) and options.include_usage is True,
        asked.n or 1,
        exchange.request.cache_control,
    )


class Preparation:
    """One request on its way to its intent.

    Args:
        gateway: the worker's parts.
        exchange: the request; it is told the outcome.
    """

    __slots__ = ("_body", "_exchange", "_gateway", "_over", "_task", "_waiting")

    def __init__(self, gateway: Gateway, exchange: Exchange) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._body = exchange.body
        self._over = False
        self._waiting: Waiting | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take the first step."""
        exchange = self._exchange
        junction = exchange.junction
        if not junction.admitted:
            self._converse()
            return
        self._waiting = self._gateway.admission.enter(
            _admissible(exchange, exchange.body), self._admitted, self._refuse
        )

    def cancel(self) -> None:
        """The client has left, or the request's time is over."""
        self._over = True
        if self._waiting is not None:
            self._waiting.cancel()
        if self._task is not None:
            self._task.cancel()

    def _refuse(self, refusal: Refusal) -> None:
        if not self._over:
            self._over = True
            self._exchange.refused(refusal)

    def _admitted(self, ticket: Ticket) -> None:
        self._waiting = None
        if self._over:
            ticket.cancel()
            return
        self._exchange.ticket = ticket
        self._go_on(self._converse)

    def _go_on(self, step: Callable[[], None]) -> None:
        """Take a step that something else has called for, which must not suffer from a mistake in it."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            _log.exception("a request could not be prepared")
            self._exchange.faulted(error)

    # -- what was said before, and the window -----------------------------------------------------------------

    def _converse(self) -> None:
        exchange = self._exchange
        junction = exchange.junction
        if exchange.conversation is not None:
            from tidemill.gateway.inner import inner_ask

            self._await(
                exchange.conversation.prepare(
                    context_tokens=junction.context_tokens,
                    overflow=junction.policy.overflow,
                    ask=inner_ask(self._gateway, exchange),
                )
            )
        elif junction.context_tokens is not None and exchange.operation.name == "chat":
            self._fit(junction.context_tokens)
        else:
            self._guard()

    def _fit(self, context_tokens: int) -> None:
        from tidemill.gateway.conversations.context import surely_fits, window_of
        from tidemill.gateway.conversations.summaries import fit_chat
        from tidemill.gateway.inner import inner_ask

        exchange = self._exchange
        asked, key = exchange.asked, exchange.key
        policy = exchange.junction.policy
        window = window_of(context_tokens, policy.overflow, {"max_tokens": asked.output_tokens_most})
        if window is None or surely_fits(self._body, window):
            self._guard()
            return
        place = (self._gateway.project, key.tenant, key.name, asked.user or "", exchange.junction.route.endpoint)
        self._await(
            fit_chat(
                self._body,
                window,
                partition="\0".join(place).encode("utf-8", "surrogatepass"),
                ask=inner_ask(self._gateway, exchange),
                memory=self._gateway.summaries,
            )
        )

    def _await(self, steps: Coroutine[Any, Any, bytes]) -> None:
        self._task = self._gateway.spawn(self._take(steps), self._exchange)

    async def _take(self, steps: Coroutine[Any, Any, bytes]) -> None:
        try:
            self._body = await steps
        except Refusal as refusal:
            self._refuse(refusal)
            return
        except UserError as error:
            self._refuse(Refusal(400, str(error), "invalid_request"))
            return
        self._task = None
        if not self._over:
            self._guard()

    # -- guardrails -------------------------------------------------------------------------------------------

    def _guard(self) -> None:
        guarding = self._exchange.guarding
        if guarding is None:
            self._look()
        else:
            guarding.watch.before(self._body, self._allowed, self._blocked)

    def _allowed(self, body: bytes) -> None:
        self._body = body
        if not self._over:
            self._go_on(self._look)

    def _blocked(self, blocked: Blocked) -> None:
        if not self._over:
            self._over = True
            self._exchange.blocked(blocked)

    # -- answers that were kept -------------------------------------------------------------------------------

    def _look(self) -> None:
        exchange = self._exchange
        cache = exchange.junction.cache
        if cache is None or exchange.conversation is not None or exchange.operation.form:
            self._ready()
            return
        key = cache.key(_cacheable(exchange, self._body))
        if key is None:
            self._ready()
            return
        found = cache.look(key)
        if found is None and cache.has_further:
            self._task = cache.look_further(key, lambda found: self._go_on(lambda: self._looked(key, found)))
        else:
            self._looked(key, found)

    def _looked(self, key: CacheKey, found: CachedAnswer | None) -> None:
        self._task = None
        if self._over:
            return
        if found is None:
            self._exchange.cache_key = key
            self._ready()
        else:
            self._over = True
            self._exchange.kept_answer(found)

    def _ready(self) -> None:
        exchange = self._exchange
        ticket = exchange.ticket
        if ticket is not None and len(self._body) > len(exchange.body) and ticket.attributes:
            self._grow(ticket)
            return
        self._over = True
        exchange.prepared(self._body)

    def _grow(self, ticket: Ticket) -> None:
        """What was said before, or a guardrail, has made the request longer than it was let in with."""
        exchange, admission = self._exchange, self._gateway.admission
        before = admission.needs(_admissible(exchange, exchange.body))
        after = admission.needs(_admissible(exchange, self._body))
        requests, tokens, money = (more - less for more, less in zip(after, before, strict=True))

        def grown(more: Ticket) -> None:
            self._waiting = None
            exchange.ticket = more
            self._over = True
            exchange.prepared(self._body)

        self._waiting = ticket.more(grown, self._refuse, (requests, tokens, money))
