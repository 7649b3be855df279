"""The answer cache: what a look-up costs, and how often a semantic hit is a wrong one.

Run: ``python benchmarks/bench_cache.py``. The questions are TruthfulQA's and XSTest's, looked for in
TIDEMILL_SHARED_DATA; without them those rows are left out. No two of TruthfulQA's questions have the same answer, and
XSTest's stand in contrasting pairs, so every hit among different questions counts as false. What a paraphrase scores is
measured on pairs written for this benchmark, each beside a near question with another answer.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rows import Row, write_rows

from tidemill.gateway.cache import AnswerCache, AnswerStore, CacheCall, same_facts, stream_of, whole_of
from tidemill.gateway.cache.similar import Shelf
from tidemill.kernel import ReleaseRoute, Route, Target
from tidemill.kernel.routing_policy import CacheMode, CachePolicy, RoutePolicy
from tidemill.models import MINILM, LocalEmbedder, prepare

DATA = Path(os.environ.get("TIDEMILL_SHARED_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")) / "safety"
RELEASE = "sha256:" + "1" * 64
FLOORS = (0.80, 0.85, 0.90, 0.95)

#: a question, the same in other words, and a near one with another answer
TRIPLES = [
    ("How do I reset my password?", "How can I reset my password?", "How do I change my username?"),
    ("What are your opening hours?", "When are you open?", "What are your opening hours on Sunday?"),
    ("Where is my order?", "Can you tell me where my order is?", "Where is my refund?"),
    ("How long does delivery take?", "What is the delivery time?", "How much does delivery cost?"),
    ("How do I cancel my subscription?", "How can I end my subscription?", "How do I pause my subscription?"),
    ("Do you ship to Canada?", "Is shipping to Canada possible?", "Do you ship to Mexico?"),
    ("What is the capital of France?", "Which city is the capital of France?", "What is the capital of Germany?"),
    ("Who wrote Hamlet?", "Who is the author of Hamlet?", "Who wrote Macbeth?"),
    ("How do I reverse a list in Python?", "How can I reverse a Python list?", "How do I sort a list in Python?"),
    ("How do I open a file for reading?", "How can I open a file to read it?", "How do I open a file for writing?"),
    ("What does the yield statement do?", "What is the yield statement for?", "What does the return statement do?"),
    ("How do I install the package?", "How can I install the package?", "How do I uninstall the package?"),
    ("Can I get a refund after 14 days?", "Is a refund possible after 14 days?", "Can I get a refund after 30 days?"),
    ("Is it safe to eat raw eggs?", "Can you safely eat raw eggs?", "Is it safe to eat raw chicken?"),
    ("What is the boiling point of water?", "At what temperature does water boil?",
     "What is the freezing point of water?"),
    ("How do I connect to the VPN?", "How can I connect to the VPN?", "How do I disconnect from the VPN?"),
    ("Which plan includes phone support?", "What plan comes with phone support?",
     "Which plan includes email support?"),
    ("Why was my card declined?", "What is the reason my card was declined?", "Why was my card charged twice?"),
    ("How many vacation days do I have?", "What is the number of my vacation days?",
     "How many sick days do I have?"),
    ("How do I enable two-factor login?", "How can I turn on two-factor login?",
     "How do I disable two-factor login?"),
]  # fmt: skip


def microseconds(call: Callable[[], object], number: int) -> float:
    return min(timeit.repeat(call, number=number, repeat=7)) / number * 1e6


def costs() -> list[Row]:
    policy = RoutePolicy(cache=CachePolicy(mode=CacheMode.EXACT))
    route = Route("desk", "acme", (ReleaseRoute(RELEASE, "release/desk@1", (Target("http://x"),)),), policy=policy)
    cache = AnswerCache(route, project="bench", guardrails="", store=AnswerStore())

    def body(**more: object) -> bytes:
        turns = [{"role": "system", "content": "x y z " * 60}, {"role": "user", "content": "How do I reset " * 36}]
        return json.dumps(
            {"model": "desk", "messages": turns, "temperature": 0, **more}, separators=(",", ":")
        ).encode()

    def miss(raw: bytes, stream: bool | None) -> object:
        key = cache.key(CacheCall("chat", RELEASE, "key", raw, stream, None, 0.0))
        assert key is not None
        return cache.look(key)

    choice = {"index": 0, "message": {"role": "assistant", "content": "word " * 100}, "finish_reason": "stop"}
    answer = json.dumps({"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})
    plain, streamed = body(), body(stream=True)
    event = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    rows = [
        Row("exact miss, 1 KB request", microseconds(lambda: miss(plain, None), 20_000), "us", "<= 2.5"),
        Row("exact miss, 1 KB stream request", microseconds(lambda: miss(streamed, True), 10_000), "us"),
    ]
    rows[0] = Row(rows[0].figure, rows[0].value, "us", "<= 2.5", rows[0].value <= 2.5)
    key = cache.key(CacheCall("chat", RELEASE, "key", plain, None, None, 0.0))
    assert key is not None
    cache.keep(
        key, status=200, streamed=False, body=answer.encode(), finish_reasons=("stop",), trace_id="t", usage=None
    )
    return [
        *rows,
        Row("exact hit", microseconds(lambda: cache.look(key), 20_000), "us"),
        Row("whole answer to stream", microseconds(lambda: stream_of(answer.encode()), 2_000), "us"),
        Row("50-chunk stream to whole", microseconds(lambda: whole_of(event * 50 + end), 500), "us"),
    ]


def searches() -> list[Row]:
    rows = []
    for count in (512, 2048):
        vectors = np.random.default_rng(count).normal(size=(count, 384)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        shelf = Shelf(384, count)
        for place, vector in enumerate(vectors):
            shelf.add(place.to_bytes(32, "big"), f"question {place}", vector)
        started, times = time.process_time(), 200
        for place in range(times):
            shelf.nearest("another", vectors[place], 1.5)
        spent = (time.process_time() - started) / times * 1e6
        rows.append(Row(f"nearest of {count} vectors, CPU of all threads", spent, "us"))
    return rows


def false_hits(name: str, questions: list[str], embed: LocalEmbedder) -> list[Row]:
    """Share of questions that would get another's answer, were all others kept: by cosine alone, and with the facts."""
    vectors = embed(questions)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1.0)
    rows = []
    for floor in FLOORS:
        alone = (cosines.max(axis=1) >= floor).mean()
        checked = np.mean([
            any(same_facts(questions[at], questions[other]) for other in np.flatnonzero(line >= floor))
            for at, line in enumerate(cosines)
        ])  # fmt: skip
        figure = f"false hits, {name}, {len(questions)} questions, floor {floor:.2f}"
        rows.append(Row(figure, 100 * float(checked), "%", beside={"cosine alone": 100 * float(alone)}))
    return rows


def paraphrases(embed: LocalEmbedder) -> list[Row]:
    rows = []
    asked, same, near = (embed([triple[place] for triple in TRIPLES]) for place in range(3))
    right, wrong = (asked * same).sum(axis=1), (asked * near).sum(axis=1)
    for floor in FLOORS:
        hits = [score >= floor and same_facts(one, two) for score, (one, two, _) in zip(right, TRIPLES, strict=True)]
        slips = [score >= floor and same_facts(one, two) for score, (one, _, two) in zip(wrong, TRIPLES, strict=True)]
        alone = 100 * float((wrong >= floor).mean())
        rows.append(Row(f"paraphrases found, floor {floor:.2f}", 100 * float(np.mean(hits)), "%"))
        figure = f"near questions mistaken, floor {floor:.2f}"
        rows.append(Row(figure, 100 * float(np.mean(slips)), "%", beside={"cosine alone": alone}))
    return rows


def read_column(path: Path, column: str) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(dict.fromkeys(row[column].strip() for row in csv.DictReader(file)))


def main() -> None:
    rows = [*costs(), *searches()]
    cache_dir = Path(tempfile.gettempdir()) / "tidemill-bench-models"
    cache_dir.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        files = prepare(MINILM, Path(scratch), cache_dir=cache_dir).files
        embed = LocalEmbedder(files["weights"], files["tokenizer"])
    rows += paraphrases(embed)
    for name, path, column in (
        ("TruthfulQA", DATA / "truthfulqa" / "TruthfulQA.csv", "Question"),
        ("XSTest", DATA / "xstest" / "xstest_prompts.csv", "prompt"),
    ):
        if path.exists():
            rows += false_hits(name, read_column(path, column), embed)
    write_rows("cache", rows)


if __name__ == "__main__":
    main()
