"""Conversations of a cluster in Redis: a hash per entry, a set per thread, expiry by Redis itself.

All keys of a scope share one hash slot, so that the scripts below run on a Redis cluster too. Needs Redis 7. What was
added is as durable as the server's own settings make it: with ``appendfsync everysec`` a crash of the server may lose
its last second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from tidemill.kernel import MissingExtra, Unavailable
from tidemill.ledger.conversations.rows import ConversationScope, Entry, Walk

_FIELDS: Final = ("entry_id", "thread", "created_at", "sealed", "parent", "start", "head")
_TIMEOUT_S: Final = 10.0

# KEYS: the scope's prefix. ARGV: expires_at, conversation or '', id, thread, created_at, sealed, parent, start, head.
_ADD: Final = """
local prefix, id, thread = KEYS[1], ARGV[3], ARGV[4]
local parent = ARGV[7]
if ARGV[2] ~= '' then
  local conversation = prefix .. 'e:' .. ARGV[2]
  if redis.call('EXISTS', conversation) == 0 then return 0 end
  parent = redis.call('HGET', conversation, 'head')
  redis.call('HSET', conversation, 'head', id)
end
redis.call('HSET', prefix .. 'e:' .. id, 'entry_id', id, 'thread', thread, 'created_at', ARGV[5], 'sealed', ARGV[6],
  'parent', parent, 'start', ARGV[8], 'head', ARGV[9])
local members = prefix .. 't:' .. thread
redis.call('SADD', members, id)
local at = math.max(tonumber(ARGV[1]), redis.call('PEXPIRETIME', members))
redis.call('PEXPIREAT', members, at)
for _, member in ipairs(redis.call('SMEMBERS', members)) do redis.call('PEXPIREAT', prefix .. 'e:' .. member, at) end
return 1
"""

# ARGV: id, depth_most, now in ms, then the fields wanted.
_WALK: Final = """
local id, found, stop = ARGV[1], {}, nil
while id and id ~= '' and #found < tonumber(ARGV[2]) do
  local entry = redis.call('HMGET', KEYS[1] .. 'e:' .. id, unpack(ARGV, 4))
  if not entry[1] then break end
  if stop == nil then
    stop = entry[6]
    if redis.call('PEXPIRETIME', KEYS[1] .. 't:' .. entry[2]) <= tonumber(ARGV[3]) then return {} end
  end
  found[#found + 1] = entry
  if stop ~= '' and id == stop then break end
  id = entry[5]
end
return found
"""

_REPLACE: Final = """
if redis.call('EXISTS', KEYS[1] .. 'e:' .. ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1] .. 'e:' .. ARGV[1], 'sealed', ARGV[2], 'start', ARGV[3])
return 1
"""

# ARGV: id, '1' to remove the whole thread.
_REMOVE: Final = """
local prefix, id = KEYS[1], ARGV[1]
local thread = redis.call('HGET', prefix .. 'e:' .. id, 'thread')
if not thread then return 0 end
local members = prefix .. 't:' .. thread
if ARGV[2] == '1' then
  for _, member in ipairs(redis.call('SMEMBERS', members)) do redis.call('DEL', prefix .. 'e:' .. member) end
  redis.call('DEL', members)
  return 1
end
redis.call('DEL', prefix .. 'e:' .. id)
redis.call('SREM', members, id)
return 1
"""


class RedisRows:
    """The back end.

    Args:
        url: ``redis://host:6379/0``, or ``rediss://`` for TLS.

    Raises:
        MissingExtra: the driver is not installed.
        Unavailable: the server does not answer.
    """

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ModuleNotFoundError as error:
            raise MissingExtra("A store of conversations in Redis", "redis") from error
        self._driver = redis
        self._client = redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        with self._explained():
            self._client.ping()
            self._add, self._walk, self._replace, self._remove = (
                self._client.register_script(text) for text in (_ADD, _WALK, _REPLACE, _REMOVE)
            )

    def add(
        self, scope: ConversationScope, entry: Entry, *, expires_at: float, conversation: str | None = None
    ) -> bool:
        """See ``ConversationRows.add``."""
        values: list[str | bytes | int] = [
            int(expires_at * 1000),
            conversation or "",
            entry.entry_id,
            entry.thread,
            repr(entry.created_at),
            entry.sealed,
            entry.parent or "",
            entry.start or "",
            entry.head or "",
        ]
        with self._explained():
            return bool(self._add(keys=[_prefix(scope)], args=values))

    def get(self, scope: ConversationScope, entry_id: str, *, now: float) -> Entry | None:
        """See ``ConversationRows.get``."""
        entries = self.walk(scope, entry_id, now=now, depth_most=1).entries
        return entries[0] if entries else None

    def walk(self, scope: ConversationScope, head: str, *, now: float, depth_most: int) -> Walk:
        """See ``ConversationRows.walk``."""
        with self._explained():
            found = self._walk(keys=[_prefix(scope)], args=[head, depth_most, int(now * 1000), *_FIELDS])
        return Walk.of([_entry(row) for row in found])

    def replace(self, scope: ConversationScope, entry: Entry) -> bool:
        """See ``ConversationRows.replace``."""
        with self._explained():
            return bool(self._replace(keys=[_prefix(scope)], args=[entry.entry_id, entry.sealed, entry.start or ""]))

    def remove(self, scope: ConversationScope, entry_id: str, *, whole_thread: bool = False) -> bool:
        """See ``ConversationRows.remove``."""
        with self._explained():
            return bool(self._remove(keys=[_prefix(scope)], args=[entry_id, "1" if whole_thread else "0"]))

    def sweep(self, _now: float, /) -> int:
        """Nothing to do: Redis deletes what has expired by itself."""
        return 0

    def close(self) -> None:
        """Close the connections. The object may not be used afterwards."""
        self._client.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._driver.RedisError as error:
            text = f"The store of conversations in Redis cannot be used: {error}."
            raise Unavailable(text, hint="Start the server, or mend the URL.") from error


def _prefix(scope: ConversationScope) -> str:
    # Between braces stands what Redis Cluster chooses the slot by.
    place = hashlib.blake2b(scope.about(""), digest_size=16).hexdigest()
    return f"tidemill:conversations:{{{place}}}:"


def _entry(row: list[Any]) -> Entry:
    entry_id, thread, created_at, sealed, parent, start, head = row
    return Entry(
        entry_id.decode(),
        thread.decode(),
        float(created_at),
        sealed,
        parent.decode() or None,
        start.decode() or None,
        head.decode() or None,
    )
