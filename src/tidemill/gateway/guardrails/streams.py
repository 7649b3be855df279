"""A streamed answer under guard: events wait in line until every text in them may leave.

An event leaves with the bytes it came with, unless a guardrail edited a text in it. Each text of the answer (content,
reasoning, the arguments of each tool call; of every choice) has a ``HoldBack`` of its own. Guardrails that rule on
whole answers only see the stream as one, when it has come to its end; until then nothing of it leaves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from tidemill.gateway.cache import read_events, stream_of, whole_of
from tidemill.gateway.guardrails.execution import Blocked, Watch
from tidemill.gateway.guardrails.guardrail import Edit, Passage, Ruling
from tidemill.gateway.guardrails.hold_back import HoldBack
from tidemill.gateway.guardrails.pivot import Place, found_texts
from tidemill.kernel import Verdict

_DONE: Final = b"[DONE]"
_encode: Final = msgspec.json.encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
_SAID: Final = ("delta", "text")

HELD_MOST: Final = 1 << 20
"""Bytes held back beyond which the upstream should be paused."""


class _Stretch(NamedTuple):
    """Where a text of an event stands in the whole text of its place."""

    place: Place
    start: int
    end: int


@dataclass(slots=True)
class _Event:
    raw: bytes
    value: dict[str, Any] | None
    stretches: list[_Stretch]


class StreamGuard:
    """Holds a stream back until its guardrails have ruled.

    Args:
        watch: the request under guard.
        released: called with events that may leave, in order.
        blocked: called once, with what ends the stream; nothing is released afterwards.
        ended: called after ``finish``, when everything was released.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        released: Callable[[bytes], None],
        blocked: Callable[[Blocked], None],
        ended: Callable[[], None],
    ) -> None:
        self.held_bytes = 0
        self._watch = watch
        self._guardrails = watch.plan.stream
        policies = [one.policy for one in self._guardrails]
        self._hold = max((policy.hold_chars for policy in policies), default=0)
        self._step = min((policy.step_chars for policy in policies), default=1)
        self._sentences = any(policy.whole_sentences for policy in policies)
        self._released = released
        self._blocked = blocked
        self._ended = ended
        self._events: deque[_Event] = deque()
        self._texts: dict[Place, HoldBack] = {}
        self._ruling = False  # a passage is with the guardrails
        self._finished = False
        self._over = False
        self._whole: list[bytes] | None = [] if watch.plan.after_alone else None

    @property
    def full(self) -> bool:
        """Whether so much waits for rulings that the upstream should be paused."""
        return self.held_bytes > HELD_MOST

    def feed(self, data: bytes) -> None:
        """Take whole events as they come from the upstream."""
        if self._over:
            return
        for raw in data.replace(b"\r\n", b"\n").split(b"\n\n"):
            if raw.strip() and not self._over:
                self._take(raw + b"\n\n")
        self._go_on()

    def finish(self) -> None:
        """The stream came to its proper end: rule on what is left."""
        if self._over:
            return
        self._finished = True
        for text in self._texts.values():
            text.close()
        self._go_on()

    def abandon(self) -> None:
        """The stream broke off, or the client has left: what is held is dropped, unseen."""
        self._over = True
        self._events.clear()

    def _take(self, raw: bytes) -> None:
        self.held_bytes += len(raw)
        lines = [line[5:].strip() for line in raw.splitlines() if line.startswith(b"data:")]
        data = b"\n".join(lines)
        if not data or data == _DONE:
            self._events.append(_Event(raw, None, []))
            return
        try:
            value = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._object("An event of the stream could not be read.", data)
            return
        self._events.append(_Event(raw, value, [self._hear(place, text) for place, text in _texts_of(value)]))

    def _hear(self, place: Place, text: str) -> _Stretch:
        held = self._texts.get(place)
        if held is None:
            held = self._texts[place] = HoldBack(
                hold_chars=self._hold, step_chars=self._step, whole_sentences=self._sentences, place=place
            )
        start = held.size
        held.feed(text)
        return _Stretch(place, start, start + len(text))

    def _object(self, reason: str, data: bytes) -> None:
        """What cannot be read cannot be ruled on, and does not leave, whatever the policy."""
        guardrail = (*self._guardrails, *self._watch.plan.after_alone)[0]
        self._stop(self._watch.block_stream(guardrail, Verdict(False, reason), data.decode("utf-8", "replace")))

    def _go_on(self) -> None:
        """Release what may leave, and have ruled on what is due: in one turn, as long as nothing is awaited."""
        while not self._ruling and not self._over:
            due = self._next()
            if due is None:
                break
            self._ruling = True
            self._rule(*due, 0, ())
        if not self._over:
            self._release()

    def _next(self) -> tuple[HoldBack, Passage] | None:
        for held in self._texts.values():
            passage = held.due()
            if passage is not None:
                return held, passage
        return None

    def _rule(self, held: HoldBack, passage: Passage, at: int, edits: tuple[Edit, ...]) -> None:
        """Ask the guardrails from ``at`` on about a passage."""
        if at == len(self._guardrails):
            self._ruling = False
            held.rule(passage, passes=True, edits=_apart(edits))
            return
        guardrail = self._guardrails[at]
        waits = True

        def ruled(ruling: Ruling) -> None:
            nonlocal waits
            if self._over:
                return
            if not ruling.verdict.value:
                held.rule(passage, passes=False)
                self._stop(self._watch.block_stream(guardrail, ruling.verdict, passage.text))
                return
            self._rule(held, passage, at + 1, edits + ruling.edits)
            if not waits and not self._ruling:
                self._go_on()

        self._watch.ask_stream(guardrail, lambda: guardrail.on_stream(passage), ruled)
        waits = False

    def _release(self) -> None:
        out: list[bytes] = []
        while self._events:
            event = self._events[0]
            if any(self._texts[one.place].released < one.end for one in event.stretches):
                break
            self._events.popleft()
            out.append(self._written(event))
            if self._whole is None:
                self.held_bytes -= len(event.raw)
        if out and self._whole is None:
            self._released(b"".join(out))
        elif out and self._whole is not None:
            self._whole += out
        if self._finished and not self._events and not self._ruling and not self._over:
            self._over = True
            if self._whole is None:
                self._ended()
            else:
                self._review(b"".join(self._whole))

    def _review(self, stream: bytes) -> None:
        """Have the whole stream ruled on by those that rule on nothing less."""
        self._whole = []
        whole = whole_of(stream)
        if whole is None:
            self._object("The stream could not be read as one answer.", stream)
            return

        def allowed(body: bytes) -> None:
            if body == whole:
                self._released(stream)
            else:
                usage = any(not event.get("choices") and event.get("usage") for event in read_events(stream) or ())
                self._released(stream_of(body, include_usage=usage) or b"")
            self._ended()

        self._watch.after_stream(whole, allowed, self._blocked)

    def _written(self, event: _Event) -> bytes:
        """The event as it leaves: its own bytes, or written anew with the edited texts."""
        changed: dict[Place, str] = {}
        texts = dict(_texts_of(event.value)) if event.stretches and event.value is not None else {}
        for place, start, end in event.stretches:
            held, text = self._texts[place], texts[place]
            edited = held.edited(start, end, text)
            held.forget_edits(start)
            if edited != text:
                changed[place] = edited
        if not changed or event.value is None:
            return event.raw
        for place, text in changed.items():
            _put(event.value, place, text)
        return b"data: %b\n\n" % _encode(event.value)

    def _stop(self, blocked: Blocked) -> None:
        self._over = True
        self._events.clear()
        self._blocked(blocked)


def _texts_of(event: dict[str, Any]) -> list[tuple[Place, str]]:
    """The texts of an event with their places: choice, then fields below its ``delta``, or ``text``."""
    found: list[tuple[Place, str]] = []
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            index = choice.get("index", 0)
            for name in _SAID:
                found += found_texts(choice.get(name), (index, name))
    return [(place, text) for place, text in found if text]


def _put(event: dict[str, Any], place: Place, text: str) -> None:
    """Set the text at a place; log probabilities beside it would tell the old one."""
    for choice in event["choices"]:
        if choice.get("index", 0) != place[0]:
            continue
        if choice.get("logprobs") is not None:
            choice["logprobs"] = None
        holder: Any = choice
        for step in place[1:-1]:
            holder = _below(holder, step)
        last = place[-1]
        if isinstance(holder, list):
            holder[int(last)] = text
        else:
            holder[last] = text


def _below(holder: Any, step: int | str) -> Any:
    if isinstance(holder, list):
        return next(
            item for at, item in enumerate(holder) if (item.get("index", at) if isinstance(item, dict) else at) == step
        )
    return holder[step]


def _apart(edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """Edits of several guardrails, in order; of those that overlap the first stays, stretched over the rest."""
    found: list[Edit] = []
    for edit in sorted(edits):
        if found and edit.start < found[-1].end:
            last = found.pop()
            found.append(Edit(last.start, max(last.end, edit.end), last.text))
        else:
            found.append(edit)
    return tuple(found)
