"""Spans: opened around a block or a function, plain OpenTelemetry underneath."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from tidemill.kernel import InvalidInput, MissingExtra
from tidemill.tm.payloads import as_text, cut

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

_Function = TypeVar("_Function", bound=Callable[..., Any])
Capture = bool | Literal["input", "output"]
Attribute = str | bool | int | float

ENTRY: Final = "tidemill.entry"
STATUS: Final = "tidemill.status"
_CARRIED_KEY: Final = "tidemill.carried"
_KINDS: Final = ("passage", "artifact")


class Handle:
    """An open span and what can be said about it. Each setter returns the handle, so that they can be chained.

    Args:
        otel: OpenTelemetry's own span; whatever has no setter here can be set there.
        carried: attributes that spans below it get too.
        capture: what of input and output is kept.
    """

    def __init__(self, otel: Span, carried: MutableMapping[str, Attribute], capture: Capture = True) -> None:
        self.otel = otel
        self.capture = capture
        self._carried = carried
        self._used: list[dict[str, Any]] = []

    @property
    def trace_id(self) -> str:
        """W3C trace id; 32 zeros while nothing is configured that records."""
        return f"{self.otel.get_span_context().trace_id:032x}"

    @property
    def span_id(self) -> str:
        """W3C span id."""
        return f"{self.otel.get_span_context().span_id:016x}"

    def set(self, **attributes: Attribute) -> Handle:
        """Set attributes of this span under the names given; a double underscore stands for a dot."""
        self.otel.set_attributes({name.replace("__", "."): value for name, value in attributes.items()})
        return self

    def session(self, session_id: str) -> Handle:
        """Name the conversation; spans below have it too."""
        return self._carry("session.id", session_id)

    def user(self, user_id: str) -> Handle:
        """Name the person. Stored is a keyed hash, never this name; spans below have it too."""
        return self._carry("user.id", user_id)

    def release(self, release: str) -> Handle:
        """Name the release that answers: a digest, ``NAME@7``, or a version of your own; spans below have it too."""
        return self._carry("tidemill.release", release)

    def endpoint(self, endpoint: str) -> Handle:
        """Name what was asked, as an endpoint of the gateway is named; spans below have it too."""
        return self._carry("tidemill.endpoint", endpoint)

    def prompt(self, prompt: str) -> Handle:
        """Name the prompt and its version, ``answer@3``."""
        self.otel.set_attribute("tidemill.prompt", prompt)
        return self

    def model(self, name: str, *, provider: str | None = None) -> Handle:
        """Name the model that answered."""
        self.otel.set_attribute("gen_ai.request.model", name)
        if provider is not None:
            self.otel.set_attribute("gen_ai.provider.name", provider)
        return self

    def usage(
        self, *, input_tokens: int | None = None, output_tokens: int | None = None, cost_usd: float | None = None
    ) -> Handle:
        """Say what a call used; without a cost it is priced by the table of prices."""
        given = {
            "gen_ai.usage.input_tokens": input_tokens,
            "gen_ai.usage.output_tokens": output_tokens,
            "tidemill.cost_usd": cost_usd,
        }
        self.otel.set_attributes({name: value for name, value in given.items() if value is not None})
        return self

    def input(self, value: Any) -> Handle:
        """Say what was asked: a text, messages, or anything that has a form in JSON. Kept unless capture is off."""
        return self._content("input", value)

    def output(self, value: Any) -> Handle:
        """Say what was answered. Kept unless capture is off."""
        return self._content("output", value)

    def retrieved(self, documents: Iterable[str | Mapping[str, Any]]) -> Handle:
        """Say which documents a search found, best first.

        Args:
            documents: ids, or objects with ``id`` and, where known, ``score`` and ``content``.
        """
        for place, one in enumerate(documents):
            parts = {"id": one} if isinstance(one, str) else one
            for name in ("id", "score", "content"):
                if parts.get(name) is not None and (name != "content" or self._keeps("output")):
                    value = parts[name]
                    self.otel.set_attribute(
                        f"retrieval.documents.{place}.document.{name}",
                        float(value) if name == "score" else cut(str(value)),
                    )
        return self

    def used(self, *refs: str, role: str = "cited", kind: Literal["passage", "artifact"] = "passage") -> Handle:
        """Say which passages or artifacts the answer used; ``tidemill lineage`` follows them.

        Args:
            refs: ids of passages, or digests of artifacts.
            role: what they were to the answer: ``cited``, ``retrieved``, ``prompt``, ``index``, …
            kind: which of the two they are.
        """
        if kind not in _KINDS:
            raise InvalidInput(f"'{kind}' is no kind of reference: write passage or artifact.")
        first = len(self._used) + 1
        self._used += [{"kind": kind, "ref": ref, "role": role, "rank": rank} for rank, ref in enumerate(refs, first)]
        self.otel.set_attribute("tidemill.references", json.dumps(self._used))
        return self

    def failed(self, error: BaseException) -> Handle:
        """Record an exception and that the span failed. Its message is content: kept unless capture is off."""
        from opentelemetry.trace import Status, StatusCode

        kind = type(error).__qualname__
        self.otel.set_attribute("error.type", kind)
        if self._keeps("output"):
            self.otel.record_exception(error)
            self.otel.set_status(Status(StatusCode.ERROR, cut(f"{kind}: {error}")))
        else:
            self.otel.add_event("exception", {"exception.type": kind})
            self.otel.set_status(Status(StatusCode.ERROR))
        return self

    def cancelled(self) -> Handle:
        """Record that nobody waits for the rest: the caller left, which is no failure."""
        self.otel.set_attribute(STATUS, "cancelled")
        return self

    def _carry(self, name: str, value: str) -> Handle:
        self._carried[name] = value
        self.otel.set_attribute(name, value)
        return self

    def _keeps(self, what: str) -> bool:
        return self.capture is True or self.capture == what

    def _content(self, what: str, value: Any) -> Handle:
        if self._keeps(what) and self.otel.is_recording():
            text, media_type = as_text(value)
            self.otel.set_attributes({f"{what}.value": text, f"{what}.mime_type": media_type})
        return self


class Step:
    """A span to be opened: around a block with ``with`` or ``async with``, or around a function as a decorator.

    As a decorator it opens a span of its own at every call, also of coroutines and generators; a generator's span ends
    when the generator does.
    """

    def __init__(
        self,
        name: str | None,
        *,
        operation: str | None = None,
        capture: Capture = True,
        attributes: Mapping[str, Attribute] | None = None,
        carried: Mapping[str, str] | None = None,
        entry: bool = False,
    ) -> None:
        if capture not in (True, False, "input", "output"):
            raise InvalidInput(f"capture is '{capture}': write True, False, 'input' or 'output'.")
        self.name = name
        self.capture: Capture = capture
        self._operation = operation
        self._attributes = dict(attributes or {})
        self._carried = dict(carried or {})
        self._entry = entry
        self._open: tuple[Handle, Any] | None = None

    def __call__(self, function: _Function) -> _Function:
        """The function with a span around every call."""
        from tidemill.tm.wrapping import wrapped

        _tracer()  # a missing extra is told when the program starts, not at its first request
        return wrapped(self, function)

    def __enter__(self) -> Handle:
        _tracer()
        from opentelemetry import context

        if self._open is not None:
            raise InvalidInput(f"The span '{self.name}' is open already.", hint="Write tm.span(…) anew for each block.")
        handle, inner = self.open(self.name or "block")
        self._open = handle, context.attach(inner)
        return handle

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from opentelemetry import context

        assert self._open is not None, "a block ends after it began"
        handle, token = self._open
        self._open = None
        context.detach(token)
        close(handle, error)

    async def __aenter__(self) -> Handle:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def open(self, name: str) -> tuple[Handle, Context]:
        """Start the span; the context in which it is the current one is not entered yet.

        Raises:
            MissingExtra: OpenTelemetry is not installed.
        """
        tracer = _tracer()
        from opentelemetry import context
        from opentelemetry import trace as otel

        outer = context.get_current()
        above: Mapping[str, Attribute] = context.get_value(_CARRIED_KEY, outer) or {}  # type: ignore[assignment]  # set below alone
        carried: dict[str, Attribute] = {**above, **self._carried}
        attributes: dict[str, Attribute] = {**carried, **self._attributes}
        if self._operation is not None:
            attributes["gen_ai.operation.name"] = self._operation
        if self._entry and not context.get_value(ENTRY, outer):
            attributes[ENTRY] = True
        started = tracer.start_span(name, context=outer, attributes=attributes)
        inner = otel.set_span_in_context(started, outer)
        inner = context.set_value(_CARRIED_KEY, carried, inner)
        if self._entry:
            inner = context.set_value(ENTRY, True, inner)
        return Handle(started, carried, self.capture), inner


def close(handle: Handle, error: BaseException | None) -> None:
    """End a span; with the exception that ended its block, if one did."""
    import asyncio

    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        handle.cancelled()
    elif error is not None:
        handle.failed(error)
    handle.otel.end()


@overload
def trace(name: _Function) -> _Function: ...
@overload
def trace(
    name: str | None = None,
    *,
    operation: str | None = None,
    session: str | None = None,
    user: str | None = None,
    release: str | None = None,
    endpoint: str | None = None,
    prompt: str | None = None,
    capture: Capture = True,
    attributes: Mapping[str, Attribute] | None = None,
) -> Step: ...
def trace(  # noqa: PLR0913 - what a request carries
    name: str | _Function | None = None,
    *,
    operation: str | None = None,
    session: str | None = None,
    user: str | None = None,
    release: str | None = None,
    endpoint: str | None = None,
    prompt: str | None = None,
    capture: Capture = True,
    attributes: Mapping[str, Attribute] | None = None,
) -> Step | _Function:
    """A whole request: a span that counts as one, also below a web framework's.

    ``@tm.trace``, ``@tm.trace("answer", …)``, ``with tm.trace("answer", …) as request:`` or ``async with``.

    Args:
        name: what people read; a function's own name when it is decorated without one.
        operation: OpenTelemetry's GenAI operation, e.g. ``invoke_agent``.
        session: names the conversation; every span below has it too, as it has the next three.
        user: names the person; stored is a keyed hash.
        release: names the release that answers.
        endpoint: names what was asked.
        prompt: name and version of the prompt, ``answer@3``.
        capture: whether arguments, results and what the setters give are kept: ``True``, ``False``, ``"input"`` or
            ``"output"``.
        attributes: anything else, under the names of OpenTelemetry's conventions where those have one.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
    """
    if callable(name):
        return Step(None, entry=True)(name)
    given = {
        "session.id": session,
        "user.id": user,
        "tidemill.release": release,
        "tidemill.endpoint": endpoint,
    }
    own = {**(attributes or {}), **({"tidemill.prompt": prompt} if prompt is not None else {})}
    return Step(
        name,
        operation=operation,
        capture=capture,
        attributes=own,
        carried={key: value for key, value in given.items() if value is not None},
        entry=True,
    )


@overload
def span(name: _Function) -> _Function: ...
@overload
def span(
    name: str | None = None,
    *,
    operation: str | None = None,
    prompt: str | None = None,
    capture: Capture = True,
    attributes: Mapping[str, Attribute] | None = None,
) -> Step: ...
def span(
    name: str | _Function | None = None,
    *,
    operation: str | None = None,
    prompt: str | None = None,
    capture: Capture = True,
    attributes: Mapping[str, Attribute] | None = None,
) -> Step | _Function:
    """A step within a request: a search, a tool, a call of a model. Used like ``trace``, with the same arguments.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
    """
    if callable(name):
        return Step(None)(name)
    own = {**(attributes or {}), **({"tidemill.prompt": prompt} if prompt is not None else {})}
    return Step(name, operation=operation, capture=capture, attributes=own)


def current() -> Handle:
    """The span that is open here, whoever opened it; setters of a handle work on it.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
    """
    _tracer()
    from opentelemetry import context
    from opentelemetry import trace as otel

    carried = context.get_value(_CARRIED_KEY)
    return Handle(otel.get_current_span(), carried if isinstance(carried, dict) else {})


def carried_in(inner: Context | None) -> Mapping[str, Attribute]:
    """What a trace gives to the spans below it, in a context."""
    from opentelemetry import context

    found = context.get_value(_CARRIED_KEY, inner)
    return found if isinstance(found, dict) else {}


def _tracer() -> Tracer:
    try:
        from opentelemetry import trace as otel
    except ImportError:
        raise MissingExtra("Tracing", "otel") from None
    from tidemill import __version__

    return otel.get_tracer("tidemill", __version__)
