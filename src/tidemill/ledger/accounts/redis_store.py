"""Accounts in Redis, for a cluster that wants no database on the way of its limits.

Redis must keep what it has: with ``appendonly yes`` and ``maxmemory-policy noeviction``. One that forgets begins its
windows anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final

from tidemill.kernel import Clock, InvalidInput, Limit, MissingExtra, Scope, Unavailable
from tidemill.ledger.accounts import redis_scripts as scripts
from tidemill.ledger.accounts.charges import ChargedRequest
from tidemill.ledger.accounts.values import (
    MICROSECONDS,
    Ask,
    Grant,
    LeaseReport,
    SettleReport,
    Shortage,
    Standing,
    account_of,
    quanta,
    shortage,
    standing,
    window_us,
)

_TIMEOUT_S: Final = 5.0
_CHUNK: Final = 200


class RedisLeaseStore:
    """Accounts of one scope in Redis. See ``LeaseStore``.

    Args:
        url: ``redis://host:port/number``, ``rediss://…`` or ``unix://…``.
        scope: whose accounts.
        clock: ``None`` takes the server's time.

    Raises:
        InvalidInput: not such a URL.
        Unavailable: the server does not answer.
        MissingExtra: redis-py is not installed.
    """

    def __init__(self, url: str, scope: Scope, clock: Clock | None = None) -> None:
        try:
            import redis
        except ModuleNotFoundError as error:
            raise MissingExtra("Limits kept in Redis", "redis") from error
        self._errors: Final = redis.RedisError
        self._clock = clock
        self._prefix = f"tidemill:{{{scope.project}/{scope.tenant}}}:limits:"
        try:
            self._client: Any = redis.Redis.from_url(
                url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, decode_responses=True
            )
        except ValueError as error:
            raise InvalidInput(f"'{url}' is not a URL of Redis: {error}") from error
        shown = self._client.get_connection_kwargs()
        self._where = f"{shown.get('host') or shown.get('path')}:{shown.get('port', '')}".rstrip(":")
        register = self._client.register_script
        self._grant = register(scripts.GRANT)
        self._report = register(scripts.REPORT)
        self._settle = register(scripts.SETTLE)
        self._expired = register(scripts.EXPIRED)
        self._close = register(scripts.CLOSE)
        self._tidy = register(scripts.TIDY)
        self._standing = register(scripts.STANDING)
        try:
            with self._explained():
                self._client.ping()
        except BaseException:
            self.close()
            raise

    def grant(self, asks: Sequence[Ask]) -> list[Grant | Shortage]:
        """See ``LeaseStore.grant``."""
        wanted = [
            (
                ask.lease,
                ask.limit.limit_id,
                ask.holder,
                ask.need,
                ask.want,
                ask.promised,
                quanta(ask.limit.unit, ask.limit.amount),
                window_us(ask.limit),
                round(ask.ttl_s * MICROSECONDS),
            )
            for ask in asks
        ]
        now, *answers = self._run(self._grant, chain.from_iterable(wanted))
        return [_answer(ask, answer, int(now)) for ask, answer in zip(asks, answers, strict=True)]

    def report(self, reports: Sequence[LeaseReport]) -> None:
        """See ``LeaseStore.report``."""
        said = [
            (
                one.lease,
                one.returned,
                one.idle,
                "" if one.ttl_s is None else round(one.ttl_s * MICROSECONDS),
                "" if one.used is None else one.used,
                round(one.last_used_at_s * MICROSECONDS),
            )
            for one in reports
        ]
        if said:
            self._run(self._report, chain.from_iterable(said))

    def settle(self, requests: Sequence[ChargedRequest]) -> SettleReport:
        """See ``LeaseStore.settle``. A request is one atomic step; a batch may be cut between two by a crash."""
        fresh = unleased = 0
        for start in range(0, len(requests), _CHUNK):
            arguments: list[Any] = []
            for one in requests[start : start + _CHUNK]:
                arguments += [one.request_id, round(one.admitted_at_s * MICROSECONDS), len(one.charges)]
                for charge in one.charges:
                    arguments += [charge.lease, account_of(charge.lease), charge.owed]
            settled, unknown = self._run(self._settle, arguments)
            fresh += settled
            unleased += unknown
        return SettleReport(fresh, len(requests) - fresh, unleased)

    def expired(self, grace_s: float) -> Mapping[str, float]:
        """See ``LeaseStore.expired``."""
        now, *found = self._run(self._expired, [round(grace_s * MICROSECONDS)])
        last: dict[str, float] = {}
        for holder, until in zip(found[::2], found[1::2], strict=True):
            ago_s = (int(now) - int(until)) / MICROSECONDS
            last[holder] = min(ago_s, last.get(holder, ago_s))
        return last

    def close_expired(self, holders: Collection[str], grace_s: float) -> int:
        """See ``LeaseStore.close_expired``."""
        return int(self._run(self._close, [round(grace_s * MICROSECONDS), *holders]))

    def tidy(self, remember_s: float) -> None:
        """See ``LeaseStore.tidy``. Finished leases and old spending expire by themselves."""
        self._run(self._tidy, [round(remember_s * MICROSECONDS)])

    def standing(self, limits: Iterable[Limit]) -> list[Standing]:
        """See ``LeaseStore.standing``."""
        asked = list(limits)
        arguments = chain.from_iterable((limit.limit_id, window_us(limit)) for limit in asked)
        found = [int(value) for value in self._run(self._standing, arguments)]
        return [
            standing(limit, spent, leased) for limit, spent, leased in zip(asked, found[::2], found[1::2], strict=True)
        ]

    def close(self) -> None:
        """See ``LeaseStore.close``."""
        self._client.close()

    def _run(self, script: Any, arguments: Iterable[Any]) -> Any:
        now = "" if self._clock is None else round(self._clock.now().timestamp() * MICROSECONDS)
        with self._explained():
            return script(keys=[self._prefix], args=[now, *arguments])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise Unavailable(
                f"Redis at {self._where} does not answer: {error}",
                hint="Start it, or mend the URL of the limits' store.",
            ) from error


def _answer(ask: Ask, answer: Sequence[Any], now_us: int) -> Grant | Shortage:
    if answer[0]:
        return Grant(ask.lease, int(answer[0]), now_us / MICROSECONDS)
    _, leased, idle, flat = answer
    buckets = zip(map(int, flat[::2]), map(int, flat[1::2]), strict=True)
    return shortage(ask, buckets=buckets, leased=int(leased), idle=int(idle), now_us=now_us)
