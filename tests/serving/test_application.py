"""The core: what is searched, shown, answered, cited and traced; and how it fails."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.serving.releases import PROMPT, SCOPE, ask, make_application, make_index, make_release
from tidemill.kernel import InvalidInput
from tidemill.models.transport import UpstreamError
from tidemill.prompts import Message, Prompt
from tidemill.serving import AppAnswer, Application, LoadedRelease
from tidemill.serving.spans import read_traceparent
from tidemill.serving.testing import ScriptedModel
from tidemill.telemetry import SegmentWriter, Span

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def answer(application: Application, question: str = "what does assert raise?", **options: Any) -> AppAnswer:
    return asyncio.run(application.answer(ask(question), **options))


def test_an_answer_rests_on_what_was_found() -> None:
    model = ScriptedModel(lambda _: "\n It raises AssertionError. \nAnd more.")
    result = answer(make_application(model), traceparent=TRACEPARENT)
    assert result.text == "It raises AssertionError."
    assert result.citations == ["python:topics/assert"]
    assert result.hits[0].document_id == "doc_assert"
    assert "assert\nThe assert statement" in result.context
    assert result.usage.input_tokens > 0
    assert (result.trace_id, result.model) == (TRACE, "tiny")
    assert set(result.timings) >= {"search_s", "generate_s", "total_s", "first_text_s"}
    (request,) = model.requests
    assert request["messages"] == [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": f"what does assert raise?\n{result.context}"},
    ]
    assert request | {"max_tokens": 24, "temperature": 0.0, "top_p": 1.0, "seed": 0, "stop": ["\n\n"]} == request
    extension = result.extension()
    assert extension["citations"] == ["python:topics/assert"]
    assert extension["passages"][0].keys() == {"passage_id", "document_id", "source", "title", "score", "rank"}


def test_spans_join_the_callers_trace_and_name_what_was_used() -> None:
    model = ScriptedModel(lambda _: "It raises AssertionError.")
    application = make_application(model)
    result = answer(application, traceparent=TRACEPARENT)
    retrieval, chat, root = result.spans
    assert [span.operation for span in result.spans] == ["retrieval", "chat", "invoke_agent"]
    assert {span.trace_id for span in result.spans} == {TRACE}
    assert root.parent_span_id == PARENT
    assert {retrieval.parent_span_id, chat.parent_span_id} == {root.span_id}
    assert model.headers[0]["traceparent"] == f"00-{TRACE}-{chat.span_id}-01"
    assert [(ref.role, ref.rank) for ref in retrieval.references] == [("retrieved", hit.rank) for hit in result.hits]
    release = application.release
    roles = {ref.role: ref.ref for ref in root.references}
    assert roles == {
        "cited": result.cited[0].passage_id,
        "release": release.digest,
        "model": release.parts.model,
        "prompt": release.parts.prompt,
        "index": release.parts.index,
    }
    assert (chat.input_tokens, chat.output_tokens) == (result.usage.input_tokens, result.usage.output_tokens)
    assert all(span.status == "ok" and span.duration_s >= 0 and span.project == "desk" for span in result.spans)


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_the_question_is_embedded_where_the_release_needs_it(mode: Any) -> None:
    model = ScriptedModel()
    result = answer(make_application(model, mode), "deletion of a list")
    assert model.embedded == ["deletion of a list"]
    assert result.hits[0].document_id == "doc_del"
    assert result.hits[0].cosine is not None


def test_a_stream_gives_the_same_text_in_pieces() -> None:
    model = ScriptedModel(lambda _: " It raises\nAssertionError.")

    async def collect() -> list[Any]:
        return [part async for part in make_application(model).stream(ask("assert"))]

    *pieces, last = asyncio.run(collect())
    assert len(pieces) > 1
    assert "".join(pieces) == last.text == "It raises"
    assert last.usage.output_tokens == 3
    assert last.spans[1].stream
    assert last.spans[1].time_to_first_chunk_s is not None


def test_below_the_floor_the_release_abstains_without_asking_the_model() -> None:
    model = ScriptedModel()
    application = make_application(model, retrieval={"min_score": 0.5})
    result = answer(application, "recipe for pancakes")
    assert (result.text, result.abstained, result.citations) == ("I cannot say.", True, [])
    assert model.requests == []
    assert [span.operation for span in result.spans] == ["retrieval", "invoke_agent"]
    assert not answer(application).abstained


def test_a_model_that_declines_cites_nothing() -> None:
    result = answer(make_application(ScriptedModel(lambda _: "I cannot say.")))
    assert (result.citations, result.abstained) == ([], False)
    assert result.hits


def test_a_bare_model_gets_the_messages_as_they_are() -> None:
    model = ScriptedModel(lambda messages: f"{len(messages)} messages\nseen")
    messages = [{"role": "system", "content": "x"}, *ask("a")]
    result = asyncio.run(make_application(model, None).answer(messages))
    assert result.text == "2 messages\nseen"
    assert model.requests[0]["messages"] == messages
    assert result.extension()["passages"] == []


def test_a_failing_model_server_is_an_error_with_spans_that_say_so(tmp_path: Path) -> None:
    writer = Recording(tmp_path)
    model = ScriptedModel(failures=[UpstreamError(503, "overloaded", "busy", retryable=True)])
    with pytest.raises(UpstreamError, match="busy"):
        answer(make_application(model, writer=writer))
    assert [(span.operation, span.status) for span in writer.spans] == [
        ("retrieval", "ok"),
        ("chat", "error"),
        ("invoke_agent", "error"),
    ]
    assert writer.spans[-1].error_type == "upstream_overloaded"
    assert writer.spans[-1].http_status == 503
    writer.close()


def test_a_stream_that_is_left_cancels_the_model_and_its_spans(tmp_path: Path) -> None:
    writer = Recording(tmp_path)
    model = ScriptedModel(lambda _: "one two three four")

    async def leave() -> None:
        parts = make_application(model, writer=writer).stream(ask("assert"))
        assert await anext(parts) == "one"
        await parts.aclose()

    asyncio.run(leave())
    assert model.cancelled == 1
    assert [(span.operation, span.status) for span in writer.spans][1:] == [
        ("chat", "cancelled"),
        ("invoke_agent", "cancelled"),
    ]
    writer.close()


def test_releases_that_cannot_work_are_refused() -> None:
    with pytest.raises(InvalidInput, match="needs an embedding model"):
        Application(make_release("hybrid"), ScriptedModel(), chat_model="m", scope=SCOPE)
    with pytest.raises(InvalidInput, match="which needs"):
        make_application(ScriptedModel(), "bm25", retrieval={"mode": "dense"})
    parts = make_release().parts
    with pytest.raises(InvalidInput, match="needs a prompt"):
        LoadedRelease(digest="d", parts=parts, index=make_index())
    for part in ({"policy": parts.model}, {"adapter": parts.model}, {"tools": ({"type": "function"},)}):
        with pytest.raises(InvalidInput, match=f"with {next(iter(part))} cannot be served"):
            LoadedRelease(digest="d", parts=replace(parts, **part))
    odd = Prompt(name="odd", messages=(Message("user", "{{question}} {{mood}}"),))
    with pytest.raises(InvalidInput, match="uses mood"):
        LoadedRelease(digest="d", parts=parts, prompt=odd)
    with pytest.raises(InvalidInput, match="tone"):
        LoadedRelease(digest="d", parts=parts, prompt=Prompt(name="p", messages=PROMPT.messages, config={"tone": 1}))


@pytest.mark.parametrize(
    "header",
    [None, "", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{PARENT}-01"],
)
def test_without_a_valid_traceparent_a_new_trace_begins(header: str | None) -> None:
    context = read_traceparent(header)
    assert context.parent_span_id is None
    assert len(context.trace_id) == 32
    assert context.trace_id != TRACE


class Recording(SegmentWriter):
    """A real segment writer that also keeps what it wrote."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "writer", project=SCOPE.project, tenant=SCOPE.tenant)
        self.spans: list[Span] = []

    def finished(self, span: Span, content: Any = None) -> None:
        super().finished(span, content)
        self.spans.append(span)
