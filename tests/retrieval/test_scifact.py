"""BM25 on SciFact as in BEIR: the published nDCG@10 of .665 is the yardstick."""

import csv
import gzip
import os
import re
from pathlib import Path
from statistics import mean

import pytest

from tidemill.kernel import RowId
from tidemill.retrieval import Passage, index_passages, ndcg_at, recall_at

SHARED = Path(os.environ.get("TIDEMILL_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
SCIFACT = SHARED / "retrieval" / "scifact"
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")


def abstracts() -> list[Passage]:
    with gzip.open(SCIFACT / "corpus_train.csv.gz", "rt", encoding="utf-8") as file:
        return [_abstract(row) for row in csv.DictReader(file)]


def _abstract(row: dict[str, str]) -> Passage:
    text = " ".join(single or double for single, double in _QUOTED.findall(row["abstract"]))
    name = RowId(row["doc_id"])
    return Passage(
        passage_id=name, document_id=name, source=name, title=row["title"], text=text, start=0, end=len(text)
    )


def claims() -> dict[str, str]:
    found = {}
    for split in ("test", "train", "validation"):
        with (SCIFACT / f"claims_{split}.csv").open(encoding="utf-8") as file:
            found.update({row["id"]: row["claim"] for row in csv.DictReader(file)})
    return found


def judgements() -> dict[str, dict[str, float]]:
    judged: dict[str, dict[str, float]] = {}
    with (SCIFACT / "qrels_test.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            judged.setdefault(row["query-id"], {})[row["corpus-id"]] = float(row["score"])
    return judged


@pytest.mark.skipif(not SCIFACT.is_dir(), reason="SciFact is not here: set TIDEMILL_SHARED_DATA to the data folder")
def test_bm25_reaches_the_published_quality() -> None:
    index, questions, judged = index_passages(abstracts()), claims(), judgements()
    assert (len(index), len(judged)) == (5183, 300)
    rankings = {key: [hit.passage_id for hit in index.search(questions[key], top_k=10)] for key in judged}
    assert mean(ndcg_at(rankings[key], gains, 10) for key, gains in judged.items()) >= 0.68
    assert mean(recall_at(rankings[key], gains, 10) for key, gains in judged.items()) >= 0.80
