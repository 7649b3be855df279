"""From documents to a data set version, with everything left out kept beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tidemill.checks import NearDuplicates, words
from tidemill.data.cleaning import clean
from tidemill.data.document import Document
from tidemill.data.folder import Skipped
from tidemill.kernel import Digest, InvalidInput, RunId, Verdict
from tidemill.ledger import ArtifactVersion, Row

if TYPE_CHECKING:
    from tidemill.ledger import Ledger

NEAR_DUPLICATE = 0.85
"""Jaccard similarity of word 5-grams from which two documents tell the same."""


@dataclass(frozen=True, slots=True)
class Sifted:
    """Documents sorted into those to keep and those to leave out.

    Args:
        kept: cleaned, in their order.
        also_at: source of a kept document -> further sources that held exactly the same text.
        dropped: documents left out, each with its verdict.
    """

    kept: tuple[Document, ...]
    also_at: Mapping[str, tuple[str, ...]]
    dropped: tuple[tuple[Document, Verdict], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetBuild:
    """What ``build_dataset`` made.

    Args:
        version: the data set.
        excluded: the data set ``NAME-excluded`` of what was left out; ``None`` if nothing was.
        counts: ``read``, ``kept``, and what was left out by the kind of reason.
    """

    version: ArtifactVersion
    excluded: ArtifactVersion | None
    counts: Mapping[str, int]


def sift(documents: Iterable[Document], *, near_duplicate: float = NEAR_DUPLICATE) -> Sifted:
    """Clean documents and leave out the empty ones and those that repeat an earlier one.

    Args:
        documents: in an order that does not change; of two that are alike the first is kept.
        near_duplicate: Jaccard similarity of word 5-grams, in (0, 1], from which a document repeats another.
    """
    kept: list[Document] = []
    also_at: dict[str, list[str]] = {}
    dropped: list[tuple[Document, Verdict]] = []
    by_text: dict[str, Document] = {}
    near = NearDuplicates(near_duplicate)
    for raw in documents:
        document = replace(raw, text=clean(raw.text), title=" ".join(clean(raw.title).split()))
        verdict = _empty(document) or _exact(document, by_text, also_at) or _near(document, near)
        if verdict is None:
            kept.append(document)
            by_text[document.text] = document
        else:
            dropped.append((document, verdict))
    return Sifted(tuple(kept), {source: tuple(others) for source, others in also_at.items()}, tuple(dropped))


def _empty(document: Document) -> Verdict | None:
    return None if words(document.text) else Verdict(False, "holds no words", {"check": "empty"})


def _exact(document: Document, by_text: Mapping[str, Document], also_at: dict[str, list[str]]) -> Verdict | None:
    twin = by_text.get(document.text)
    if twin is None:
        return None
    if document.source != twin.source and document.source not in also_at.get(twin.source, []):
        also_at.setdefault(twin.source, []).append(document.source)
    evidence = {"check": "duplicate", "of": twin.row_id, "source": twin.source}
    return Verdict(False, f"the same text stands in {twin.source}", evidence)


def _near(document: Document, near: NearDuplicates) -> Verdict | None:
    twin = near.add(document, document.text)
    if twin is None:
        return None
    first = twin.key
    assert isinstance(first, Document)
    evidence = {"check": "near_duplicate", "of": first.row_id, "source": first.source}
    evidence["similarity"] = f"{twin.similarity:.4f}"
    return Verdict(False, f"says {twin.similarity:.0%} the same as {first.source}", evidence)


def build_dataset(
    ledger: Ledger,
    name: str,
    documents: Iterable[Document],
    *,
    skipped: Sequence[Skipped] = (),
    made_by: RunId | None = None,
    parents: Sequence[Digest] = (),
) -> DatasetBuild:
    """Write documents as a data set version, without repetitions; what is left out goes to ``NAME-excluded``.

    The same documents give the same versions. Each row knows its source, and the sources of exact copies of it.

    Args:
        ledger: where to.
        name: name of the data set.
        documents: in an order that does not change.
        skipped: sources that gave no document; kept with the excluded.
        made_by: the run that builds.
        parents: digests of artifacts the documents come from.

    Raises:
        InvalidInput: not one document is left.
    """
    sifted = sift(documents)
    counts = Counter(str(verdict.evidence["check"]) for _, verdict in sifted.dropped)
    counts |= {"read": len(sifted.kept) + len(sifted.dropped), "kept": len(sifted.kept), "skipped": len(skipped)}
    if not sifted.kept:
        raise InvalidInput(f"No document is left for the data set '{name}': all {counts['read']} were empty.")
    rows = (
        Row(
            row_id=document.row_id,
            value=document.as_value(),
            sources=(document.source, *sifted.also_at.get(document.source, ())),
        )
        for document in sifted.kept
    )
    content = {"holds": "documents", "counts": dict(sorted(counts.items()))}
    version = ledger.datasets.write(name, rows, content=content, made_by=made_by, parents=parents)
    left_out = list(_excluded_rows(sifted.dropped, skipped))
    excluded = None
    if left_out:
        content = {"holds": "excluded documents", "excluded_from": version.digest}
        excluded = ledger.datasets.write(
            f"{name}-excluded", left_out, content=content, made_by=made_by, parents=[*parents, version.digest]
        )
    return DatasetBuild(version=version, excluded=excluded, counts=dict(sorted(counts.items())))


def _excluded_rows(dropped: Iterable[tuple[Document, Verdict]], skipped: Iterable[Skipped]) -> Iterator[Row]:
    rows: dict[str, Row] = {}
    for document, verdict in dropped:
        value = {**document.as_value(), "verdict": verdict.as_json()}
        rows.setdefault(document.row_id, Row(row_id=document.row_id, value=value, sources=(document.source,)))
    for item in skipped:
        empty = Document(title="", text="", source=item.source, media_type="application/octet-stream")
        value = {**empty.as_value(), "verdict": item.verdict.as_json()}
        rows.setdefault(empty.row_id, Row(row_id=empty.row_id, value=value, sources=(item.source,)))
    return iter(rows[row_id] for row_id in sorted(rows))
