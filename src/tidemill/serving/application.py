"""A release as an application: search, prompt, model, answer. Knows nothing of HTTP; evaluation calls it in process."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from tidemill.kernel import Clock, InvalidInput, ReleaseParts, Scope, SystemClock
from tidemill.models.transport import UpstreamError
from tidemill.prompts import Prompt, render
from tidemill.retrieval import Hit, Index
from tidemill.serving.answers import AppAnswer, RetrievalOptions, Usage, build_context, cite, clean, question_of
from tidemill.serving.spans import OpenSpan, SpanLog, TraceContext, read_traceparent
from tidemill.telemetry import Content, Reference, SegmentWriter, Status

if TYPE_CHECKING:
    import numpy as np

_NO_ANSWER: Final = "I do not know."
_CONFIG: Final = frozenset({"no_answer", "max_lines"})


class ModelServer(Protocol):
    """What an application needs of an OpenAI-compatible server; ``tidemill.models.ModelClient`` is one."""

    async def chat(self, request: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The whole answer to a chat completion request."""
        ...

    def stream(
        self, request: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """The chunks of the answer as they come."""
        ...

    async def embed(self, texts: Sequence[str], model: str) -> np.ndarray:
        """Unit vectors of texts, shape (texts, dimension), float32."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRelease:
    """A release with its parts in memory.

    Args:
        digest: the release digest as it stands in traces and answers.
        parts: what it is made of.
        prompt: its prompt; a release without passes messages through.
        index: its index; a release without does not search.
    """

    digest: str
    parts: ReleaseParts
    prompt: Prompt | None = None
    index: Index | None = None

    def __post_init__(self) -> None:
        parts = self.parts
        left_out = [name for name in ("adapter", "policy", "tools", "router") if getattr(parts, name)]
        if left_out:
            # Serving without one of them would be another release than the one that was evaluated.
            raise InvalidInput(f"a release with {' and '.join(left_out)} cannot be served yet; publish one without")
        if self.index is not None and self.prompt is None:
            raise InvalidInput("a release with an index needs a prompt that shows the model what was found")
        if self.prompt is not None:
            unknown = set(self.prompt.config) - _CONFIG
            missing = self.prompt.variables - {"question", "context", "passages"}
            if unknown:
                raise InvalidInput(
                    f"prompt '{self.prompt.name}': config has {', '.join(sorted(unknown))}; "
                    f"an application knows {', '.join(sorted(_CONFIG))}"
                )
            if missing:
                raise InvalidInput(
                    f"prompt '{self.prompt.name}' uses {', '.join(sorted(missing))}; "
                    "an application fills question, context and passages"
                )


@dataclass(slots=True)
class _Work:
    """One answer in the making."""

    question: str
    log: SpanLog
    root: OpenSpan
    hits: tuple[Hit, ...] = ()
    used: tuple[Hit, ...] = ()
    context: str = ""
    raw: str = ""
    finish_reason: str = "stop"
    abstained: bool = False
    usage: Usage = field(default_factory=Usage)
    timings: dict[str, float] = field(default_factory=dict)


class Application:
    """Answers questions as one release does. Safe for concurrent calls on one event loop.

    Args:
        release: the release with its parts.
        models: the server that runs the chat model.
        chat_model: the model name it is asked for.
        embedder: the server and the model name that turn questions into vectors; needed for dense and hybrid search.
        scope: whose spans are written.
        writer: the segment log; ``None`` writes nothing, spans then stand in the answer only.
        clock: where the time comes from.

    Raises:
        InvalidInput: the release searches by vectors and there is no embedder, or its retrieval options are wrong.
    """

    def __init__(
        self,
        release: LoadedRelease,
        models: ModelServer,
        *,
        chat_model: str,
        embedder: tuple[ModelServer, str] | None = None,
        scope: Scope,
        writer: SegmentWriter | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.release = release
        self.options = RetrievalOptions.from_json(release.parts.retrieval)
        self.chat_model = chat_model
        self._models = models
        self._embedder = embedder
        self._scope = scope
        self._writer = writer
        self._clock = clock or SystemClock()
        index = release.index
        self._mode = (self.options.mode or index.mode) if index is not None else None
        if index is not None and self._mode != "bm25" and (embedder is None or index.dimension is None):
            what = "an embedding model" if embedder is None else "an index with vectors"
            raise InvalidInput(f"the release searches in mode '{self._mode}', which needs {what}")

    async def answer(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        traceparent: str | TraceContext | None = None,
        stream: bool = False,
    ) -> AppAnswer:
        """Answer the last user message.

        Args:
            messages: the conversation. A release with a prompt reads the last user message alone.
            traceparent: the caller's W3C header, or what was read of it; the spans join its trace.
            stream: ask the model for a stream, so that ``first_text_s`` is measured.

        Raises:
            UpstreamError: the model server failed; the spans say so.
            InvalidInput: no question in the messages.
        """
        answer: AppAnswer | None = None
        async with aclosing(self._run(messages, _context(traceparent), stream)) as parts:
            async for part in parts:
                if isinstance(part, AppAnswer):
                    answer = part
        assert answer is not None
        return answer

    def stream(
        self, messages: Sequence[Mapping[str, Any]], *, traceparent: str | TraceContext | None = None
    ) -> AsyncGenerator[str | AppAnswer, None]:
        """Answer as ``answer`` does, giving pieces of the text as they come and the whole answer last.

        Close the iterator early to cancel; the spans then end as ``cancelled``.
        """
        return self._run(messages, _context(traceparent), True)

    async def _run(
        self, messages: Sequence[Mapping[str, Any]], context: TraceContext, stream: bool
    ) -> AsyncGenerator[str | AppAnswer, None]:
        question = question_of(messages) if self.release.prompt is not None else ""
        log = SpanLog(context, scope=self._scope, release=self.release.digest, clock=self._clock, writer=self._writer)
        root = log.begin("invoke_agent", "invoke_agent", announce=True)
        work = _Work(question, log, root)
        try:
            if self.release.index is not None:
                await self._search(work)
            if work.abstained:
                yield self._no_answer
            else:
                async with aclosing(self._generate(work, self._prompted(work, messages), stream)) as pieces:
                    async for piece in pieces:
                        yield piece
            answer = self._finished(work)
        except BaseException as error:  # also cancellation, which is not an Exception, must end the span
            status, fields = _failure(error)
            log.end(root, status=status, fields=fields, references=self._artifacts())
            raise
        yield answer

    async def _search(self, work: _Work) -> None:
        index, options = self.release.index, self.options
        assert index is not None
        span = work.log.begin("retrieval", "retrieval", parent=work.root)
        try:
            vector = None
            if self._mode != "bm25" and self._embedder is not None:
                server, model = self._embedder
                vector = (await server.embed([work.question], model))[0]
            work.timings["embed_s"] = work.log.elapsed_s(span)
            found = index.search(
                work.question,
                top_k=options.top_k,
                query_vector=vector,
                mode=self._mode,
                dense_weight=options.dense_weight,
                fusion=options.fusion,
                spelling=options.spelling,
            )
        except BaseException as error:  # see _run
            status, fields = _failure(error)
            work.log.end(span, status=status, fields=fields)
            raise
        work.timings["search_s"] = work.log.elapsed_s(span) - work.timings["embed_s"]
        work.hits = tuple(found)
        work.abstained = self._abstains(found)
        if not work.abstained:
            work.context, work.used = build_context(found, options.max_context_tokens)
        best = max((hit.evidence for hit in found), default=0.0)
        attributes = {"tidemill.retrieval.mode": self._mode, "tidemill.retrieval.best": best}
        references = [_passage(hit, "retrieved") for hit in found]
        work.log.end(span, references=references, fields={"attributes": attributes})

    def _abstains(self, hits: Sequence[Hit]) -> bool:
        floor = self.options.min_score
        return floor is not None and max((hit.evidence for hit in hits), default=float("-inf")) < floor

    @property
    def _no_answer(self) -> str:
        prompt = self.release.prompt
        return str(prompt.config.get("no_answer", _NO_ANSWER)) if prompt is not None else _NO_ANSWER

    def _prompted(self, work: _Work, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if self.release.prompt is None:
            return [dict(message) for message in messages]
        passages = [
            {"number": number, "title": hit.title, "text": hit.text, "source": hit.source}
            for number, hit in enumerate(work.used, 1)
        ]
        values = {"question": work.question, "context": work.context, "passages": passages}
        return [dict(message) for message in render(self.release.prompt, values)]

    async def _generate(self, work: _Work, messages: list[dict[str, Any]], stream: bool) -> AsyncGenerator[str, None]:
        span = work.log.begin(f"chat {self.chat_model}", "chat", parent=work.root)
        headers = {"traceparent": f"00-{work.log.context.trace_id}-{span.span_id}-01"}
        request = {"model": self.chat_model, "messages": messages, **_sampling(self.release.parts)}
        given = ""
        status: Status = "ok"
        failed: dict[str, Any] = {}
        try:
            async with aclosing(self._pieces(work, request, headers, stream)) as pieces:
                async for piece in pieces:
                    work.raw += piece
                    text = clean(work.raw, self._max_lines)
                    if len(text) > len(given):
                        work.timings.setdefault("first_text_s", work.log.elapsed_s(work.root))
                        new, given = text[len(given) :], text
                        yield new
        except BaseException as error:  # see _run
            status, failed = _failure(error)
            raise
        finally:
            work.timings["generate_s"] = work.log.elapsed_s(span)
            content = Content(input=json.dumps(messages, ensure_ascii=False), output=given)
            fields = self._chat_fields(work, stream) | failed
            work.log.end(span, status=status, fields=fields, content=content)

    async def _pieces(
        self, work: _Work, request: dict[str, Any], headers: dict[str, str], stream: bool
    ) -> AsyncGenerator[str, None]:
        if not stream:
            body = await self._models.chat(request, headers)
            choice = _first_choice(body)
            work.usage = Usage.from_openai(body.get("usage"))
            work.finish_reason = str(choice.get("finish_reason") or "stop")
            yield str((choice.get("message") or {}).get("content") or "")
            return
        asked = {**request, "stream_options": {"include_usage": True}}
        chunks = self._models.stream(asked, headers)
        try:
            async for chunk in chunks:
                if chunk.get("usage"):
                    work.usage = Usage.from_openai(chunk["usage"])
                for choice in chunk.get("choices") or ():
                    work.finish_reason = str(choice.get("finish_reason") or work.finish_reason)
                    yield str((choice.get("delta") or {}).get("content") or "")
        finally:
            # Closing the stream is what tells the model server to stop; a plain iterator has nothing to close.
            close: Callable[[], Any] | None = getattr(chunks, "aclose", None)
            if close is not None:
                await close()

    @property
    def _max_lines(self) -> int | None:
        prompt = self.release.prompt
        lines = prompt.config.get("max_lines") if prompt is not None else None
        return None if lines is None else int(lines)

    def _chat_fields(self, work: _Work, stream: bool) -> dict[str, Any]:
        return {
            "request_model": self.chat_model,
            "response_model": self.chat_model,
            "input_tokens": work.usage.input_tokens,
            "output_tokens": work.usage.output_tokens,
            "finish_reasons": (work.finish_reason,),
            "stream": stream,
            "time_to_first_chunk_s": work.timings.get("first_text_s"),
        }

    def _finished(self, work: _Work) -> AppAnswer:
        text = self._no_answer if work.abstained else clean(work.raw, self._max_lines)
        declined = work.abstained or text == self._no_answer
        cited = () if declined or not work.used else cite(text, work.used)
        references = [_passage(hit, "cited") for hit in cited] + self._artifacts()
        work.timings["total_s"] = work.log.elapsed_s(work.root)
        fields = {"attributes": {"tidemill.abstained": work.abstained}}
        work.log.end(work.root, references=references, fields=fields)
        return AppAnswer(
            text=text,
            release=self.release.digest,
            trace_id=work.log.context.trace_id,
            model=self.chat_model,
            hits=work.hits,
            context=work.context,
            cited=cited,
            usage=work.usage,
            finish_reason=work.finish_reason,
            abstained=work.abstained,
            spans=tuple(work.log.spans),
            timings=dict(work.timings),
        )

    def _artifacts(self) -> list[Reference]:
        artifacts = {"release": self.release.digest, **self.release.parts.artifacts()}
        return [Reference(kind="artifact", ref=digest, role=role) for role, digest in artifacts.items()]


def _context(traceparent: str | TraceContext | None) -> TraceContext:
    return traceparent if isinstance(traceparent, TraceContext) else read_traceparent(traceparent)


def _passage(hit: Hit, role: str) -> Reference:
    return Reference(kind="passage", ref=hit.passage_id, role=role, rank=hit.rank, score=hit.score)


def _first_choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = body.get("choices")
    if not choices:
        raise UpstreamError(200, "malformed", "the model server's answer holds no choices", retryable=True)
    choice: Mapping[str, Any] = choices[0]
    return choice


def _sampling(parts: ReleaseParts) -> dict[str, Any]:
    decoding = parts.decoding
    request: dict[str, Any] = {
        "max_tokens": decoding.max_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
    }
    if decoding.seed is not None:
        request["seed"] = decoding.seed
    if decoding.stop:
        request["stop"] = list(decoding.stop)
    return request


def _failure(error: BaseException) -> tuple[Status, dict[str, Any]]:
    if isinstance(error, UpstreamError):
        return "error", {"error_type": f"upstream_{error.type}", "http_status": error.status}
    if isinstance(error, Exception):
        return "error", {"error_type": type(error).__name__}
    return "cancelled", {"error_type": "cancelled"}
