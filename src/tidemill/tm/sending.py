"""Where spans and scores go: the control plane of a project, or any place that takes OTLP."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from tidemill.kernel import InvalidInput, MissingExtra, NotFound

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider

_LOCAL: Final = ("127.0.0.1", "localhost", "::1")
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Destination:
    """A control plane or gateway.

    Args:
        url: without a path.
        token: gives the bearer token, read anew at each use, for a control plane may be begun later; ``None`` for a
            place that asks for none.
        is_gateway: a gateway takes feedback at a path of its own, and no spans.
    """

    url: str
    token: Callable[[], str | None]
    is_gateway: bool = False

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine: then no proxy may see what goes there."""
        return urlsplit(self.url).hostname in _LOCAL


@dataclass(slots=True)
class _Configured:
    spans: Destination | None = None
    scores: Destination | None = None
    provider: TracerProvider | None = None


_configured = _Configured()


def configure(
    project: str | Path | None = None,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    gateway: str | None = None,
    api_key: str | None = None,
    service: str | None = None,
    provider: TracerProvider | None = None,
) -> TracerProvider:
    """Send what this program traces to Tidemill. Called once, when the program starts.

    Spans of every other OpenTelemetry instrumentation go along. A provider that the program has installed is joined;
    otherwise one is installed. Spans are sent in batches by a thread of OpenTelemetry's; what is left when the program
    ends is sent then.

    Args:
        project: project file, or a folder in or below the project; the current folder when neither this nor an
            endpoint is given.
        endpoint: ``http://host:port`` of a control plane elsewhere, or of any collector of OTLP over HTTP.
        token: for that endpoint.
        gateway: ``http://host:port`` of a gateway that takes scores instead of the control plane, for programs that
            reach nothing else.
        api_key: for that gateway.
        service: this program's name, ``service.name``; without it OpenTelemetry's own variables decide.
        provider: a provider to join, where it is not the installed one.

    Returns:
        The provider that spans go through.

    Raises:
        MissingExtra: OpenTelemetry's SDK is not installed.
        NotFound: no project file.
        InvalidInput: an address that cannot be one, or a second place to send to.
    """
    try:
        from opentelemetry import trace as otel
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider as Provider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise MissingExtra("Sending traces", "otel") from None

    to = _project_of(project) if endpoint is None else Destination(_address(endpoint), lambda: token)
    with _lock:
        if _configured.spans is not None and provider is None:
            assert _configured.provider is not None, "both are set together"
            if _configured.spans.url != to.url:
                raise InvalidInput(f"Traces go to {_configured.spans.url} already, and to one place only.")
            return _configured.provider
        if provider is None:
            installed = otel.get_tracer_provider()
            if isinstance(installed, Provider):
                provider = installed
            else:
                provider = Provider(resource=Resource.create({"service.name": service} if service else {}))
                otel.set_tracer_provider(provider)
        exporter = OTLPSpanExporter(endpoint=f"{to.url}/v1/traces", session=_session(to))
        carrying: Any = CarryingProcessor()  # it has the methods of a SpanProcessor, and loads without the SDK
        provider.add_span_processor(carrying)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        _configured.spans, _configured.provider = to, provider
        _configured.scores = to
        if gateway is not None:
            _configured.scores = Destination(_address(gateway), lambda: api_key, is_gateway=True)
    return provider


def flush(timeout_s: float = 10.0) -> bool:
    """Send what has ended by now; whether all of it was sent in time. ``True`` when nothing is configured."""
    provider = _configured.provider
    return True if provider is None else provider.force_flush(int(timeout_s * 1000))


def scores_destination() -> Destination:
    """Where scores go: what ``configure`` said, else the control plane of the project that the program runs in.

    Raises:
        NotFound: nothing is configured, and there is no project file here.
    """
    return _configured.scores or _project_of(None)


class CarryingProcessor:
    """Gives the spans of other instrumentations what their trace carries: session, user, release, endpoint.

    ``configure`` installs it. A program that builds its provider itself adds it there.
    """

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Copy what the trace carries; what the span says itself stays."""
        from tidemill.tm.spans import carried_in

        for name, value in carried_in(parent_context).items():
            if span.attributes is None or name not in span.attributes:
                span.set_attribute(name, value)

    def _on_ending(self, span: Span) -> None:
        """Nothing; the SDK asks processors so."""

    def on_end(self, span: ReadableSpan) -> None:
        """Nothing: a span that ended is whole."""

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Nothing waits."""
        return True


def _project_of(start: str | Path | None) -> Destination:
    from tidemill.kernel.settings import PROJECT_FILE, load_settings

    place = Path(start) if start is not None else Path()
    file = place if place.is_file() else None
    for folder in () if file else (place.resolve(), *place.resolve().parents):
        if (folder / PROJECT_FILE).is_file():
            file = folder / PROJECT_FILE
            break
    if file is None:
        raise NotFound(
            f"There is no {PROJECT_FILE} in {place.resolve()} or above it.",
            hint="Say where traces go: tm.configure('path/of/the/project') or tm.configure(endpoint='http://…')",
        )
    settings = load_settings(file)
    host = f"[{settings.server.host}]" if ":" in settings.server.host else settings.server.host
    token_file = settings.state / "run" / "token"
    return Destination(f"http://{host}:{settings.server.port}", lambda: _read(token_file))


def _read(token_file: Path) -> str | None:
    try:
        return token_file.read_text()
    except OSError:
        return None  # the control plane was never begun; its answer will say so


def _address(text: str) -> str:
    parts = urlsplit(text if "//" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"'{text}' is no address: write http://host:port.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1/traces')}"


def _session(to: Destination) -> Any:
    import requests

    class Token(requests.auth.AuthBase):
        """Puts the token of the moment on every request."""

        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            token = to.token()
            if token:
                request.headers["Authorization"] = f"Bearer {token}"
            return request

    session = requests.Session()
    session.auth = Token()
    session.trust_env = not to.is_local
    return session
