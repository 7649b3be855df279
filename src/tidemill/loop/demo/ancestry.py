"""What an answer was made from, small enough to look at: large parts condensed, shortcuts left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tidemill.loop.demo.plots import Node

_MOST_OF_A_KIND: Final = 4
_MOST_LINES: Final = 60
_ROLES: Final = {"row": "from", "parent": "made from"}


@dataclass(frozen=True, slots=True)
class Ancestry:
    """The nodes and (child, parent) edges of a lineage, and the role of each edge; the root comes first."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]
    roles: Mapping[tuple[str, str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A line of the text tree: how deep, in which role, what; ``again`` when its own parents stand further up."""

    depth: int
    role: str
    node: Node
    again: bool = False


def ancestry(lineage: Mapping[str, Any]) -> Ancestry:
    """Condense a lineage.

    Of each kind at most a few are kept, the cited ones first; the rest become one node that says how many they are.
    An edge that a longer way already tells is left out.

    Args:
        lineage: the result's ``lineage``; may be empty.
    """
    raw = {str(node["id"]): node for node in lineage.get("nodes", ())}
    edges = [(str(one["child"]), str(one["parent"]), str(one["role"])) for one in lineage.get("edges", ())]
    edges = [edge for edge in edges if edge[0] in raw and edge[1] in raw and edge[0] != edge[1]]
    root = str(lineage.get("ref", ""))
    cited = _cited(root, edges)
    rows = lineage.get("rows") or {}
    edges += _held(raw, rows)
    nodes = {key: _node(node, key in cited or key == root, rows.get(key) or {}) for key, node in raw.items()}
    merged = _condense(nodes, root)
    roles: dict[tuple[str, str], str] = {}
    for child, parent, role in edges:
        pair = merged[child].key, merged[parent].key
        if pair[0] != pair[1] and (pair not in roles or role == "cited"):
            roles[pair] = _ROLES.get(role, role)
    kept = _reduced(tuple(roles))
    unique = {node.key: node for node in sorted(merged.values(), key=lambda node: node.key != root)}
    return Ancestry(tuple(unique.values()), kept, {pair: roles[pair] for pair in kept})


def branches(found: Ancestry) -> list[Branch]:
    """The text tree, depth first from the root; what was unfolded once is only named the second time."""
    if not found.nodes:
        return []
    known = {node.key: node for node in found.nodes}
    after: dict[str, list[str]] = {}
    for child, parent in found.edges:
        after.setdefault(child, []).append(parent)
    lines: list[Branch] = []
    seen: set[str] = set()
    stack: list[tuple[str, str, int]] = [(found.nodes[0].key, "", 0)]
    while stack and len(lines) < _MOST_LINES:
        key, role, depth = stack.pop()
        again = key in seen and bool(after.get(key))
        lines.append(Branch(depth=depth, role=role, node=known[key], again=again))
        if key in seen:
            continue
        seen.add(key)
        below = sorted(after.get(key, ()), key=lambda parent: known[parent].strong)
        stack += [(parent, found.roles[key, parent], depth + 1) for parent in below]
    return lines


def _held(raw: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Edges from documents to the data set version that holds them."""
    keys = {str(node["label"]): key for key, node in raw.items() if node["kind"] == "dataset"}
    return [
        (key, keys[row["held_by"]], "held in") for key, row in rows.items() if key in raw and row["held_by"] in keys
    ]


def _cited(root: str, edges: Iterable[tuple[str, str, str]]) -> set[str]:
    """Everything above a cited passage; above all passages when none is cited."""
    up: dict[str, list[tuple[str, str]]] = {}
    for child, parent, role in edges:
        up.setdefault(child, []).append((parent, role))
    begun = [parent for parent, role in up.get(root, ()) if role == "cited"]
    begun = begun or [parent for parent, role in up.get(root, ()) if role == "retrieved"]
    found: set[str] = set()
    while begun:
        key = begun.pop()
        if key not in found:
            found.add(key)
            begun += [parent for parent, _ in up.get(key, ())]
    return found


def _node(raw: Mapping[str, Any], strong: bool, row: Mapping[str, Any]) -> Node:
    key, kind, label = str(raw["id"]), str(raw["kind"]), str(raw["label"])
    if kind == "row":
        kind = {"psg": "passage", "doc": "document"}.get(key.partition("_")[0], "row")
        label = str(row.get("title") or label)
    elif kind == "trace":
        kind = "answer"
        label = label.removeprefix("answer ")
    else:
        label = label.removeprefix(f"{kind}/")
    held = f"in {row['held_by']}\n" if row.get("held_by") else ""
    return Node(key=key, kind=kind, label=label, note=f"{key}\n{held}{row.get('text', '')}".strip(), strong=strong)


def _condense(nodes: Mapping[str, Node], root: str) -> dict[str, Node]:
    """For each key the node that stands for it."""
    counts = Counter(node.kind for node in nodes.values())
    taken: Counter[str] = Counter()
    found: dict[str, Node] = {}
    for key, node in sorted(nodes.items(), key=lambda item: (item[0] != root, not item[1].strong)):
        taken[node.kind] += 1
        most = _MOST_OF_A_KIND
        if counts[node.kind] > most and taken[node.kind] >= most and key != root:
            more = counts[node.kind] - most + 1
            name = f"{more} more {node.kind}s"
            found[key] = Node(key=f"more {node.kind}", kind=node.kind, label=name, note="condensed here")
        else:
            found[key] = node
    return found


def _reduced(edges: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The edges without those that a longer way already tells."""
    after: dict[str, set[str]] = {}
    for child, parent in edges:
        after.setdefault(child, set()).add(parent)

    def told(child: str, parent: str) -> bool:
        stack, seen = [one for one in after[child] if one != parent], {child}
        while stack:
            key = stack.pop()
            if key == parent:
                return True
            if key not in seen:
                seen.add(key)
                stack += after.get(key, ())
        return False

    return tuple(edge for edge in edges if not told(*edge))
