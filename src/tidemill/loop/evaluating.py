"""Evaluates a release in process: its search on all cases, its answers by the model server the project names."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tidemill.evaluation import (
    Answer,
    Case,
    CaseSet,
    Passage,
    Report,
    Subject,
    citation_correct,
    exact,
    groundedness,
    run_evaluation,
    token_f1,
)
from tidemill.kernel import CaseId, InvalidInput, NotFound, ReleaseParts, SystemClock, Target, Unavailable
from tidemill.loop.targets import is_local, model_target, open_client
from tidemill.models import ModelClient
from tidemill.serving import AppAnswer, Application, LoadedRelease, load_release

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion, Ledger
    from tidemill.loop.project import Project

_CONNECT_S = 2.0


def read_cases(path: Path) -> list[Case]:
    """The cases of a question file: one JSON object a line, with the fields of ``Case``.

    Raises:
        NotFound: there is no such file.
        InvalidInput: a line that is no case; the message names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise NotFound(f"There is no question file '{path}'.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The question file '{path}' cannot be read: {error}.") from None
    cases = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InvalidInput(f"{path}, line {number} is not JSON: {error}.") from None
        if not isinstance(value, dict):
            raise InvalidInput(f"{path}, line {number} is not a JSON object with a 'question'.")
        try:
            cases.append(Case.from_value(value))
        except InvalidInput as error:
            raise InvalidInput(f"{path}, line {number}: {error.message}", hint=error.hint) from None
    return cases


def evaluate_release(
    project: Project,
    release: ArtifactVersion,
    cases: CaseSet,
    *,
    name: str,
    answered: Collection[CaseId] | None = None,
    concurrency: int = 4,
    on_progress: Callable[[float, str], None] | None = None,
) -> Report:
    """Score a release on cases and publish the report. Killed, the next call asks only what was not answered.

    Args:
        project: the opened project; its model servers answer.
        release: the release artifact.
        cases: what it is asked.
        name: name of the report.
        answered: ids of the cases to answer; ``None`` means all. Search is scored on all.
        concurrency: questions asked at once.
        on_progress: told the share done and a note.

    Raises:
        Unavailable: a model server does not answer, or nothing could be asked.
        InvalidInput: the release cannot be served.
    """
    loaded = load_release(project.ledger, release.digest)
    entry = project.ledger.artifacts.by_digest(ReleaseParts.from_json(release.content).model).content["entry"]
    place = model_target(project.settings, entry, SystemClock().now().date())
    runtime = project.settings.runtime
    embed_url = f"http://{runtime.host}:{runtime.port}/v1"
    searches = _search_mode(loaded) not in (None, "bm25")
    if searches and runtime.embedding is None:
        raise InvalidInput(f"{release.ref} searches by vectors, and runtime.embedding names no model.")
    for url in {place.url, embed_url} if searches else {place.url}:
        _check_answers(url, local=is_local(entry) or url == embed_url)
    return asyncio.run(
        _evaluate(
            project.ledger,
            loaded,
            cases,
            place,
            (embed_url, runtime.embedding) if searches and runtime.embedding else None,
            {"name": name, "concurrency": concurrency, "on_progress": on_progress},
            answered,
        )
    )


def as_answer(answer: AppAnswer, place: Target | None = None) -> Answer:
    """An application's answer as evaluation sees it; the sources shown to the user are its citations."""
    usage = answer.usage
    cost_usd = 0.0
    if place is not None:
        prices = place.prices
        tokens_usd = usage.input_tokens * prices.input_usd_per_mtok + usage.output_tokens * prices.output_usd_per_mtok
        cost_usd = tokens_usd / 1e6
    return Answer(
        text=answer.text,
        passages=tuple(Passage(hit.source, f"{hit.title} {hit.text}") for hit in answer.hits),
        citations=tuple(dict.fromkeys(hit.source for hit in answer.hits)) if not answer.abstained else (),
        latency_s=float(answer.timings.get("total_s", 0.0)),
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=cost_usd,
    )


async def _evaluate(
    ledger: Ledger,
    loaded: LoadedRelease,
    cases: CaseSet,
    place: Target,
    embedding: tuple[str, str] | None,
    options: dict[str, Any],
    answered: Collection[CaseId] | None,
) -> Report:
    models = open_client(place)
    embedder = ModelClient(embedding[0]) if embedding else None
    application = Application(
        loaded,
        models,
        chat_model=place.model or place.name,
        embedder=(embedder, embedding[1]) if embedder is not None and embedding else None,
        scope=ledger.scope,
    )

    async def answer(question: str) -> Answer:
        return as_answer(await application.answer([{"role": "user", "content": question}]), place)

    subject = Subject(
        release=loaded.digest,  # type: ignore[arg-type]  # a digest in the words of traces is a plain text
        answer=answer,
        retrieve=_retrieve(application, (embedder, embedding[1]) if embedder is not None and embedding else None),
        answered=answered,
    )
    scorers = (exact(), token_f1(), citation_correct(), groundedness())
    try:
        return await run_evaluation(ledger, subject=subject, cases=cases, scorers=scorers, **options)
    finally:
        for client in (models, embedder):
            if client is not None:
                await client.close()


def _retrieve(
    application: Application, embedder: tuple[ModelClient, str] | None
) -> Callable[[str, int], Awaitable[Sequence[str]]] | None:
    """The release's own search, as evaluation asks it: sources, best first, none twice."""
    index, options = application.release.index, application.options
    if index is None:
        return None

    async def retrieve(question: str, k: int) -> Sequence[str]:
        vector = None
        if embedder is not None:
            client, model = embedder
            vector = (await client.embed([question], model))[0]
        hits = index.search(
            question,
            top_k=4 * k,  # several passages may come from one source
            query_vector=vector,
            mode=options.mode or index.mode,
            dense_weight=options.dense_weight,
            fusion=options.fusion,
            spelling=options.spelling,
        )
        return list(dict.fromkeys(hit.source for hit in hits))[:k]

    return retrieve


def _search_mode(loaded: LoadedRelease) -> str | None:
    if loaded.index is None:
        return None
    return str(loaded.parts.retrieval.get("mode") or loaded.index.mode)


def _check_answers(url: str, *, local: bool) -> None:
    """Fail at once, and not question by question, when a model server is not there."""
    place = urlsplit(url)
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        socket.create_connection((place.hostname or "", port), timeout=_CONNECT_S).close()
    except OSError as error:
        hint = (
            "Start it: tidemill up, or alone: tidemill runtime" if local else "Check the url of the model in the file."
        )
        why = error.strerror or str(error)
        raise Unavailable(f"No model server answers at {url}: {why}.", hint=hint) from None
