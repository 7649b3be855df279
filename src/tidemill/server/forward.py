"""Passes every stored span on to other collectors as OTLP over HTTP: at least once, in order, never in the way.

Each target has a thread that reads from the span store by ingestion number, so that receiving never waits for a
collector, and a file with the number it has reached, moved on only after the collector said yes. A collector that is
away or overloaded is asked again, more and more seldom; spans wait in the store meanwhile, for as long as it keeps
them. What a collector refuses for good is narrowed down to the single span, counted and left in the store.
"""

from __future__ import annotations

import gzip
import json
import logging
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from tidemill.kernel import InvalidInput
from tidemill.kernel.settings import resolve_secret
from tidemill.loop.feed import store_identity
from tidemill.server.files import write_json
from tidemill.telemetry import SpanQuery, SpanStore, StoredSpan

if TYPE_CHECKING:
    import httpx2

    from tidemill.kernel.settings_telemetry import ForwardSettings
    from tidemill.loop.project import Project

_log = logging.getLogger(__name__)

_BATCH: Final = 512
_BATCH_CHARS: Final = 4 << 20
_IDLE_S: Final = 1.0
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 60.0
_TIMEOUT_S: Final = 15.0
_JOIN_S: Final = 5.0
#: The request itself is at fault: sent again it fails again. Anything else may pass.
_REFUSED: Final = frozenset({400, 413, 415, 422})
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class ForwardFailed(Exception):
    """A target took nothing, and may later.

    Args:
        message: what happened.
        wait_s: how long it asked to be left alone, if it did.
    """

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class _Refused(Exception):
    """The target refused this very request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardProgress:
    """How far a target has come.

    Args:
        seq: ingestion number of the last span it has.
        sent: spans it took.
        rejected: spans it refused for good.
    """

    seq: int = 0
    sent: int = 0
    rejected: int = 0


class Forwarder:
    """One target.

    Args:
        name: the target's name.
        settings: where it is, and whether it gets content.
        store: the span store.
        progress_file: where its progress is kept.
        identity: names the span store, so that a number of one is never taken for a number of another.

    Raises:
        SettingsError: a header's secret is not there.
        InvalidInput: the URL is none.
    """

    def __init__(
        self, name: str, settings: ForwardSettings, store: SpanStore, progress_file: Path, *, identity: str
    ) -> None:
        parts = urlsplit(settings.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"telemetry.forward.{name}: '{settings.url}' is no http:// or https:// URL.")
        self.name = name
        self.failures = 0
        self.problem: str | None = None
        self._url = settings.url.rstrip("/") + "/v1/traces"
        self._direct = parts.hostname in _LOOPBACK
        self._headers = {header: resolve_secret(reference) for header, reference in settings.headers.items()}
        self._content = settings.content
        self._store = store
        self._file = progress_file
        self._identity = identity
        self.progress = self._load()
        self._proven = self.progress.sent > 0
        self._client: httpx2.Client | None = None

    def step(self) -> int:
        """Pass one batch on.

        Returns:
            Spans dealt with; 0 if the target has all.

        Raises:
            ForwardFailed: the target took nothing now; call again later.
        """
        batch = self._batch()
        if not batch:
            return 0
        rejected = self._send(batch)
        self._proven = True
        self.problem = None
        was = self.progress
        self.progress = replace(
            was,
            seq=batch[-1].ingest_seq,
            sent=was.sent + len(batch) - rejected,
            rejected=was.rejected + rejected,
        )
        write_json(self._file, {"format": 1, "store": self._identity, **asdict(self.progress)})
        return len(batch)

    def run(self, stop: threading.Event) -> None:
        """Pass on what is stored until told to stop."""
        wait_s = _FIRST_WAIT_S
        while not stop.is_set():
            try:
                done = self.step()
                wait_s = _FIRST_WAIT_S
                pause_s = 0.0 if done else _IDLE_S
            except ForwardFailed as failed:
                self._note(str(failed))
                # Spread, so that many senders do not come back at once to a collector that just came back.
                pause_s = failed.wait_s or wait_s * (0.5 + random.random())  # noqa: S311 - no secret
                wait_s = min(_LONGEST_WAIT_S, wait_s * 2)
            except Exception as error:  # noqa: BLE001 - receiving goes on; the next turn tries again
                _log.exception("forwarding to %s failed", self.name)
                self._note(f"{type(error).__name__}: {error}")
                pause_s = _LONGEST_WAIT_S
            stop.wait(min(pause_s, _LONGEST_WAIT_S))
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _note(self, problem: str) -> None:
        self.failures += 1
        if problem != self.problem:
            _log.warning("forwarding to %s waits: %s", self.name, problem)
        self.problem = problem

    def _batch(self) -> Sequence[StoredSpan]:
        query = SpanQuery(after_seq=self.progress.seq, limit=_BATCH, with_references=False, with_content=self._content)
        found = self._store.spans(query)
        if not self._content:
            return found
        chars = 0
        for place, one in enumerate(found):
            chars += len(one.content.input) + len(one.content.output) if one.content is not None else 0
            if chars > _BATCH_CHARS and place:
                return found[:place]
        return found

    def _send(self, batch: Sequence[StoredSpan]) -> int:
        """Send a batch, halving what is refused down to single spans; how many were rejected."""
        try:
            return self._post(batch)
        except _Refused as refused:
            if len(batch) > 1:
                middle = len(batch) // 2
                return self._send(batch[:middle]) + self._send(batch[middle:])
            if not self._proven:
                # It never took anything: rather the wrong place than the wrong span. Nothing is dropped for that.
                raise ForwardFailed(f"it refuses everything so far: {refused}") from None
            span = batch[0].span
            _log.warning("%s refuses span %s of trace %s: %s", self.name, span.span_id, span.trace_id, refused)
            return 1

    def _post(self, batch: Sequence[StoredSpan]) -> int:
        import httpx2

        from tidemill.server.forward_encoding import encode_spans

        body = gzip.compress(encode_spans(batch, self._store.scope), compresslevel=3)
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip", **self._headers}
        try:
            answer = self._http().post(self._url, content=body, headers=headers)
        except httpx2.HTTPError as error:
            raise ForwardFailed(f"{type(error).__name__}: {error}") from error
        if answer.is_success:
            self._proven = True
            return min(len(batch), _partly_rejected(answer))
        if answer.status_code in _REFUSED:
            raise _Refused(f"{answer.status_code} {answer.text[:200]}")
        raise ForwardFailed(f"it answers {answer.status_code}", _retry_after(answer.headers))

    def _http(self) -> httpx2.Client:
        if self._client is None:
            import httpx2

            self._client = httpx2.Client(timeout=_TIMEOUT_S, trust_env=not self._direct)
        return self._client

    def _load(self) -> ForwardProgress:
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ForwardProgress()
        if (kept.get("format"), kept.get("store")) != (1, self._identity):
            return ForwardProgress()
        return ForwardProgress(seq=kept["seq"], sent=kept["sent"], rejected=kept["rejected"])


class Forwarding:
    """All targets of a project.

    Args:
        project: the opened project.
        store: its span store.

    Raises:
        UserError: a target's settings cannot be used.
    """

    def __init__(self, project: Project, store: SpanStore) -> None:
        folder = project.places.state / "forward"
        identity = store_identity(project.places.spans, project.settings.telemetry.store)
        self._store = store
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.targets = [
            Forwarder(name, settings, store, folder / f"{name}.json", identity=identity)
            for name, settings in project.settings.telemetry.forward.items()
        ]

    def start(self) -> None:
        """Begin passing on."""
        for one in self.targets:
            thread = threading.Thread(target=one.run, args=(self._stop,), name=f"forward-{one.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End; what was not taken is passed on after the next start."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def states(self) -> list[dict[str, Any]]:
        """How far each target has come, for people and pages."""
        return [
            {
                "target": one.name,
                **asdict(one.progress),
                "failures": one.failures,
                "problem": one.problem,
                "backlog": self._backlog(one.progress.seq),
            }
            for one in self.targets
        ]

    def _backlog(self, seq: int) -> int:
        """Stored spans after a number, by the numbers themselves: at most a little too many."""
        newest = self._store.spans(SpanQuery(newest_first=True, limit=1, with_references=False))
        return max(0, newest[0].ingest_seq - seq) if newest else 0


def _partly_rejected(answer: httpx2.Response) -> int:
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        return int(ExportTraceServiceResponse.FromString(answer.content).partial_success.rejected_spans)
    except DecodeError:  # JSON, or nothing of the kind: it said yes
        return 0


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return None
