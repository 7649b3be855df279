"""Answers that may be given again: which requests ask for one, which answers are kept, and how they are found.

Two steps. ``look`` is the exact cache of this worker and answers at once. ``look_further`` asks what takes time: the
second tier that the workers of a cluster share, then the semantic cache; it answers within a stated time, or misses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import time
from typing import Any, Final, Protocol

import msgspec

from tidemill.gateway.cache.keys import Partition, Question, exact_digest, read_question
from tidemill.gateway.cache.replay import stream_of, whole_of
from tidemill.gateway.cache.similar import SimilarAnswers
from tidemill.gateway.cache.store import AnswerStore, Kept
from tidemill.gateway.usage import Usage
from tidemill.kernel import ReleaseRoute, Route
from tidemill.kernel.routing_policy import CacheMode
from tidemill.telemetry.records import AttributeValue

CACHED_OPERATIONS: Final = frozenset(("chat", "text_completion", "embeddings", "moderation"))
_SAMPLED: Final = frozenset(("chat", "text_completion"))
_COMPLETE: Final = frozenset(("stop", "length"))
_STOPPED: Final = ("stop",)
_DEFAULT_TEMPERATURE: Final = 1.0  # OpenAI's, where a request names none
_SEEDS_MOST: Final = 4096
_EVENT_STREAM: Final = b"text/event-stream"

_answer: Final = msgspec.json.Decoder(dict[str, Any])


class CacheCall(msgspec.Struct, gc=False):
    """What the cache needs to know of a request.

    Args:
        operation: what is asked; only those of ``CACHED_OPERATIONS`` are ever kept.
        release: digest of the release that would answer.
        key_name: the API key's name.
        body: the pivot request, after the guardrails before the call.
        stream, user, temperature: as the body has them.
        include_usage: its ``stream_options.include_usage``.
        choices: its ``n``.
        cache_control: the request's header of that name.
    """

    operation: str
    release: str
    key_name: str
    body: bytes
    stream: bool | None = None
    user: str | None = None
    temperature: float | None = None
    include_usage: bool = False
    choices: int = 1
    cache_control: bytes | None = None


class CacheKey(msgspec.Struct, gc=False):
    """Where a request's answer is looked for and kept. Of one request: hand it from ``look`` to ``keep``.

    Args:
        digest: 32 bytes; see ``keys``.
        seed: of the partition.
        call: the request.
        fresh: a kept answer must not be given (``no-cache``); the new one is kept in its place.
        max_age_s: the oldest answer the client takes.
        question: what a semantic look-up compares, once it was read.
    """

    digest: bytes
    seed: bytes
    call: CacheCall
    fresh: bool = False
    max_age_s: float | None = None
    question: Question | None = None
    question_read: bool = False


class CachedAnswer(msgspec.Struct, frozen=True, gc=False):
    """A kept answer, in the form the request asks for.

    Args:
        body: the whole answer, or all events of a stream.
        content_type: of ``body``.
        trace_id: of the request that was answered so first.
        age_s: how long ago.
        usage: what that request used; this one uses ``NO_USAGE``.
        similarity: of the questions, where they are not the same.
    """

    body: bytes
    content_type: bytes
    trace_id: str
    age_s: float
    usage: Usage | None
    similarity: float | None = None

    def attributes(self) -> dict[str, AttributeValue]:
        """What the span of the request says about it."""
        found: dict[str, AttributeValue] = {
            "tidemill.cache": "hit" if self.similarity is None else "similar",
            "tidemill.cached_trace_id": self.trace_id,
            "tidemill.cache_age_s": round(self.age_s, 3),
        }
        if self.similarity is not None:
            found["tidemill.similarity"] = round(self.similarity, 4)
        return found

    def header(self) -> bytes:
        """Header lines for the client: that it is a kept answer, and how old (RFC 9111, section 5.1)."""
        word = b"hit" if self.similarity is None else b"similar"
        return b"x-tidemill-cache: %b\r\nage: %d\r\n" % (word, self.age_s)


class SecondTier(Protocol):
    """Exact answers that several workers share."""

    async def get(self, tenant: str, digest: bytes) -> Kept | None:
        """The answer under a key; ``None`` if there is none, or the tier does not answer in time."""
        ...

    def put(self, tenant: str, digest: bytes, kept: Kept) -> None:
        """Keep an answer, soon; whether it succeeds is nobody's concern."""
        ...


class AnswerCache:
    """The answers of one route that may be given again. Light: all routes of a worker share the stores.

    Args:
        route: whose answers; its policy decides.
        project: whose route.
        guardrails: digest of the guardrails that answers have passed; see ``guardrails.Plan.digest``.
        store: this worker's answers.
        second: answers of all workers; ``None`` embedded.
        similar: this worker's semantic index; ``None`` where no embedding model is set.
        now: seconds since 1970.
    """

    def __init__(
        self,
        route: Route,
        *,
        project: str,
        guardrails: str,
        store: AnswerStore,
        second: SecondTier | None = None,
        similar: SimilarAnswers | None = None,
        now: Callable[[], float] = time,
    ) -> None:
        policy = route.policy.cache
        self._policy = policy
        self._route = route
        self._project = project
        self._guardrails = guardrails
        self._store = store
        self._second = second
        self._similar = similar if policy.mode is CacheMode.SEMANTIC else None
        self._now = now
        self._models = {release.release: _models(release) for release in route.releases}
        self._seeds: dict[tuple[str, str, str, str | None], bytes] = {}
        self.has_further = self._second is not None or self._similar is not None
        """Whether ``look_further`` can find what ``look`` does not."""

    def key(self, call: CacheCall) -> CacheKey | None:
        """Where this request's answer is kept; ``None`` if it may neither be looked for nor kept."""
        if call.operation in _SAMPLED:
            temperature = call.temperature
            if (_DEFAULT_TEMPERATURE if temperature is None else temperature) > self._policy.max_temperature:
                return None
        elif call.operation not in CACHED_OPERATIONS:
            return None
        user = call.user
        if self._policy.per_user:
            place = (call.operation, call.release, call.key_name, user)
            seed = self._seeds.get(place) or self._seed(place)
            digest = exact_digest(seed, call.body, stream=call.stream, user=user, per_user=True)
        else:
            place = (call.operation, call.release, "", None)
            seed = self._seeds.get(place) or self._seed(place)
            digest = exact_digest(seed, call.body, stream=call.stream, user=user, per_user=False)
        if call.cache_control is None:
            return CacheKey(digest, seed, call)
        return _controlled(CacheKey(digest, seed, call), call.cache_control)

    def look(self, key: CacheKey) -> CachedAnswer | None:
        """This worker's answer to the very same request."""
        if key.fresh:
            return None
        if key.digest not in self._store:
            return None
        now_s = self._now()
        kept = self._store.get(key.digest, now_s)
        return None if kept is None else self._give(key, kept, now_s)

    def look_further(self, key: CacheKey, then: Callable[[CachedAnswer | None], None]) -> asyncio.Task[None] | None:
        """Look where it takes time, then call ``then``, always exactly once unless the task is cancelled.

        Args:
            key: of a request for which ``look`` found nothing.
            then: told what was found.

        Returns:
            A task to cancel when the client leaves; ``None`` when there is nowhere to look and ``then`` was called.
        """
        if key.fresh or not self.has_further:
            then(None)
            return None
        return asyncio.get_running_loop().create_task(self._look_further(key, then))

    def keep(
        self,
        key: CacheKey,
        *,
        status: int,
        streamed: bool,
        body: bytes,
        finish_reasons: tuple[str, ...],
        trace_id: str,
        usage: Usage | None,
    ) -> bool:
        """Keep an answer that went to a client as it should, if it is safe to give again. Returns whether it is kept.

        Args:
            key: of its request.
            status: HTTP status.
            streamed: whether ``body`` holds the events of a stream.
            body: the pivot answer, complete: guardrails passed, ``[DONE]`` reached.
            finish_reasons: one for each choice.
            trace_id: of its request.
            usage: what it used.
        """
        call = key.call
        if status != 200 or not self._keepable(call, body, finish_reasons):
            return False
        now_s = self._now()
        kept = Kept(body, streamed, now_s, now_s + self._policy.ttl_s, trace_id, usage)
        if not self._store.put(key.digest, kept):
            return False
        if not self.has_further:
            return True
        if self._second is not None:
            self._second.put(self._route.tenant, key.digest, kept)
        question = self._question(key)
        if self._similar is not None and question is not None:
            self._similar.add(question, key.digest)
        return True

    def _question(self, key: CacheKey) -> Question | None:
        if self._similar is not None and not key.question_read and key.call.operation == "chat":
            key.question = read_question(key.seed, key.call.body, most_chars=self._similar.most_chars)
            key.question_read = True
        return key.question

    def _seed(self, place: tuple[str, str, str, str | None]) -> bytes:
        operation, release, key_name, user = place
        # The lengths make the pair unambiguous, and no user is not the user "".
        scope = "" if not self._policy.per_user else f"{len(key_name)}:{key_name}/{'-' if user is None else '=' + user}"
        models = self._models.get(release, "")
        route = self._route
        seed = Partition(
            self._project, route.tenant, scope, route.endpoint, operation, release, models, self._guardrails
        ).seed()
        if len(self._seeds) >= _SEEDS_MOST:
            self._seeds.clear()
        self._seeds[place] = seed
        return seed

    def _keepable(self, call: CacheCall, body: bytes, finish_reasons: tuple[str, ...]) -> bool:
        if call.operation not in _SAMPLED:
            return True
        if (finish_reasons != _STOPPED or call.choices > 1) and (
            len(finish_reasons) < max(1, call.choices) or not _COMPLETE.issuperset(finish_reasons)
        ):
            return False
        # What a tool call sets off must not be set off again because another client asked the same. Its calls are a
        # list inside the list of choices; looking for one sign is a tenth of the cost.
        if body.find(b"[", body.find(b"[") + 1) < 0:
            return True
        return b'"tool_calls"' not in body or not _calls_tools(body)

    def _give(self, key: CacheKey, kept: Kept, now_s: float, similarity: float | None = None) -> CachedAnswer | None:
        age_s = max(0.0, now_s - kept.kept_at)
        if key.max_age_s is not None and age_s > key.max_age_s:
            return None
        call = key.call
        body: bytes | None = kept.body
        if call.stream:
            # Kept events may hold a usage event that this client did not ask for, or lack one that it did.
            whole = whole_of(kept.body) if kept.streamed else kept.body
            body = stream_of(whole, include_usage=call.include_usage) if whole is not None else None
        elif kept.streamed:
            body = whole_of(kept.body)
        if body is None:
            self._store.drop(key.digest)
            return None
        content_type = _EVENT_STREAM if call.stream else b"application/json"
        return CachedAnswer(body, content_type, kept.trace_id, age_s, kept.usage, similarity)

    async def _look_further(self, key: CacheKey, then: Callable[[CachedAnswer | None], None]) -> None:
        then(await self._found_further(key))

    async def _found_further(self, key: CacheKey) -> CachedAnswer | None:
        if self._second is not None:
            kept = await self._second.get(self._route.tenant, key.digest)
            now_s = self._now()
            if kept is not None and kept.expires_at > now_s:
                self._store.put(key.digest, kept)
                return self._give(key, kept, now_s)
        question = self._question(key)
        if self._similar is None or question is None:
            return None
        found = await self._similar.find(question, self._policy.similarity)
        if found is None:
            return None
        digest, similarity = found
        now_s = self._now()
        kept = self._store.get(digest, now_s)
        return None if kept is None else self._give(key, kept, now_s, similarity)


def _models(release: ReleaseRoute) -> str:
    """The models that can answer for a release, in an order of their own."""
    names = sorted({f"{target.dialect}:{target.model or ''}" for target in release.targets})
    return "\n".join(names)


def _calls_tools(body: bytes) -> bool:
    """Whether an answer, whole or as events, holds a call of a tool; what cannot be read might."""
    try:
        choices = _answer.decode(body if body[:1] == b"{" else whole_of(body) or b"").get("choices")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True
    messages = [choice.get("message") for choice in choices or () if isinstance(choice, dict)]
    return any(isinstance(message, dict) and message.get("tool_calls") for message in messages)


def _controlled(key: CacheKey, header: bytes) -> CacheKey | None:
    """Follow the request's ``cache-control`` (RFC 9111, section 5.2.1): no-store, no-cache and max-age."""
    for part in header.lower().split(b","):
        name, _, value = part.strip().partition(b"=")
        if name == b"no-store":
            return None
        if name == b"no-cache":
            key.fresh = True
        elif name == b"max-age" and value.strip(b'" ').isdigit():
            key.max_age_s = float(value.strip(b'" ')[:9])
    return key
