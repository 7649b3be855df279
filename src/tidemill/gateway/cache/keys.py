"""Under which key an answer is kept: everything that could have made it another answer goes into one digest.

A key is ``SHA-256(seed, body)``. The seed is the digest of the partition: project, tenant, user scope, endpoint,
operation, release, its models and the guardrails' policy. The body is the pivot request itself, so system prompt,
tools, messages and every sampling field, known to this gateway or not, are part of the key. There is no look-up
without a partition, so no answer crosses from one into another.

The body's bytes are taken as they are: a client library writes the same request in the same order, and hashing a
kilobyte costs 1 us where decoding and sorting it costs 5. Only where the client asks for a stream, or names a user that
does not matter, the fields are taken apart to leave ``stream``, ``stream_options`` and ``user`` out.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec

_SHAPE: Final = frozenset(("stream", "stream_options"))
_SHAPE_AND_USER: Final = _SHAPE | {"user"}
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_turns: Final = msgspec.json.Decoder(list[msgspec.Raw])
_turn: Final = msgspec.json.Decoder(dict[str, Any])
_encode: Final = msgspec.json.encode
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Partition(NamedTuple):
    """Where an answer may be given again; all fields must be equal.

    Args:
        user_scope: who shares answers: the API key's name and the ``user`` it names, or empty for the whole tenant.
        operation: ``chat``, ``text_completion``, ``embeddings`` or ``moderation``.
        release: digest of the release.
        models: the upstream models that can answer for the release.
        policy: digest of the guardrails the answer has passed.
    """

    project: str
    tenant: str
    user_scope: str
    endpoint: str
    operation: str
    release: str
    models: str
    policy: str

    def seed(self) -> bytes:
        """32 bytes that no other partition has: each field is hashed with its length."""
        hasher = sha256()
        for field in self:
            raw = field.encode("utf-8", "surrogatepass")
            hasher.update(b"%d:" % len(raw))
            hasher.update(raw)
        return hasher.digest()


class Question(NamedTuple):
    """What a semantic look-up compares, and where.

    Args:
        shelf: digest of the seed and of everything in the request but the last user message's text.
        text: that text.
    """

    shelf: bytes
    text: str


def exact_digest(seed: bytes, body: bytes, *, stream: bool | None, user: str | None, per_user: bool) -> bytes:
    """The key of a request in a partition: 32 bytes.

    Args:
        seed: of ``Partition.seed``.
        body: the pivot request.
        stream: as its body has it; a stream's body must be taken apart.
        user: likewise, unless ``per_user``.
        per_user: whether ``user`` is part of the partition; then it may stay in the body as well.
    """
    if stream is None and (user is None or per_user):
        return sha256(seed + body).digest()
    return sha256(seed + _without(body, _SHAPE if per_user else _SHAPE_AND_USER)).digest()


def _without(body: bytes, names: frozenset[str]) -> bytes:
    """The body less some fields, as its writer would have written it; whole where that cannot be told.

    The length proves that the fields stand for the whole body: an odd space, or a field that comes twice (of which
    upstreams may read either), keeps the body as it is, which costs a hit and never gives a wrong one.
    """
    try:
        fields = _fields.decode(body)
    except _UNREADABLE:
        return body
    spaced = body.find(b'": ', 0, 64) > 0
    comma, colon = (b", ", b": ") if spaced else (b",", b":")
    pairs = {name: _encode(name) + colon + bytes(value) for name, value in fields.items()}
    if sum(map(len, pairs.values())) + len(comma) * (len(pairs) - 1) + 2 != len(body):
        return body
    return b"{" + comma.join([pair for name, pair in pairs.items() if name not in names]) + b"}"


def read_question(seed: bytes, body: bytes, *, most_chars: int) -> Question | None:
    """What a semantic look-up of a chat request compares; ``None`` where nothing may be compared.

    Args:
        seed: of ``Partition.seed``.
        body: the pivot request.
        most_chars: longer texts are not compared, for an embedding model reads only their beginning.

    Returns:
        ``None`` if the last message is not a user's, is not plain text, or is empty or too long.
    """
    try:
        fields = _fields.decode(body)
        turns = _turns.decode(fields.pop("messages", b"[]"))
        last = _turn.decode(turns.pop()) if turns else {}
    except _UNREADABLE:
        return None
    text = _plain_text(last.pop("content", None))
    if last.get("role") != "user" or not text.strip() or len(text) > most_chars:
        return None
    hasher = sha256(seed)
    parts = [b"%b=%b" % (name.encode(), bytes(fields[name])) for name in sorted(fields) if name not in _SHAPE_AND_USER]
    for part in (*parts, b"", *turns, _encode(last)):
        raw = bytes(part)
        hasher.update(b"%d:" % len(raw))
        hasher.update(raw)
    return Question(hasher.digest(), text)


def _plain_text(content: object) -> str:
    """The text of a message; empty where it holds anything else."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        part = content[0]
        if part.keys() == {"type", "text"} and part["type"] == "text" and isinstance(part["text"], str):
            return part["text"]
    return ""
