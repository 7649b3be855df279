"""A release on the real small models: hybrid search by MiniLM, answers by SmolLM2."""

import asyncio
from typing import Any

import pytest

from tests.models.conftest import Pulled, Runtime
from tests.models.conftest import pulled as pulled  # noqa: PLC0414 - fixtures, named again to be found here
from tests.models.conftest import runtime as runtime  # noqa: PLC0414
from tests.serving.releases import DOCUMENTS, PROMPT, SCOPE, ask
from tidemill.kernel import Decoding, ReleaseParts, RowId, digest_json
from tidemill.models import ModelClient
from tidemill.retrieval import index_passages, split
from tidemill.serving import AppAnswer, Application, LoadedRelease

CHAT, EMBEDDING = "smollm2-135m-instruct", "all-minilm-l6-v2"


@pytest.mark.slow
def test_a_hybrid_release_answers(pulled: Pulled, runtime: Runtime) -> None:
    passages = [
        passage
        for name, text in DOCUMENTS.items()
        for passage in split(RowId(f"doc_{name}"), {"title": name, "text": text, "source": f"python:{name}"})
    ]
    parts = ReleaseParts(model=digest_json(CHAT), decoding=Decoding(max_tokens=16), retrieval={"top_k": 2})

    async def run() -> tuple[AppAnswer, list[Any]]:
        async with ModelClient(runtime.url) as client:
            vectors = await client.embed([passage.titled_text for passage in passages], EMBEDDING)
            index = index_passages(passages, vectors=vectors, mode="hybrid")
            release = LoadedRelease(digest=parts.digest, parts=parts, prompt=PROMPT, index=index)
            application = Application(release, client, chat_model=CHAT, embedder=(client, EMBEDDING), scope=SCOPE)
            question = ask("How can I get rid of a variable?")
            whole = await application.answer(question)
            return whole, [part async for part in application.stream(question)]

    whole, streamed = asyncio.run(run())
    assert whole.hits[0].document_id == "doc_del"
    assert whole.text
    assert 0 < whole.usage.output_tokens <= 16
    # Not the text of before: a prompt that the engine has in its cache may be continued otherwise.
    assert "".join(streamed[:-1]) == streamed[-1].text
    assert streamed[-1].usage.input_tokens == whole.usage.input_tokens
