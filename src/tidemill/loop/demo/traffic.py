"""Simulated users: they ask through the gateway with the official client, read the answer, and say what they think.

A user knows which documents would help them and nothing of releases. They are content when one of the sources shown
is such a document, or when there is none and the desk says so; a few judge wrongly. The rollout sees only what they
send to ``/v1/feedback`` and the traces.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tidemill.evaluation import Case, abstained
from tidemill.kernel import Digest, digest_json

if TYPE_CHECKING:
    from openai import OpenAI

    from tidemill.ledger import Ledger

SESSION_HEADER: Final = "x-tidemill-session"
_PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One session of one user: a question, what was answered, and what the user thought.

    Args:
        sources: documents shown under the answer.
        content: the feedback sent, 0 or 1.
    """

    session: str
    question: str
    answer: str
    sources: tuple[str, ...]
    release: str
    trace_id: str
    content: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The visit as a plain JSON object."""
        return {name: getattr(self, name) for name in self.__slots__} | {"sources": list(self.sources)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Visit:
        """Read back what ``as_json`` wrote."""
        return cls(**{**value, "sources": tuple(value["sources"])})


class Users:
    """Asks the sessions of one stage, several at a time; each session once, also over a kill.

    Args:
        ledger: remembers finished sessions.
        base_url: the gateway's ``/v1``.
        api_key: a key of the gateway.
        endpoint: the public model name.
        noise: share of users who judge wrongly.
        revive: called when the gateway does not answer, to bring the stack back.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        base_url: str,
        api_key: str,
        endpoint: str,
        noise: float,
        revive: Callable[[], None],
    ) -> None:
        from openai import OpenAI

        self._ledger = ledger
        self._client: OpenAI = OpenAI(base_url=base_url, api_key=api_key, max_retries=2, timeout=_PATIENCE_S)
        self._endpoint = endpoint
        self._noise = noise
        self._revive = revive
        self._reviving = threading.Lock()

    def visit_all(
        self,
        cases: Sequence[Case],
        *,
        stage: str,
        sessions: int,
        concurrency: int,
        enough: Callable[[], bool],
        on_visit: Callable[[Visit], None],
    ) -> list[Visit]:
        """Let up to ``sessions`` users ask, in order, until ``enough`` says stop.

        Args:
            cases: what they ask, taken in turn.
            stage: names the stage; session ids derive from it.
            sessions: at most so many.
            concurrency: users at the same time.
            enough: looked at between visits.
            on_visit: told of each finished visit, in the calling thread.
        """
        keys = {number: self._key(stage, number) for number in range(sessions)}
        known = self._ledger.results.get_many(list(keys.values()))
        visits = [Visit.from_json(known[keys[number]]) for number in range(sessions) if keys[number] in known]
        todo = iter([number for number in range(sessions) if keys[number] not in known])
        with ThreadPoolExecutor(concurrency, thread_name_prefix="user") as pool:
            for visit in self._flow(pool, todo, cases, stage, concurrency, enough):
                visits.append(visit)
                on_visit(visit)
        return visits

    def _flow(
        self,
        pool: ThreadPoolExecutor,
        todo: Iterator[int],
        cases: Sequence[Case],
        stage: str,
        concurrency: int,
        enough: Callable[[], bool],
    ) -> Iterator[Visit]:
        running: set[Future[Visit]] = set()
        stopping = False
        while True:
            while len(running) < concurrency and not stopping:
                stopping = enough()
                number = None if stopping else next(todo, None)
                if number is None:
                    stopping = True
                    break
                running.add(pool.submit(self._visit, stage, number, cases[number % len(cases)]))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()

    def _visit(self, stage: str, number: int, case: Case) -> Visit:
        import httpx2
        from openai import APIError, APIStatusError

        session = f"{stage}-{number:04d}"
        for attempt in range(20):
            try:
                visit = self._ask(session, case, stream=number % 2 == 1)
                break
            except (APIError, httpx2.HTTPError) as error:  # refused, an error status, a stream that broke off
                if isinstance(error, APIStatusError) and error.status_code < 500 and error.status_code != 404:
                    raise
                time.sleep(min(2.0, 0.2 * 2**attempt))
                with self._reviving:
                    self._revive()
        else:
            visit = self._ask(session, case, stream=False)
        self._ledger.results.put_many({self._key(stage, number): visit.as_json()})
        return visit

    def _ask(self, session: str, case: Case, *, stream: bool) -> Visit:
        begun_s = time.monotonic()
        create = self._client.chat.completions.with_raw_response.create
        raw = create(
            model=self._endpoint,
            messages=[{"role": "user", "content": case.question}],
            stream=stream,
            extra_headers={SESSION_HEADER: session},
        )
        text, extension = _read_stream(raw.parse()) if stream else _read_whole(raw.parse())
        trace_id = str(raw.headers["x-tidemill-trace-id"])
        release = str(raw.headers["x-tidemill-release"])
        sources = tuple(dict.fromkeys(str(one["source"]) for one in extension.get("passages", ())))
        if abstained(text):
            sources = ()
        content = self._judge(session, case, text, sources)
        body = {"trace_id": trace_id, "name": "feedback", "value": content}
        self._client.post("/feedback", cast_to=object, body=body)
        return Visit(
            session=session,
            question=case.question,
            answer=text,
            sources=sources,
            release=release,
            trace_id=trace_id,
            content=content,
            seconds=time.monotonic() - begun_s,
        )

    def _judge(self, session: str, case: Case, text: str, sources: Sequence[str]) -> float:
        helped = bool(set(sources) & set(case.documents)) if case.answerable else abstained(text)
        draw = int.from_bytes(hashlib.sha256(session.encode()).digest()[:8], "big") / 2**64
        return float(helped != (draw < self._noise))

    def _key(self, stage: str, number: int) -> Digest:
        return digest_json({"demo": "visit", "stage": stage, "number": number})


def _read_whole(answer: Any) -> tuple[str, Mapping[str, Any]]:
    extra = answer.model_extra or {}
    return answer.choices[0].message.content or "", extra.get("tidemill") or {}


def _read_stream(chunks: Any) -> tuple[str, Mapping[str, Any]]:
    parts: list[str] = []
    extension: Mapping[str, Any] = {}
    for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            parts.append(chunk.choices[0].delta.content)
        extension = (chunk.model_extra or {}).get("tidemill") or extension
    return "".join(parts), extension
