"""Retrieval: quality on SciFact, time to load an index and to answer a question.

Run: ``python benchmarks/bench_retrieval.py``. SciFact is looked for in TIDEMILL_SHARED_DATA; without it the quality
rows are left out.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bm25s
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rows import Row, write_rows
from tests.retrieval.test_scifact import SCIFACT, abstracts, claims, judgements

from tidemill.data import read_python_reference
from tidemill.kernel import RowId, Scope, digest_json
from tidemill.ledger import Row as DataRow
from tidemill.ledger import open_ledger
from tidemill.retrieval import Embedder, IndexOptions, SplitOptions, build_index, index_passages, load_index, ndcg_at

DIMENSION = 384
LOAD = """
import sys, time
started = time.process_time()
from tidemill.kernel import Scope
from tidemill.ledger import open_ledger
from tidemill.retrieval import load_index
with open_ledger(sys.argv[1], blobs=sys.argv[2], scope=Scope("bench")) as ledger:
    load_index(ledger, ledger.artifacts.get("index/bench"))
print(time.process_time() - started)
"""


def random_vectors(count: int) -> np.ndarray:
    rows = np.random.default_rng(count).normal(size=(count, DIMENSION)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def quality() -> list[Row]:
    passages, questions, judged = abstracts(), claims(), judgements()
    index = index_passages(passages)
    ours = {key: [hit.passage_id for hit in index.search(questions[key], top_k=10)] for key in judged}
    peer = bm25s.BM25()
    peer.index(bm25s.tokenize([p.titled_text for p in passages], show_progress=False), show_progress=False)
    ids = [passage.passage_id for passage in passages]
    theirs = {}
    for key in judged:
        tokens = bm25s.tokenize([questions[key]], show_progress=False)
        theirs[key] = [ids[row] for row in peer.retrieve(tokens, k=10, show_progress=False)[0][0]]
    ndcg, other = (
        statistics.mean(ndcg_at(run[key], gains, 10) for key, gains in judged.items()) for run in (ours, theirs)
    )
    beside = {"bm25s defaults": other, "BEIR's BM25": 0.665}
    return [Row("SciFact BM25 nDCG@10, 300 questions", ndcg, "", ">= .66", ndcg >= 0.66, beside)]


def speed(folder: Path) -> list[Row]:
    url, blobs = f"sqlite:///{folder}/ledger.db", str(folder / "blobs")
    with open_ledger(url, blobs=blobs, scope=Scope("bench")) as ledger:
        documents = (
            DataRow(
                row_id=RowId(f"doc_{digest_json(document.source)[7:31]}"),
                value={"title": document.title, "text": document.text, "source": document.source},
            )
            for document in read_python_reference()
        )
        dataset = ledger.datasets.write("docs", documents)
        embedder = Embedder(lambda texts: random_vectors(len(texts)), digest_json("random"))
        started = time.perf_counter()
        options = IndexOptions(split=SplitOptions(passage_tokens=140))
        version = build_index(ledger, "bench", dataset, embedder=embedder, options=options)
        built_s = time.perf_counter() - started
        index = load_index(ledger, version)
    command = [sys.executable, "-c", LOAD, url, blobs]
    loaded_s = min(float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3))
    questions = [passage.title + " " + passage.text[:60] for passage in index._passages[:300]]
    vector, times = random_vectors(1)[0], []
    for question in questions:
        started = time.perf_counter()
        index.search(question, top_k=5, query_vector=vector)
        times.append(1000 * (time.perf_counter() - started))
    p50, p95 = statistics.median(times), statistics.quantiles(times, n=20)[-1]
    return [
        Row(f"build an index of {len(index)} passages, without embedding", built_s, "s"),
        Row("load it in a new process, imports included", loaded_s, "CPU-s", "< 1.5 s", loaded_s < 1.5),
        Row("hybrid query p50", p50, "ms", "< 5 ms", p50 < 5),
        Row("hybrid query p95", p95, "ms"),
    ]


if __name__ == "__main__":
    measured = quality() if SCIFACT.is_dir() else []
    with tempfile.TemporaryDirectory() as scratch:
        measured += speed(Path(scratch))
    write_rows("retrieval", measured)
