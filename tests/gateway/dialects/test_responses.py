"""``/v1/responses`` as the official client sees it: requests, answers, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.gateway.dialects.responses_server import ResponsesServer, answer, call
from tidemill.gateway.answers import Refusal
from tidemill.gateway.dialects.responses import ResponsesDialect
from tidemill.kernel import InvalidInput
from tidemill.ledger.conversations import ConversationScope

Serve = Callable[..., ResponsesServer]
ClientOf = Callable[..., openai.OpenAI]
SCOPE = ConversationScope("demo", "default", "desk")
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}


def hello(_chat: dict[str, Any]) -> dict[str, Any]:
    return answer("Hello.")


def chat_of(**request: Any) -> dict[str, Any]:
    body = {"model": "desk", "input": "Hi", **request}
    found: dict[str, Any] = json.loads(ResponsesDialect(None, SCOPE).request(json.dumps(body).encode()))
    return found


def refusal_of(**request: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        chat_of(**request)
    assert caught.value.status == 400
    return caught.value


# -- with the official client -------------------------------------------------------------------------------------


def test_a_plain_answer(serve: Serve, client_of: ClientOf) -> None:
    server = serve(hello)
    response = client_of(server).responses.create(
        model="desk", input="Hi", instructions="Be brief.", temperature=0.5, metadata={"a": "b"}, user="ada"
    )
    assert server.chats == [
        {
            "model": "desk",
            "temperature": 0.5,
            "user": "ada",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        }
    ]
    assert response.output_text == "Hello."
    assert response.status == "completed"
    assert response.id.startswith("resp_")
    assert (response.instructions, response.temperature, response.metadata) == ("Be brief.", 0.5, {"a": "b"})
    assert response.model == "scripted-1"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (11, 5, 16)
    assert response.usage.input_tokens_details.cached_tokens == 4
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    # strictly: every field as the client's own types say, with nothing left out
    type(response).model_validate(response.to_dict(), strict=False)


def test_the_async_client(serve: Serve) -> None:
    server = serve(hello)

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="desk", max_retries=0) as client:
            return (await client.responses.create(model="desk", input="Hi")).output_text

    assert asyncio.run(ask()) == "Hello."


def test_calls_of_functions_and_their_results(serve: Serve, client_of: ClientOf) -> None:
    def model(chat: dict[str, Any]) -> dict[str, Any]:
        if chat["messages"][-1]["role"] == "tool":
            return answer("It is sunny.")
        calls = [call("call_1", "weather", '{"city": "Ulm"}'), call("call_2", "weather", '{"city": "Aalen"}')]
        return answer({"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls")

    server, tools = serve(model), [WEATHER]
    client = client_of(server)
    asked: list[Any] = [{"role": "user", "content": "Weather?"}]
    first = client.responses.create(model="desk", input=asked, tools=tools, parallel_tool_calls=True)  # type: ignore[arg-type]
    assert [item.type for item in first.output] == ["function_call", "function_call"]
    asked += first.output
    for item in first.output:
        assert item.type == "function_call"
        asked.append({"type": "function_call_output", "call_id": item.call_id, "output": f"sun in {item.arguments}"})
    second = client.responses.create(model="desk", input=asked, tools=tools)  # type: ignore[arg-type]
    assert second.output_text == "It is sunny."
    sent = server.chats[1]
    assert sent["tools"] == [{"type": "function", "function": {k: v for k, v in WEATHER.items() if k != "type"}}]
    assert sent["messages"][1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [call("call_1", "weather", '{"city": "Ulm"}'), call("call_2", "weather", '{"city": "Aalen"}')],
    }
    assert sent["messages"][2:] == [
        {"role": "tool", "tool_call_id": "call_1", "content": 'sun in {"city": "Ulm"}'},
        {"role": "tool", "tool_call_id": "call_2", "content": 'sun in {"city": "Aalen"}'},
    ]
    assert server.chats[0]["parallel_tool_calls"] is True
    assert "parallel_tool_calls" not in sent


class Place(BaseModel):
    city: str
    people: int


def test_parsing_into_a_pydantic_model(serve: Serve, client_of: ClientOf) -> None:
    server = serve(lambda _: answer('{"city": "Ulm", "people": 129000}'))
    response = client_of(server).responses.parse(model="desk", input="Where?", text_format=Place)
    assert response.output_parsed == Place(city="Ulm", people=129000)
    form = server.chats[0]["response_format"]
    assert form["type"] == "json_schema"
    assert (form["json_schema"]["name"], form["json_schema"]["strict"]) == ("Place", True)
    assert form["json_schema"]["schema"]["required"] == ["city", "people"]


def test_tools_from_pydantic_models_are_parsed(serve: Serve, client_of: ClientOf) -> None:
    calls = [call("call_1", "Place", '{"city": "Ulm", "people": 1}')]
    server = serve(lambda _: answer({"role": "assistant", "tool_calls": calls}, "tool_calls"))
    tools = [openai.pydantic_function_tool(Place)]
    function = {"type": "function", **tools[0]["function"]}
    response = client_of(server).responses.parse(model="desk", input="Where?", tools=[function])  # type: ignore[list-item]
    item = response.output[0]
    assert item.type == "function_call"
    assert json.loads(item.arguments) == {"city": "Ulm", "people": 1}


@pytest.mark.parametrize(
    ("finish_reason", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_incomplete_answer_says_why(serve: Serve, client_of: ClientOf, finish_reason: str, reason: str) -> None:
    server = serve(lambda _: answer("Once upon", finish_reason))
    response = client_of(server).responses.create(model="desk", input="Tell", max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == reason
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert server.chats[0]["max_completion_tokens"] == 2


def test_thoughts_logprobs_refusals_and_annotations(serve: Serve, client_of: ClientOf) -> None:
    tokens = [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}]
    cited = {
        "type": "url_citation",
        "url_citation": {"url": "https://a.example", "title": "A", "start_index": 0, "end_index": 2},
    }
    message = {
        "role": "assistant",
        "content": "Hi",
        "refusal": "No.",
        "reasoning_content": "Hmm",
        "annotations": [cited],
    }
    server = serve(lambda _: answer(message, logprobs={"content": tokens}))
    response = client_of(server).responses.create(
        model="desk",
        input="Hi",
        include=["message.output_text.logprobs"],
        reasoning={"effort": "low", "summary": "auto"},
    )
    thought, said = response.output
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == "Hmm"
    assert said.type == "message"
    text, refusal = said.content
    assert text.type == "output_text"
    assert text.logprobs is not None
    assert text.logprobs[0].token == "Hi"
    assert text.annotations[0].type == "url_citation"
    assert text.annotations[0].url == "https://a.example"
    assert refusal.type == "refusal"
    assert refusal.refusal == "No."
    assert server.chats[0]["logprobs"] is True
    assert server.chats[0]["reasoning_effort"] == "low"


def test_what_a_provider_wants_back_of_its_thoughts_goes_back(serve: Serve, client_of: ClientOf) -> None:
    details = [{"type": "reasoning.text", "text": "Hmm", "signature": "c2ln"}]
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "Hmm", "reasoning_details": details}
    server = serve(lambda _: answer(message))
    client = client_of(server)
    shown = client.responses.create(model="desk", input="Hi", include=["reasoning.encrypted_content"], store=False)
    hidden = client.responses.create(model="desk", input="Hi")
    assert shown.output[0].encrypted_content  # type: ignore[union-attr]
    assert hidden.output[0].encrypted_content is None  # type: ignore[union-attr]
    client.responses.create(model="desk", input=[*shown.output, {"role": "user", "content": "More"}])  # type: ignore[list-item]
    client.responses.create(model="desk", input="More", previous_response_id=hidden.id)
    for chat in server.chats[2:]:
        assistant = next(one for one in chat["messages"] if one["role"] == "assistant")
        assert assistant == {"role": "assistant", "content": "Hi", "reasoning_details": details}


def test_errors_are_the_clients_own_classes(serve: Serve, client_of: ClientOf) -> None:
    server = serve(
        lambda _: {"error": {"message": "slow down", "type": "rate_limit_error", "param": None, "code": "x"}}
    )
    with pytest.raises(openai.RateLimitError, match="slow down"):
        client_of(server).responses.create(model="desk", input="Hi")
    with pytest.raises(openai.BadRequestError, match="the tool 'web_search'") as refused:
        client_of(server).responses.create(model="desk", input="Hi", tools=[{"type": "web_search"}])
    assert refused.value.code == "unsupported_parameter"


# -- fields -------------------------------------------------------------------------------------------------------


def test_fields_that_a_chat_has_too_are_mapped() -> None:
    chat = chat_of(
        top_p=0.9,
        max_output_tokens=9,
        top_logprobs=3,
        reasoning={"effort": "high"},
        text={"format": {"type": "json_object"}, "verbosity": "low"},
        safety_identifier="s",
        service_tier="flex",
        prompt_cache_key="k",
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "weather"},
        stream=True,
        truncation="disabled",
        store=False,
        seed=7,
        top_k=40,
    )
    assert chat == {
        "model": "desk",
        "messages": [{"role": "user", "content": "Hi"}],
        "top_p": 0.9,
        "max_completion_tokens": 9,
        "logprobs": True,
        "top_logprobs": 3,
        "reasoning_effort": "high",
        "response_format": {"type": "json_object"},
        "verbosity": "low",
        "safety_identifier": "s",
        "service_tier": "flex",
        "prompt_cache_key": "k",
        "tools": [{"type": "function", "function": {k: v for k, v in WEATHER.items() if k != "type"}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 7,  # nobody here knows these two: passed on
        "top_k": 40,
    }


def test_custom_tools_and_allowed_tools() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "run"}]}
    chat = chat_of(
        tools=[{"type": "custom", "name": "run", "format": grammar}],
        tool_choice=allowed,
        input=[
            {"type": "custom_tool_call", "call_id": "c", "name": "run", "input": "a"},
            {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
        ],
    )
    wanted = {"name": "run", "format": {"type": "grammar", "grammar": {"definition": 'start: "a"', "syntax": "lark"}}}
    assert chat["tools"] == [{"type": "custom", "custom": wanted}]
    assert chat["tool_choice"]["allowed_tools"] == {
        "mode": "required",
        "tools": [{"type": "custom", "custom": {"name": "run"}}],
    }
    assert chat["messages"] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "run", "input": "a"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]


def test_parts_of_messages_are_mapped() -> None:
    content = [
        {"type": "input_text", "text": "See"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]
    chat = chat_of(
        input=[
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": content},
            {"role": "assistant", "content": "I see."},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "ok"}]},
        ]
    )
    assert chat["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "See"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            ],
        },
        {
            "role": "assistant",
            "content": "I see.",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "ok"},
    ]


@pytest.mark.parametrize(
    "tool",
    ["web_search", "web_search_preview", "file_search", "code_interpreter", "mcp", "computer", "computer_use_preview",
     "image_generation", "local_shell", "shell", "apply_patch", "tool_search", "namespace"],
)  # fmt: skip
def test_built_in_tools_are_refused_by_name(tool: str) -> None:
    assert f"cannot serve the tool '{tool}'" in refusal_of(tools=[{"type": tool}]).message
    assert f"cannot serve the tool '{tool}'" in refusal_of(tool_choice={"type": tool}).message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("background", True),
        ("background_options", {}),
        ("prompt", {"id": "pmpt_1"}),
        ("context_management", []),
        ("moderation", {"model": "m"}),
        ("access_programs", {"cyber": "standard"}),
        ("image", {}),
        ("messages", []),
        ("n", 2),
        ("include", ["something.else"]),
        ("stream_options", {"include_obfuscation": True}),
        ("reasoning", {"summary": "detailed"}),
        ("reasoning", {"mode": "pro"}),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(field: str, value: Any) -> None:
    refusal = refusal_of(**{field: value})
    assert f"cannot serve '{field}" in refusal.message
    assert refusal.code == "unsupported_parameter"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"input": 7}, "input"),
        ({"input": ["Hi"]}, "input[0]"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "u"}]}]},
            "input[0].content[0].file_url",
        ),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": None}, "input"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": {}}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 99}, "top_logprobs"),
        ({"truncation": "some"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"store": "yes"}, "store"),
        ({"stream": "yes"}, "stream"),
        ({"conversation": 5}, "conversation"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"instructions": ["x"]}, "instructions"),
        ({"model": None}, "model"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(request_: dict[str, Any], param: str) -> None:
    refusal = refusal_of(**request_)
    assert refusal.param == param
    assert len(refusal.message) > 20


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal, match="request body"):
        ResponsesDialect(None, SCOPE).request(body)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices": []}', b'{"choices": 3}'])
def test_an_answer_that_is_none_is_told(body: bytes) -> None:
    dialect = ResponsesDialect(None, SCOPE)
    dialect.request(b'{"model": "desk", "input": "Hi"}')
    with pytest.raises(InvalidInput, match="answer cannot be read"):
        dialect.answer(body)


def test_null_fields_count_as_absent() -> None:
    nothing = dict.fromkeys(("instructions", "tools", "prompt", "text", "reasoning", "include", "store", "temperature"))
    assert chat_of(**nothing) == {"model": "desk", "messages": [{"role": "user", "content": "Hi"}]}


def test_a_tidemill_extension_reaches_the_client(serve: Serve, client_of: ClientOf) -> None:
    server = serve(lambda _: {**answer("Hi"), "tidemill": {"citations": ["a"]}})
    response = client_of(server).responses.create(model="desk", input="Hi")
    assert response.to_dict()["tidemill"] == {"citations": ["a"]}
