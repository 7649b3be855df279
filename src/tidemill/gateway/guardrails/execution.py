"""Runs guardrails: one request's stages in order, with timeouts, bounded concurrency and a record of every ruling.

Nothing here knows HTTP. ``Watch`` is told what came and calls back with what may go on, or with ``Blocked``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import msgspec

from tidemill.gateway.answers import Refusal, error_body
from tidemill.gateway.guardrails.guardrail import (
    PASSED,
    Guardrail,
    OnBlock,
    OnError,
    Ruling,
    RulingOrLater,
    Stage,
)
from tidemill.gateway.guardrails.pivot import PivotAnswer, PivotRequest
from tidemill.kernel import Verdict
from tidemill.telemetry.records import AttributeValue

_log = logging.getLogger(__name__)

_STATUS: Final = 400  # not 5xx: clients would try again, and pay again
_CODE: Final = "content_filter"
_OUTCOMES: Final = ("passed", "rewritten", "failed_open", "blocked", "failed")  # from harmless to worst
_encode: Final = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Blocked:
    """What was blocked, by whom and why.

    Args:
        name: of the guardrail.
        stage: when.
        verdict: why.
        content: what was blocked, as it was: the request's body, or the answer's text; for the trace alone.
        on_block: what the client is to get.
        message: what it is told.
    """

    name: str
    stage: Stage
    verdict: Verdict
    content: str
    on_block: OnBlock
    message: str

    def refusal(self) -> Refusal:
        """The error a client gets where nothing has left yet."""
        return Refusal(_STATUS, self.message, _CODE)

    def answer(self, *, model: str, answer_id: str, created_s: int) -> bytes:
        """A chat completion that refuses, for ``OnBlock.REFUSAL`` (OpenAI's shape of a refusal).

        Args:
            model: the public model name.
            answer_id: its id, e.g. of the trace.
            created_s: Unix time.
        """
        message = {"role": "assistant", "content": None, "refusal": self.message}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _CODE}
        return _encode(
            {
                "id": f"chatcmpl-{answer_id}",
                "object": "chat.completion",
                "created": created_s,
                "model": model,
                "choices": [choice],
            }
        )

    def event(self) -> bytes:
        """The event that ends a stream which has begun; no ``[DONE]`` follows it."""
        return b"data: %b\n\n" % error_body(_STATUS, self.message, _CODE)


class Places:
    """How many rulings may be awaited at once, over all requests of a worker.

    Args:
        most: at once.
        queue: further ones that may wait for a place; beyond them a ruling fails at once.
    """

    def __init__(self, most: int = 64, queue: int = 256) -> None:
        self.taken = 0
        self._most = most
        self._queue = queue
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait for a place, first come first served.

        Raises:
            TimeoutError: too many wait already.
        """
        if self.taken < self._most:
            self.taken += 1
            return
        if len(self._waiting) >= self._queue:
            raise TimeoutError(f"{self.taken} rulings are awaited and {len(self._waiting)} more wait for a place")
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.free()  # it was handed over just now
            else:
                self._waiting.remove(place)
            raise

    def free(self) -> None:
        """Hand a place to whoever waits longest."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.taken -= 1


class Plan:
    """The guardrails of a route, in order, sorted by stage once.

    Args:
        guardrails: in the route's order.
        places: shared by all plans of a worker.
    """

    def __init__(self, guardrails: tuple[Guardrail, ...], places: Places) -> None:
        self.guardrails = guardrails
        self.places = places
        self.before = self._at(Stage.BEFORE)
        self.parallel = self._at(Stage.PARALLEL)
        self.stream = self._at(Stage.STREAM)
        self.after = self._at(Stage.AFTER)
        self.after_alone = tuple(one for one in self.after if Stage.STREAM not in one.stages)
        """Those that can rule on whole answers only: before them a stream is held back to its end."""
        self.guards_streams = bool(self.stream or self.after_alone)
        hasher = sha256()
        for one in guardrails:
            for part in (one.name, one.fingerprint):
                hasher.update(b"%d:%b" % (len(part.encode()), part.encode()))
        self.digest = hasher.hexdigest()
        """Names all that rulings depend on; part of the key under which answers are kept."""

    def watch(self, operation: str) -> Watch:
        """Begin to guard a request."""
        return Watch(self, operation)

    def _at(self, stage: Stage) -> tuple[Guardrail, ...]:
        return tuple(one for one in self.guardrails if stage in one.stages)


class Watch:
    """One request under guard. Every callback is called at most once, and never after ``cancel``.

    Args:
        plan: the route's guardrails.
        operation: what is asked, e.g. ``chat``.
    """

    def __init__(self, plan: Plan, operation: str) -> None:
        self.plan = plan
        self.operation = operation
        self.blocked: Blocked | None = None
        """What was blocked, from then on."""
        self.attributes: dict[str, AttributeValue] = {}
        """For the span: ``tidemill.guardrail.NAME`` with the worst outcome, and the verdict of what blocked."""
        self._request: PivotRequest | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = False
        self._unruled = 0  # parallel guardrails that have not ruled
        self._gate: Callable[[], None] | None = None

    # -- the request ------------------------------------------------------------------------------------------

    def before(self, body: bytes, allowed: Callable[[bytes], None], blocked: Callable[[Blocked], None]) -> None:
        """Rule on the request before anything is spent on it.

        Args:
            body: the pivot request.
            allowed: called with the body to go on with, at once if no guardrail awaits anything.
            blocked: called instead.
        """
        self._request = PivotRequest(self.operation, body)
        self._chain(self.plan.before, allowed, blocked)

    def _chain(
        self,
        guardrails: tuple[Guardrail, ...],
        allowed: Callable[[bytes], None],
        blocked: Callable[[Blocked], None],
    ) -> None:
        """Ask one guardrail after the other, each about what those before it left of the request."""
        request = self._request
        assert request is not None
        if not guardrails:
            allowed(request.body)
            return
        guardrail = guardrails[0]

        def ruled(ruling: Ruling) -> None:
            if not ruling.verdict.value:
                text = request.body.decode("utf-8", "replace")
                blocked(self._block(guardrail, Stage.BEFORE, ruling.verdict, text))
                return
            if ruling.body is not None:
                self._request = PivotRequest(self.operation, ruling.body)
            self._chain(guardrails[1:], allowed, blocked)

        self._ask(guardrail, Stage.BEFORE, lambda: guardrail.before(request), ruled)

    def alongside(self, body: bytes, blocked: Callable[[Blocked], None]) -> None:
        """Start the guardrails that rule while the upstream works; ``clear`` says when they have.

        Args:
            body: the pivot request as the upstream gets it.
            blocked: called at once with the first block; the upstream call is to be cancelled.
        """
        request = PivotRequest(self.operation, body)
        self._request = request
        self._unruled = len(self.plan.parallel)
        for guardrail in self.plan.parallel:
            if self.blocked is not None:
                return
            self._start_parallel(guardrail, request, blocked)

    def _start_parallel(self, guardrail: Guardrail, request: PivotRequest, blocked: Callable[[Blocked], None]) -> None:
        def ruled(ruling: Ruling) -> None:
            if self.blocked is not None:
                return
            if not ruling.verdict.value:
                text = request.body.decode("utf-8", "replace")
                blocked(self._block(guardrail, Stage.PARALLEL, ruling.verdict, text))
                return
            self._unruled -= 1
            if not self._unruled and self._gate is not None:
                gate, self._gate = self._gate, None
                gate()

        self._ask(guardrail, Stage.PARALLEL, lambda: guardrail.parallel(request), ruled)

    def clear(self, then: Callable[[], None]) -> None:
        """Call ``then`` when all parallel guardrails have passed the request: at once, later, or after a block never.

        No byte of an answer may leave before.
        """
        if self.blocked is not None or self._over:
            return
        if self._unruled:
            self._gate = then
        else:
            then()

    # -- the answer -------------------------------------------------------------------------------------------

    def after(self, body: bytes, allowed: Callable[[bytes], None], blocked: Callable[[Blocked], None]) -> None:
        """Rule on a whole answer.

        Args:
            body: the pivot answer.
            allowed: called with the answer that may leave.
            blocked: called instead.
        """
        self._review(PivotAnswer(self.operation, body, self._request), self.plan.after, allowed, blocked)

    def after_stream(self, body: bytes, allowed: Callable[[bytes], None], blocked: Callable[[Blocked], None]) -> None:
        """Likewise on the whole of a stream, by those that have not seen it come; for ``StreamGuard``."""
        self._review(PivotAnswer(self.operation, body, self._request), self.plan.after_alone, allowed, blocked)

    def _review(
        self,
        answer: PivotAnswer,
        guardrails: tuple[Guardrail, ...],
        allowed: Callable[[bytes], None],
        blocked: Callable[[Blocked], None],
    ) -> None:
        if not guardrails:
            allowed(answer.body)
            return
        guardrail = guardrails[0]

        def ruled(ruling: Ruling) -> None:
            if not ruling.verdict.value:
                text = answer.body.decode("utf-8", "replace")
                blocked(self._block(guardrail, Stage.AFTER, ruling.verdict, text))
                return
            rest = answer
            if ruling.body is not None:
                rest = PivotAnswer(self.operation, ruling.body, self._request)
            self._review(rest, guardrails[1:], allowed, blocked)

        self._ask(guardrail, Stage.AFTER, lambda: guardrail.after(answer), ruled)

    def ask_stream(
        self,
        guardrail: Guardrail,
        ask: Callable[[], RulingOrLater],
        then: Callable[[Ruling], None],
    ) -> None:
        """Ask about a stretch of a stream; for ``StreamGuard``."""
        self._ask(guardrail, Stage.STREAM, ask, then)

    def block_stream(self, guardrail: Guardrail, verdict: Verdict, text: str) -> Blocked:
        """Note that a stream was blocked; for ``StreamGuard``."""
        return self._block(guardrail, Stage.STREAM, verdict, text)

    def cancel(self) -> None:
        """Nobody waits for rulings any more: the client has left, or the request was answered otherwise."""
        self._over = True
        self._gate = None
        for task in tuple(self._tasks):
            task.cancel()

    # -- one ruling -------------------------------------------------------------------------------------------

    def _ask(
        self,
        guardrail: Guardrail,
        stage: Stage,
        ask: Callable[[], RulingOrLater],
        then: Callable[[Ruling], None],
    ) -> None:
        if self._over:
            return
        try:
            ruling = ask()
        except Exception as error:  # noqa: BLE001 - whatever a guardrail raises, its policy decides
            then(self._failed(guardrail, stage, error))
            return
        if isinstance(ruling, Ruling):
            then(self._noted(guardrail, stage, ruling))
            return
        task = asyncio.get_running_loop().create_task(self._await(guardrail, stage, ruling, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _await(
        self, guardrail: Guardrail, stage: Stage, later: Awaitable[Ruling], then: Callable[[Ruling], None]
    ) -> None:
        places = self.plan.places
        try:
            async with asyncio.timeout(guardrail.policy.timeout_s):
                try:
                    await places.take()
                except BaseException:
                    _close(later)
                    raise
                try:
                    ruling = await later
                finally:
                    places.free()
            noted = self._noted(guardrail, stage, ruling)
        except Exception as error:  # noqa: BLE001 - as above
            noted = self._failed(guardrail, stage, error)
        if not self._over:
            then(noted)

    def _noted(self, guardrail: Guardrail, stage: Stage, ruling: Ruling) -> Ruling:
        if not isinstance(ruling, Ruling) or not isinstance(ruling.verdict.value, bool):
            return self._failed(guardrail, stage, TypeError(f"gave {ruling!r:.80} where True or False was due"))
        if ruling.verdict.value:
            self._note(guardrail.name, "rewritten" if ruling.body is not None or ruling.edits else "passed")
        return ruling

    def _failed(self, guardrail: Guardrail, stage: Stage, error: Exception) -> Ruling:
        what = "gave no verdict in time" if isinstance(error, TimeoutError) else f"failed: {type(error).__name__}"
        _log.warning("guardrail %s (%s) %s: %s", guardrail.name, stage, what, error)
        if guardrail.policy.on_error is OnError.PASS:
            self._note(guardrail.name, "failed_open")
            return PASSED
        self._note(guardrail.name, "failed")
        return Ruling(Verdict(False, f"The guardrail '{guardrail.name}' {what}."))

    def _block(self, guardrail: Guardrail, stage: Stage, verdict: Verdict, content: str) -> Blocked:
        name, policy = guardrail.name, guardrail.policy
        self._note(name, "blocked")
        self.attributes[f"tidemill.guardrail.{name}.stage"] = stage.value
        self.attributes[f"tidemill.guardrail.{name}.verdict"] = _encode(verdict.as_json()).decode()
        side = "answer" if stage in {Stage.STREAM, Stage.AFTER} else "request"
        message = policy.message or f"The {side} was withheld by the guardrail '{name}'."
        self.blocked = Blocked(name, stage, verdict, content, policy.on_block, message)
        return self.blocked

    def _note(self, name: str, outcome: str) -> None:
        """Keep the worst outcome of a guardrail: it is asked more than once."""
        place = f"tidemill.guardrail.{name}"
        before = self.attributes.get(place)
        if before is None or _OUTCOMES.index(outcome) > _OUTCOMES.index(str(before)):
            self.attributes[place] = outcome


def _close(later: Awaitable[Ruling]) -> None:
    """A coroutine that will never run is closed, or Python complains about it."""
    close = getattr(later, "close", None)
    if close is not None:
        close()
