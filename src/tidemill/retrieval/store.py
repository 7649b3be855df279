"""Indexes in the ledger: built from a data set version, loaded into memory.

An index artifact holds its passages as rows (each knows its document), the BM25 matrix and, if it has an embedder, the
vectors as blobs, both in the order of the passage ids. Vectors are kept in the ledger's result cache by text and
embedder, so whatever was embedded once, by this index, another one or a build that was killed, is not embedded again.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tidemill.kernel import ArtifactKind, Digest, InvalidInput, RunId, digest_json
from tidemill.retrieval.index import Index, IndexOptions, Mode, Vectors, bm25_of
from tidemill.retrieval.passages import Passage, split
from tidemill.retrieval.sparse import Bm25Matrix

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion, Ledger

_FORMAT: Final = 1
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Embedder:
    """What turns texts into vectors.

    Args:
        embed: texts to L2-normalised float32 of shape (texts, dimension).
        digest: which model it is; vectors are kept by text and this digest.
    """

    embed: Callable[[Sequence[str]], Vectors]
    digest: Digest


def build_index(
    ledger: Ledger,
    name: str,
    dataset: ArtifactVersion,
    *,
    mode: Mode = "hybrid",
    embedder: Embedder | None = None,
    options: IndexOptions | None = None,
    made_by: RunId | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> ArtifactVersion:
    """Cut the documents of a data set into passages and publish an index over them.

    Args:
        ledger: where the data set is and the index goes.
        name: the index's name.
        dataset: a data set version whose rows are documents (``title``, ``text``, ``source``).
        mode: how the index searches by default.
        embedder: needed for ``dense`` and ``hybrid``; a BM25 index has no vectors.
        options: lengths and numbers.
        made_by: the run that builds it.
        progress: told the share done, in [0, 1], and what was done.

    Returns:
        The index's version; equal data set, options and embedder give the version that is there already.

    Raises:
        InvalidInput: no embedder, a data set without text, or vectors of a wrong shape.
    """
    chosen = options or IndexOptions()
    tell = progress or (lambda _share, _what: None)
    if mode != "bm25" and embedder is None:
        raise InvalidInput(f"index '{name}' in mode '{mode}' needs an embedder; give one, or build it in mode 'bm25'")
    rows = ledger.datasets.read(dataset)
    passages = sorted(
        (passage for row in rows for passage in split(row.row_id, row.value, chosen.split)),
        key=lambda passage: passage.passage_id,
    )
    if not passages:
        raise InvalidInput(f"index '{name}': {dataset.ref} holds no text to search")
    tell(0.05, f"{len(passages)} passages")
    blobs = {"bm25": ledger.blobs.put(bm25_of(passages, chosen).encode(), run_id=made_by)}
    parents, dimension = [dataset.digest], None
    if mode != "bm25" and embedder is not None:
        vectors = _embed(ledger, passages, embedder, tell)
        blobs["vectors"] = ledger.blobs.put(_npy(vectors), run_id=made_by)
        parents.append(embedder.digest)
        dimension = int(vectors.shape[1])
    content = {
        "format": _FORMAT,
        "mode": mode,
        "options": chosen.as_json(),
        "dataset": dataset.digest,
        "embedder": None if mode == "bm25" or embedder is None else embedder.digest,
        "dimension": dimension,
        "passages": len(passages),
    }
    version = _write(ledger, name, passages, content, blobs=blobs, made_by=made_by, parents=parents)
    tell(1.0, f"{version.ref}")
    return version


def load_index(ledger: Ledger, version: ArtifactVersion) -> Index:
    """Load an index into memory.

    Args:
        ledger: where it lies.
        version: an index version.

    Raises:
        InvalidInput: the version is no index, or of a format this version of Tidemill does not read.
    """
    if version.kind is not ArtifactKind.INDEX or version.content.get("format") != _FORMAT:
        raise InvalidInput(f"{version.ref} is no index of format {_FORMAT}; build it again")
    passages = [Passage(passage_id=row.row_id, **row.value) for row in ledger.datasets.read(version)]
    matrix = Bm25Matrix.decode(ledger.blobs.read(version.blobs["bm25"]))
    vectors = None
    if "vectors" in version.blobs:
        vectors = np.load(io.BytesIO(ledger.blobs.read(version.blobs["vectors"])), allow_pickle=False)
    return Index(passages, matrix, vectors, mode=version.content["mode"])


def _write(
    ledger: Ledger,
    name: str,
    passages: Sequence[Passage],
    content: dict[str, Any],
    *,
    blobs: dict[str, Digest],
    made_by: RunId | None,
    parents: Sequence[Digest],
) -> ArtifactVersion:
    from tidemill.ledger import Row

    rows = (
        Row(row_id=passage.passage_id, value=passage.as_json(), sources=(passage.document_id,)) for passage in passages
    )
    return ledger.datasets.write(
        name,
        rows,
        kind=ArtifactKind.INDEX,
        content=content,
        extra_blobs=blobs,
        made_by=made_by,
        parents=parents,
    )


def _embed(
    ledger: Ledger, passages: Sequence[Passage], embedder: Embedder, tell: Callable[[float, str], None]
) -> Vectors:
    """Vectors of the passages in their order; only texts never embedded before reach the embedder."""
    keys = [digest_json({"embedding": embedder.digest, "text": passage.titled_text}) for passage in passages]
    known = ledger.results.get_many(set(keys))
    missing = {key: p.titled_text for key, p in zip(keys, passages, strict=True) if key not in known}
    # Alike lengths side by side: an embedder pads a batch to its longest text.
    order = sorted(missing, key=lambda key: (len(missing[key]), key))
    for at in range(0, len(order), _BATCH):
        batch = order[at : at + _BATCH]
        vectors = np.asarray(embedder.embed([missing[key] for key in batch]), np.float32)
        if vectors.ndim != 2 or len(vectors) != len(batch):
            raise InvalidInput(f"the embedder made {vectors.shape} of {len(batch)} texts: one row a text is needed")
        made = {key: base64.b64encode(row.tobytes()).decode() for key, row in zip(batch, vectors, strict=True)}
        ledger.results.put_many(made)
        known |= made
        tell(0.05 + 0.9 * (at + len(batch)) / len(order), f"{at + len(batch)} of {len(order)} passages embedded")
    rows = [np.frombuffer(base64.b64decode(known[key]), "<f4") for key in keys]
    if len({len(row) for row in rows}) > 1:
        raise InvalidInput("the embedder gives vectors of another length than it did before; give it another digest")
    return np.stack(rows)


def _npy(vectors: Vectors) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(vectors, np.float32))
    return buffer.getvalue()
