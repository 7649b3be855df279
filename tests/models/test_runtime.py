"""The runtime as its clients see it: a real process with the real small models, asked by the ``openai`` client."""

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from tidemill.models import ModelClient, UpstreamError

CHAT = "smollm2-135m-instruct"
EMBEDDING = "all-minilm-l6-v2"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(runtime: Any) -> Any:
    with openai.OpenAI(base_url=runtime.url, api_key="none", max_retries=0) as client:
        yield client


def test_models_and_health(client: Any, runtime: Any) -> None:
    assert [model.id for model in client.models.list()] == [CHAT, EMBEDDING]
    answer = httpx2.get(runtime.url.removesuffix("/v1") + "/health")
    assert answer.json()["status"] == "ok"


def test_chat(client: Any) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=12, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == CHAT
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def _warm(client: Any) -> None:
    """Let the prompt be read once: its numbers differ in the last bits between a first reading and a cached one."""
    client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=1, temperature=0)


def test_streaming_says_the_same_and_counts(client: Any) -> None:
    _warm(client)
    options: dict[str, Any] = {"model": CHAT, "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**options).choices[0].message.content
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage.completion_tokens == 12
    assert len(chunks) > 10


def test_seeds_repeat_an_answer(client: Any) -> None:
    _warm(client)
    options: dict[str, Any] = {"model": CHAT, "messages": QUESTION, "max_tokens": 16, "temperature": 1.0, "top_p": 0.95}
    texts = [
        client.chat.completions.create(**options, seed=seed).choices[0].message.content for seed in (1, 1, 2, 3, 4)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_stop_sequences(client: Any) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=24, temperature=0, stop=["Paris"])
    assert "Paris" not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities(client: Any) -> None:
    answer = client.chat.completions.create(
        model=CHAT, messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 4
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token


def test_json_schema(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "Describe a person as JSON."}],
        max_tokens=64,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
    )
    person = json.loads(answer.choices[0].message.content)
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)


def test_text_completion(client: Any) -> None:
    answer = client.completions.create(model=CHAT, prompt="The capital of France is", max_tokens=4, temperature=0)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.usage.completion_tokens == 4


def test_embeddings_as_floats_and_as_base64(client: Any, runtime: Any) -> None:
    texts = ["how to write a loop", "the for statement iterates", "bananas"]
    floats = client.embeddings.create(model=EMBEDDING, input=texts, encoding_format="float")
    vectors = np.array([row.embedding for row in floats.data], np.float32)
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    body = httpx2.post(
        runtime.url + "/embeddings", json={"model": EMBEDDING, "input": texts, "encoding_format": "base64"}
    ).json()
    decoded = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in body["data"]]
    np.testing.assert_array_equal(vectors, decoded)
    assert body["usage"] == {"prompt_tokens": 18, "total_tokens": 18}
    np.testing.assert_allclose(decoded, asyncio.run(_embed(runtime.url, texts)), atol=1e-6)
    one = client.embeddings.create(model=EMBEDDING, input="bananas")
    assert len(one.data) == 1


async def _embed(url: str, texts: list[str]) -> np.ndarray:
    async with ModelClient(url) as client:
        return await client.embed(texts, EMBEDDING)


def test_errors_have_openai_bodies(client: Any, runtime: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    assert missing.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=CHAT, input="x")
    with pytest.raises(openai.NotFoundError, match="Not Found"):
        client.post("/nowhere", cast_to=object)


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("chat/completions", b"{", "not JSON"),
        ("chat/completions", b"[]", "JSON object"),
        ("chat/completions", b'{"messages": []}', "name a 'model'"),
        ("chat/completions", {"messages": []}, "at least one message"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "content"),
        ("chat/completions", {"messages": QUESTION, "temperature": "hot"}, "temperature"),
        ("chat/completions", {"messages": QUESTION, "stream": True, "temperature": "hot"}, "temperature"),
        ("chat/completions", {"messages": [{"role": "user", "content": "word " * 9000}]}, "context"),
        ("completions", {}, "'prompt' is required"),
        ("embeddings", {"input": []}, "'input'"),
        ("embeddings", {"input": [1, 2]}, "'input'"),
        ("embeddings", {"input": "x", "dimensions": 7}, "384 dimensions"),
        ("embeddings", {"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ("embeddings", {"input": ["x"] * 2049}, "at most 2048"),
    ],
)
def test_bad_requests_are_told(runtime: Any, path: str, body: Any, part: str) -> None:
    if isinstance(body, dict):
        body = json.dumps({"model": EMBEDDING if path == "embeddings" else CHAT, **body}).encode()
    answer = httpx2.post(f"{runtime.url}/{path}", content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert part in error["message"]
    assert error["type"]


def test_pages_of_other_sites_are_refused(runtime: Any) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
        assert httpx2.get(runtime.url + "/models", headers=headers).status_code == 403


def test_eight_at_once_and_two_dozen_queued(client: Any) -> None:
    def ask(number: int) -> str:
        messages = [{"role": "user", "content": f"Say a word that begins like the number {number}."}]
        answer = client.chat.completions.create(model=CHAT, messages=messages, max_tokens=6, temperature=0)
        return str(answer.choices[0].finish_reason)

    with ThreadPoolExecutor(24) as pool:
        assert set(pool.map(ask, range(24))) <= {"length", "stop"}


def test_a_shared_beginning_is_not_computed_again(client: Any) -> None:
    rules = "You answer questions about tides and mills in one short sentence. " * 6

    def ask(question: str) -> Any:
        messages = [{"role": "system", "content": rules}, {"role": "user", "content": question}]
        return client.chat.completions.create(model=CHAT, messages=messages, max_tokens=1, temperature=0).usage

    ask("What turns the wheel?")
    usage = ask("When does the water rise?")
    assert usage.prompt_tokens_details.cached_tokens > 0.6 * usage.prompt_tokens


def test_the_asynchronous_clients(runtime: Any) -> None:
    request = {"model": CHAT, "messages": QUESTION, "max_tokens": 8, "temperature": 0}

    async def ours() -> tuple[str, str]:
        async with ModelClient(runtime.url) as client:
            whole = await client.chat(request)
            parts = [
                chunk["choices"][0]["delta"].get("content") or ""
                async for chunk in client.stream(request)
                if chunk["choices"]
            ]
            assert await client.models() == [CHAT, EMBEDDING]
            with pytest.raises(UpstreamError, match="does not exist") as missing:
                await client.chat({**request, "model": "x"})
            assert missing.value.status == 404
            with pytest.raises(UpstreamError, match="temperature"):
                await anext(client.stream({**request, "temperature": "hot"}))
        return whole["choices"][0]["message"]["content"], "".join(parts)

    async def theirs() -> str:
        async with openai.AsyncOpenAI(base_url=runtime.url, api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(**request, stream=True)  # type: ignore[call-overload] # a dict
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    whole, parts = asyncio.run(ours())
    assert whole == parts == asyncio.run(theirs())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(runtime: Any, stream: bool) -> None:
    request = {"model": CHAT, "messages": QUESTION, "max_tokens": 6000, "ignore_eos": True, "stream": stream}

    async def leave() -> None:
        async with httpx2.AsyncClient() as client:
            for _ in range(8):
                try:
                    async with client.stream("POST", runtime.url + "/chat/completions", json=request, timeout=0.3) as r:
                        await anext(r.aiter_raw())
                except httpx2.ReadTimeout:
                    pass

    asyncio.run(leave())
    begun = time.monotonic()
    with openai.OpenAI(base_url=runtime.url, api_key="none", max_retries=0) as client:
        client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=2)
    # eight answers of 6000 tokens would keep this machine busy for minutes
    assert time.monotonic() - begun < 10


def _arguments(pulled: Any) -> list[str]:
    files = pulled.embedding
    return ["--embed", str(files["weights"]), "--tokenizer", str(files["tokenizer"]), "--threads", "1"]


def test_a_stop_signal_lets_a_running_answer_end(pulled: Any, launch: Any) -> None:
    process, url = launch("--chat", str(pulled.chat["weights"]), "--threads", "1")
    request = {"model": CHAT, "messages": QUESTION, "max_tokens": 40, "ignore_eos": True, "stream": True}
    with httpx2.stream("POST", url + "/chat/completions", json=request, timeout=20) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.terminate()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait(timeout=20) == 0
    process.stdout.close()


def test_it_ends_when_its_parent_dies(pulled: Any) -> None:
    script = "import subprocess, sys, os; subprocess.Popen([*sys.argv[1:], str(os.getpid())]); sys.stdin.read()"
    command = [sys.executable, "-m", "tidemill.models.runtime", *_arguments(pulled), "--parent-pid"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[-1])
        os.kill(pid, 0)
        parent.kill()
        parent.wait()
        # the pipe closes when its last holder, the runtime, is gone
        assert parent.stdout.read() == ""


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "there is no model to serve"),
        (["--chat", "/no/file.gguf"], "there is no file '/no/file.gguf'"),
        (["--embed", "x.onnx"], "needs --tokenizer"),
        (["--chat", __file__], "cannot load"),
        (["--port", "{taken}", "--chat", "x"], "cannot listen on 127.0.0.1"),
    ],
)
def test_mistakes_end_with_two_and_a_sentence(runtime: Any, arguments: list[str], part: str) -> None:
    taken = runtime.url.rsplit(":", 1)[1].removesuffix("/v1")
    command = [sys.executable, "-m", "tidemill.models.runtime", *(a.format(taken=taken) for a in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr
