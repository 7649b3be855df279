"""A small release to serve: real prompt, real index, scripted model."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from tidemill.kernel import Decoding, ReleaseParts, RowId, Scope, digest_json
from tidemill.prompts import Message, Prompt
from tidemill.retrieval import Index, Mode, index_passages, split
from tidemill.serving import Application, LoadedRelease
from tidemill.serving.testing import ScriptedModel, hash_embeddings

SCOPE = Scope("desk", "acme")
DOCUMENTS = {
    "assert": "The assert statement is used for debugging. It raises AssertionError when its condition is false.",
    "with": "The with statement wraps a block of code. A context manager defines what happens on entry and exit.",
    "del": "The del statement removes a name from its namespace. Deletion of a list is recursive.",
}
PROMPT = Prompt(
    name="answer",
    messages=(Message("system", "Answer briefly."), Message("user", "{{question}}\n{{context}}")),
    config={"no_answer": "I cannot say.", "max_lines": 1},
)


def make_index(mode: Mode = "bm25") -> Index:
    passages = [
        passage
        for name, text in DOCUMENTS.items()
        for passage in split(RowId(f"doc_{name}"), {"title": name, "text": text, "source": f"python:topics/{name}"})
    ]
    vectors: np.ndarray = hash_embeddings([passage.titled_text for passage in passages])
    return index_passages(passages, vectors=None if mode == "bm25" else vectors, mode=mode)


def make_release(mode: Mode | None = "bm25", retrieval: Mapping[str, Any] = MappingProxyType({})) -> LoadedRelease:
    """With ``mode`` None a bare model."""
    parts = ReleaseParts(
        model=digest_json("model"),
        prompt=None if mode is None else digest_json(PROMPT.as_json()),
        index=None if mode is None else digest_json("index"),
        decoding=Decoding(max_tokens=24, stop=("\n\n",)),
        retrieval=dict(retrieval),
    )
    prompt, index = (None, None) if mode is None else (PROMPT, make_index(mode))
    return LoadedRelease(digest=parts.digest, parts=parts, prompt=prompt, index=index)


def make_application(model: ScriptedModel, mode: Mode | None = "bm25", **options: Any) -> Application:
    retrieval = options.pop("retrieval", {})
    embedder = (model, "minilm") if mode in ("dense", "hybrid") else None
    return Application(
        make_release(mode, retrieval), model, chat_model="tiny", embedder=embedder, scope=SCOPE, **options
    )


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]
