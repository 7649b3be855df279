"""A lineage graph as an indented tree, and as a Mermaid graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

_MOST_LINES = 400
_Neighbours: TypeAlias = dict[str, dict[str, list[str]]]


def tree_lines(graph: Mapping[str, Any]) -> list[str]:
    """The graph as text: what the subject came from, then what came from it.

    Args:
        graph: what ``loop.following.follow`` returns.
    """
    nodes = {node["id"]: node for node in graph["nodes"]}
    root = root_of(graph)
    up: _Neighbours = {}
    down: _Neighbours = {}
    for edge in graph["edges"]:
        up.setdefault(edge["child"], {}).setdefault(edge["parent"], []).append(edge["role"])
        down.setdefault(edge["parent"], {}).setdefault(edge["child"], []).append(edge["role"])
    lines = [_named(nodes, root)]
    seen = {root}
    for title, following in (("came from", up), ("went into", down)):
        if following.get(root):
            lines += [f"{title}:", *_walk(nodes, root, following, seen)]
    rest = [node for node in nodes if node not in seen]
    if rest:
        lines += ["held by:", *(f"  {_named(nodes, node)}" for node in rest)]
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"… and {len(lines) - _MOST_LINES} lines more; all of it with --json"]
    return lines


def mermaid(graph: Mapping[str, Any]) -> str:
    """The graph in Mermaid's language; arrows point from what was made to what it was made from."""
    names = {node["id"]: f"n{number}" for number, node in enumerate(graph["nodes"])}
    labels = {node["id"]: node for node in graph["nodes"]}
    lines = ["graph TD"]
    lines += [f'    {name}["{_quoted(_named(labels, node))}"]' for node, name in names.items()]
    for edge in graph["edges"]:
        if edge["child"] in names and edge["parent"] in names:
            lines.append(f'    {names[edge["child"]]} -->|"{_quoted(edge["role"])}"| {names[edge["parent"]]}')
    return "\n".join(lines)


def root_of(graph: Mapping[str, Any]) -> str:
    """The id of the node that the graph is about."""
    ids = [node["id"] for node in graph["nodes"] if graph["ref"] in (node["id"], node["label"])]
    return ids[0] if ids else str(graph["ref"])


def _walk(nodes: Mapping[str, Any], root: str, following: _Neighbours, seen: set[str]) -> list[str]:
    """Depth first, without recursion: a chain of versions may be long. What was shown is not unfolded again."""
    lines: list[str] = []
    stack = [(node, roles, 1) for node, roles in reversed(following.get(root, {}).items())]
    while stack:
        node, roles, depth = stack.pop()
        again = node in seen and bool(following.get(node))
        lines.append(f"{'  ' * depth}{_named(nodes, node)}  ({', '.join(roles)})" + (", see above" if again else ""))
        if node in seen:
            continue
        seen.add(node)
        stack += [(further, roles, depth + 1) for further, roles in reversed(following.get(node, {}).items())]
    return lines


def _named(nodes: Mapping[str, Any], node_id: str) -> str:
    node = nodes.get(node_id)
    if node is None:
        return node_id
    kind, label = str(node["kind"]), str(node["label"])
    return label if label.startswith((kind, "answer ")) else f"{kind} {label}"


def _quoted(text: str) -> str:
    return " ".join(text.replace('"', "#quot;").replace("<", "#lt;").split())
