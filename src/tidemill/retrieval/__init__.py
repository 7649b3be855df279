"""Passages with stable ids, indexes over them, and search: BM25, dense, and both."""

from tidemill.retrieval.index import Fusion, Hit, Index, IndexOptions, Mode, index_passages
from tidemill.retrieval.metrics import ndcg_at, recall_at, reciprocal_rank
from tidemill.retrieval.passages import Passage, SplitOptions, estimate_tokens, split
from tidemill.retrieval.store import Embedder, build_index, load_index
from tidemill.retrieval.words import terms

__all__ = [
    "Embedder",
    "Fusion",
    "Hit",
    "Index",
    "IndexOptions",
    "Mode",
    "Passage",
    "SplitOptions",
    "build_index",
    "estimate_tokens",
    "index_passages",
    "load_index",
    "ndcg_at",
    "recall_at",
    "reciprocal_rank",
    "split",
    "terms",
]
