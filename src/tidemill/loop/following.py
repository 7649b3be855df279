"""Lineage across the ledger and telemetry: from an answer to its sources, from a document to the answers it touched.

The ledger knows which artifact and row came from which; telemetry knows which passages and artifacts each answer
used. This is where the two are joined.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import Digest, NotFound, RowId, parse_ref

if TYPE_CHECKING:
    from tidemill.ledger import Ledger, LineageGraph
    from tidemill.telemetry import SpanStore

_TRACE: Final = re.compile(r"[0-9a-f]{32}")
_MOST_TRACES: Final = 1000


def follow(ledger: Ledger, store: SpanStore | None, ref: str) -> dict[str, Any]:
    """Follow a reference up to what it came from and down to what came from it.

    Args:
        ledger: the graph of artifacts and rows.
        store: spans with their references; without it answers are left out.
        ref: a trace id (``trace:…`` or bare), an artifact reference or digest, a row id (``doc_…``, ``psg_…``) or a
            source URI.

    Returns:
        ``{"ref", "kind", "nodes": [{id, kind, label}], "edges": [{child, parent, role}], "traces": [ids],
        "trace_count"}``; for a trace the nodes are its ancestors.

    Raises:
        NotFound: nothing of that name.
        InvalidInput: an artifact reference that is not written as one.
    """
    bare = ref.removeprefix("trace:")
    if _TRACE.fullmatch(bare):
        return _trace(ledger, store, bare)
    if ref.startswith("sha256:") or ("/" in ref and ":" not in ref.split("@", maxsplit=1)[0]):
        return _artifact(ledger, store, ref)
    return _row(ledger, store, ref)


def _trace(ledger: Ledger, store: SpanStore | None, trace_id: str) -> dict[str, Any]:
    references = store.references([trace_id]) if store is not None else []
    below = ledger.lineage.row_descendants(RowId(f"trace:{trace_id}"))
    if not references and not below.edges:
        raise NotFound(
            f"No answer with trace id '{trace_id}' is known to have used anything.",
            hint="List the newest traces: tidemill trace list",
        )
    nodes: dict[str, dict[str, str]] = {trace_id: {"id": trace_id, "kind": "trace", "label": "answer " + trace_id[:8]}}
    edges: dict[tuple[str, str, str], None] = {}
    roles: dict[str, str] = {}
    for _, reference in references:
        if roles.get(reference.ref) != "cited":
            roles[reference.ref] = reference.role
    passages = [RowId(one.ref) for _, one in references if one.kind == "passage"]
    artifacts = list(dict.fromkeys(one.ref for _, one in references if one.kind == "artifact"))
    for used, role in roles.items():
        edges[trace_id, used, role] = None
    graphs = [ledger.lineage.row_ancestors(list(dict.fromkeys(passages)))] if passages else []
    graphs += [ledger.lineage.ancestors(Digest(digest)) for digest in artifacts]
    for graph in graphs:
        _merge(nodes, edges, graph)
    _merge_data(ledger, nodes, edges, below, trace_id)
    return _answer(trace_id, "trace", nodes, edges, [])


def _merge_data(
    ledger: Ledger,
    nodes: dict[str, dict[str, str]],
    edges: dict[tuple[str, str, str], None],
    below: LineageGraph,
    trace_id: str,
) -> None:
    """Rows of data sets that were drawn from a trace, and the versions that hold them."""
    for node in below.nodes:
        if node.node_id != f"trace:{trace_id}":
            nodes.setdefault(node.node_id, {"id": node.node_id, "kind": "row", "label": node.node_id})
            for version in ledger.lineage.versions_holding(RowId(node.node_id)):
                nodes[version.digest] = {"id": version.digest, "kind": version.kind.value, "label": str(version.ref)}
    for child, parent, role in below.edges:
        edges[child, trace_id if parent == f"trace:{trace_id}" else parent, role] = None


def _artifact(ledger: Ledger, store: SpanStore | None, ref: str) -> dict[str, Any]:
    version = (
        ledger.artifacts.by_digest(Digest(ref)) if ref.startswith("sha256:") else ledger.artifacts.get(parse_ref(ref))
    )
    nodes: dict[str, dict[str, str]] = {}
    edges: dict[tuple[str, str, str], None] = {}
    below = ledger.lineage.descendants(version.digest)
    _merge(nodes, edges, ledger.lineage.ancestors(version.digest))
    _merge(nodes, edges, below)
    used = [version.digest, *(node.node_id for node in below.nodes)]
    traces = store.traces_using(used) if store is not None else []
    return _answer(str(version.ref), "artifact", nodes, edges, traces)


def _row(ledger: Ledger, store: SpanStore | None, row_id: str) -> dict[str, Any]:
    nodes: dict[str, dict[str, str]] = {}
    edges: dict[tuple[str, str, str], None] = {}
    below = ledger.lineage.row_descendants(RowId(row_id))
    _merge(nodes, edges, ledger.lineage.row_ancestors([RowId(row_id)]))
    _merge(nodes, edges, below)
    rows = [row_id, *(node.node_id for node in below.nodes)]
    if not edges:
        raise NotFound(
            f"Nothing is known of '{row_id}'.",
            hint="Write a trace id, an artifact (dataset/helpdesk@7), a row id (doc_…) or a source (file:docs/a.md).",
        )
    holders = {}
    for one in rows:
        for version in ledger.lineage.versions_holding(RowId(one)):
            holders[version.digest] = version
    for version in holders.values():
        nodes[version.digest] = {"id": version.digest, "kind": version.kind.value, "label": str(version.ref)}
    traces = store.traces_using(rows) if store is not None else []
    return _answer(row_id, "row", nodes, edges, traces)


def _merge(nodes: dict[str, dict[str, str]], edges: dict[tuple[str, str, str], None], graph: LineageGraph) -> None:
    for node in graph.nodes:
        nodes.setdefault(node.node_id, {"id": node.node_id, "kind": node.kind, "label": node.label})
    for edge in graph.edges:
        edges[edge] = None


def _answer(
    ref: str, kind: str, nodes: dict[str, dict[str, str]], edges: dict[tuple[str, str, str], None], traces: list[str]
) -> dict[str, Any]:
    return {
        "ref": ref,
        "kind": kind,
        "nodes": list(nodes.values()),
        "edges": [{"child": child, "parent": parent, "role": role} for child, parent, role in edges],
        "traces": traces[:_MOST_TRACES],
        "trace_count": len(traces),
    }
