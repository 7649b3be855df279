from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry import trace as otel
from opentelemetry.trace import StatusCode

import tidemill as tm
from tests.tm.conftest import Spans
from tidemill.kernel import InvalidInput


def parent_of(one: Any) -> str | None:
    return None if one.parent is None else f"{one.parent.span_id:016x}"


def id_of(one: Any) -> str:
    return f"{one.get_span_context().span_id:016x}"


def test_a_request_with_its_steps(spans: Spans) -> None:
    with tm.trace("answer", session="s1", user="mia", release="desk@2", prompt="answer@3") as request:
        request.input("How much?").output({"euros": 12})
        with tm.span("search", operation="retrieval") as search:
            search.retrieved(["psg_1", {"id": "psg_2", "score": 0.5, "content": "12 euros"}])
        request.used("psg_1").used("sha256:ab", role="index", kind="artifact")
        request.usage(input_tokens=3, output_tokens=4, cost_usd=0.5).model("small", provider="openai").set(a__b=1)
    assert spans.names == ["search", "answer"]
    assert parent_of(spans["search"]) == id_of(spans["answer"]) == request.span_id
    answer, search_said = spans.said("answer"), spans.said("search")
    assert answer["tidemill.entry"] is True
    assert (answer["input.value"], answer["input.mime_type"]) == ("How much?", "text/plain")
    assert (answer["output.value"], answer["output.mime_type"]) == ('{"euros": 12}', "application/json")
    assert answer["tidemill.prompt"] == "answer@3"
    assert '"rank": 2' in str(answer["tidemill.references"])
    assert (answer["gen_ai.usage.output_tokens"], answer["tidemill.cost_usd"], answer["a.b"]) == (4, 0.5, 1)
    assert search_said["retrieval.documents.1.document.score"] == 0.5
    assert search_said["gen_ai.operation.name"] == "retrieval"
    assert "tidemill.entry" not in search_said
    for said in (answer, search_said):
        assert (said["session.id"], said["user.id"], said["tidemill.release"]) == ("s1", "mia", "desk@2")
    assert "tidemill.prompt" not in search_said


def test_what_is_named_later_reaches_what_comes_after(spans: Spans) -> None:
    with tm.trace("answer") as request:
        with tm.span("before"):
            pass
        request.session("s2").endpoint("desk")
        with otel.get_tracer("another library").start_as_current_span("third party"), tm.span("after"):
            pass
    assert "session.id" not in spans.said("before")
    for name in ("third party", "after", "answer"):
        assert (spans.said(name)["session.id"], spans.said(name)["tidemill.endpoint"]) == ("s2", "desk")
    assert parent_of(spans["after"]) == id_of(spans["third party"])
    assert parent_of(spans["third party"]) == id_of(spans["answer"])


def test_a_trace_below_a_server_s_span_counts_as_the_request_and_one_below_it_does_not(spans: Spans) -> None:
    with otel.get_tracer("web").start_as_current_span("POST /ask"), tm.trace("outer"), tm.trace("inner"):
        pass
    assert spans.said("outer")["tidemill.entry"] is True
    assert "tidemill.entry" not in spans.said("inner")
    assert parent_of(spans["outer"]) == id_of(spans["POST /ask"])


def test_functions(spans: Spans) -> None:
    @tm.trace
    def answer(question: str) -> str:
        return ask(question, twice=True) + str(tm.current().trace_id == f"{trace_id():032x}")

    @tm.span("asking", operation="chat")
    def ask(question: str, *, twice: bool = False) -> str:
        """What it is for."""
        return question * (2 if twice else 1)

    def trace_id() -> int:
        return otel.get_current_span().get_span_context().trace_id

    assert answer("ha") == "hahaTrue"
    assert (ask.__name__, ask.__doc__) == ("ask", "What it is for.")
    name = "test_functions.answer"
    assert spans.said(name)["input.value"] == "ha"
    assert spans.said("asking")["input.value"] == '{"question": "ha", "twice": true}'
    assert spans.said("asking")["output.value"] == "haha"
    assert parent_of(spans["asking"]) == id_of(spans[name])


def test_methods_leave_themselves_out(spans: Spans) -> None:
    @dataclass
    class Desk:
        secret: str

        @tm.span("method")
        def ask(self, question: str) -> dict[str, Any]:
            return {"by": self.secret}

    Desk("x").ask("why")
    assert spans.said("method")["input.value"] == "why"


def test_an_exception_is_recorded_and_raised(spans: Spans) -> None:
    @tm.span("breaks")
    def breaks(question: str) -> None:
        raise ValueError("the cat sat on it")

    @tm.span("hides", capture=False)
    def hides(question: str) -> str:
        raise ValueError(question)

    with pytest.raises(ValueError, match="the cat"):
        breaks("why")
    with pytest.raises(ValueError, match="a secret"):
        hides("a secret")
    one = spans["breaks"]
    assert one.status.status_code is StatusCode.ERROR
    assert spans.said("breaks")["error.type"] == "ValueError"
    assert (one.events[0].attributes or {})["exception.message"] == "the cat sat on it"
    hidden = spans["hides"]
    assert hidden.status.status_code is StatusCode.ERROR
    assert "secret" not in f"{hidden.attributes} {hidden.status.description} {[e.attributes for e in hidden.events]}"


def test_the_capture_switch(spans: Spans) -> None:
    for name, capture in (("both", True), ("none", False), ("in", "input"), ("out", "output")):
        tm.span(name, capture=capture)(lambda question: question)("what was said")  # type: ignore[arg-type]
    kept = {one.name: {key for key in one.attributes or {} if key.endswith(".value")} for one in spans.all}
    assert kept == {
        "both": {"input.value", "output.value"},
        "none": set(),
        "in": {"input.value"},
        "out": {"output.value"},
    }
    with pytest.raises(InvalidInput, match="capture is 'sometimes'"):
        tm.span("x", capture="sometimes")  # type: ignore[call-overload]


def test_coroutines_side_by_side_keep_their_own_parents(spans: Spans) -> None:
    @tm.trace
    async def answer(number: int) -> int:
        async with tm.span(f"before {number}"):
            await asyncio.sleep(0)
        return await ask(number)

    @tm.span("asking")
    async def ask(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def both() -> list[int]:
        return await asyncio.gather(answer(1), answer(2))

    assert asyncio.run(both()) == [1, 2]
    roots = {id_of(one): (one.attributes or {})["output.value"] for one in spans.all if one.parent is None}
    asked = {parent_of(one): (one.attributes or {})["output.value"] for one in spans.all if one.name == "asking"}
    assert roots == asked
    assert len(roots) == 2


def test_a_cancelled_coroutine_has_not_failed(spans: Spans) -> None:
    @tm.trace("waits")
    async def waits() -> None:
        await asyncio.Event().wait()

    async def leave() -> None:
        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert spans.said("waits")["tidemill.status"] == "cancelled"
    assert spans["waits"].status.status_code is StatusCode.UNSET


def test_a_generator_s_span_ends_with_it_and_is_not_its_caller_s(spans: Spans) -> None:
    @tm.trace("stream")
    def stream(question: str) -> Iterator[str]:
        with tm.span("inside"):
            yield "a"
        yield "b"
        return "end"

    words = stream("why")
    assert spans.names == []
    assert next(words) == "a"
    assert otel.get_current_span() is otel.INVALID_SPAN or spans.names == []
    with tm.span("caller's"):
        assert next(words) == "b"
    with pytest.raises(StopIteration, match="end"):
        next(words)
    assert spans.said("stream")["output.value"] == "ab"
    assert spans.said("stream")["input.value"] == "why"
    assert spans.said("stream")["gen_ai.response.time_to_first_chunk"] >= 0  # type: ignore[operator]
    assert parent_of(spans["inside"]) == id_of(spans["stream"])
    assert spans["caller's"].parent is None
    assert spans["stream"].status.status_code is StatusCode.UNSET
    assert "tidemill.status" not in spans.said("stream")


def test_a_generator_that_is_left_early_is_cancelled(spans: Spans) -> None:
    closed = []

    @tm.trace("stream")
    def stream() -> Iterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append(True)

    for word in stream():
        assert word == "a"
        break
    gc.collect()
    assert closed == [True]
    assert spans.said("stream")["tidemill.status"] == "cancelled"
    assert spans.said("stream")["output.value"] == "a"


def test_generators_can_be_talked_to(spans: Spans) -> None:
    @tm.span("echo")
    def echo() -> Any:
        said = "ready"
        while said != "stop":
            try:
                said = yield said
            except KeyError as error:
                said = f"caught {error.args[0]}"
        raise ValueError("stopped")

    talk = echo()
    assert [next(talk), talk.send("hello"), talk.throw(KeyError("k"))] == ["ready", "hello", "caught k"]
    with pytest.raises(ValueError, match="stopped"):
        talk.send("stop")
    assert spans["echo"].status.status_code is StatusCode.ERROR


def test_asynchronous_generators(spans: Spans) -> None:
    @tm.trace("stream")
    async def stream(count: int) -> AsyncIterator[int]:
        for number in range(count):
            async with tm.span(f"step {number}"):
                await asyncio.sleep(0)
            yield number

    async def read() -> list[int]:
        found = [number async for number in stream(3)]
        left = stream(3)
        async for number in left:
            found.append(number)
            break
        await left.aclose()  # type: ignore[attr-defined]
        return found

    assert asyncio.run(read()) == [0, 1, 2, 0]
    whole, early = [one for one in spans.all if one.name == "stream"]
    assert (whole.attributes or {})["output.value"] == "[0, 1, 2]"
    assert "tidemill.status" not in (whole.attributes or {})
    assert (early.attributes or {})["tidemill.status"] == "cancelled"
    assert {parent_of(one) for one in spans.all if one.name == "step 0"} == {id_of(whole), id_of(early)}


def test_a_block_is_opened_once(spans: Spans) -> None:
    step = tm.span("once")
    with step, pytest.raises(InvalidInput, match="open already"):
        step.__enter__()
    with step:  # but it may follow itself
        pass
    assert spans.names == ["once", "once"]


def test_what_has_no_form_in_json_is_described(spans: Spans) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    circle: list[Any] = []
    circle.append(circle)
    values = [Odd(), circle, {1, 2}, b"bytes", {("a", 1): 2}, "\ud800 half", float("nan")]
    for number, value in enumerate(values):
        with tm.span(f"{number}") as one:
            one.input(value)
    assert spans.said("0")["input.value"] == '"<Odd>"'
    assert spans.said("2")["input.value"] == "[1, 2]"
    assert spans.said("5")["input.value"] == "? half"
    assert all("input.value" in spans.said(f"{number}") for number in range(len(values)))


def test_long_texts_are_cut_with_a_mark(spans: Spans) -> None:
    with tm.span("long") as one:
        one.input("x" * 300_000)
    assert str(spans.said("long")["input.value"]).endswith("… [cut: 37856 characters more]")


def test_a_wrong_kind_of_reference() -> None:
    with tm.span("x") as one, pytest.raises(InvalidInput, match="passage or artifact"):
        one.used("a", kind="thing")  # type: ignore[arg-type]


def test_without_the_extra_the_error_names_it() -> None:
    code = """
import sys
sys.modules['opentelemetry'] = None
import tidemill as tm
from tidemill.kernel import MissingExtra
for use in (lambda: tm.trace(print), lambda: tm.span('x').__enter__(), tm.configure, tm.current):
    try:
        use()
    except MissingExtra as error:
        assert "pip install 'tidemill[otel]'" in str(error), error
    else:
        raise SystemExit('no error')
print('told')
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("told\n", "")


def test_importing_tidemill_loads_no_opentelemetry() -> None:
    code = (
        "import sys, tidemill; print([name for name in sys.modules if name.startswith(('opentelemetry', 'tidemill.'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
