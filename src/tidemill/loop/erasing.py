"""Forgetting persons, traces and times: what is asked, whose hash that is, and the entries of the audit chain."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from tidemill.kernel import InvalidInput, Verdict, fresh_id
from tidemill.kernel.trace_ids import parse_trace_id
from tidemill.loop.asking import parse_moment
from tidemill.telemetry import Erasure
from tidemill.telemetry.sealing import shared_secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidemill.ledger import Ledger
    from tidemill.loop.project import Places
    from tidemill.telemetry import SpanStore

ERASURE: Final = "erasure"
"""Kind of the decisions: ``asked`` before the store is touched, ``erased`` with the counts when it is done."""

_KEY_BYTES: Final = 16


class ErasureBody(BaseModel):
    """What is to be forgotten: persons, traces, or everything before a time. Exactly one of the three."""

    model_config = ConfigDict(extra="forbid")

    users: list[str] = Field(default=[], max_length=1000, description="Persons, as programs name them (user.id).")
    trace_ids: list[str] = Field(default=[], max_length=10_000, description="Trace ids in any usual form.")
    before: str | None = Field(None, description="Traces that began before: 90d ago, a date or a time (UTC).")
    actor: str = Field(min_length=1, max_length=128, description="Who decides.")
    reason: str = Field(min_length=1, max_length=1000, description="Why, in a sentence that names nobody.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureOrder:
    """An erasure with what the audit chain may know of it: never a person's id, nor its hash.

    Args:
        erasure: for the store.
        by: what it goes by.
        asked: how many persons or traces; for an age, the moment in nanoseconds since 1970.
    """

    erasure: Erasure
    by: Literal["user", "trace", "age"]
    asked: int
    actor: str
    reason: str


def user_keys(places: Places, users: Sequence[str]) -> tuple[str, ...]:
    """The keyed hashes under which persons appear in spans.

    The key lies in the state folder and is shared by the gateway's workers and what receives OTLP: BLAKE2b, 128 bits,
    over the id in UTF-8 as it was sent.

    Args:
        places: of the project.
        users: ids, as programs send them.
    """
    path = places.state / "gateway" / "user-hash.key"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = shared_secret(path)
    hashes = (hashlib.blake2b(one.encode("utf-8", "replace"), key=key, digest_size=_KEY_BYTES) for one in users)
    return tuple(one.hexdigest() for one in hashes)


def order_of(body: ErasureBody, places: Places, *, now_ns: int) -> ErasureOrder:
    """Read what is asked.

    Args:
        body: the request.
        places: where the key of persons' hashes lies.
        now_ns: the present, nanoseconds since 1970.

    Raises:
        InvalidInput: not exactly one of the three, an empty id, a reason that names a person, a moment to come.
    """
    given = [bool(body.users), bool(body.trace_ids), body.before is not None]
    if sum(given) != 1:
        raise InvalidInput("An erasure is by persons, by traces or by age: name exactly one of them.")
    if body.before is not None:
        before_ns = parse_moment(body.before, now_ns=now_ns)
        if before_ns > now_ns:
            raise InvalidInput(f"'{body.before}' is still to come: only what has begun can be erased.")
        erasure = Erasure(before_ns=before_ns)
        return ErasureOrder(erasure=erasure, by="age", asked=before_ns, actor=body.actor, reason=body.reason)
    if body.trace_ids:
        ids = tuple(dict.fromkeys(parse_trace_id(one) for one in body.trace_ids))
        return ErasureOrder(
            erasure=Erasure(trace_ids=ids), by="trace", asked=len(ids), actor=body.actor, reason=body.reason
        )
    users = list(dict.fromkeys(body.users))
    if not all(users):
        raise InvalidInput("A person's id is empty.")
    if any(one in body.reason for one in users):
        raise InvalidInput("The reason names the person: it stays in the audit chain, so it must not.")
    return ErasureOrder(
        erasure=Erasure(user_keys=user_keys(places, users)),
        by="user",
        asked=len(users),
        actor=body.actor,
        reason=body.reason,
    )


def carry_out(order: ErasureOrder, ledger: Ledger, store: SpanStore) -> dict[str, Any]:
    """Erase, and write two decisions into the audit chain: that it was asked, and what it removed.

    An order without a second entry was cut short: ask again, erasing twice removes nothing more.

    Args:
        order: what to erase.
        ledger: keeps the decisions.
        store: drained before, so that nothing follows from the segments.

    Returns:
        Counts, the subject of the decisions and how long it took in seconds.
    """
    subject = f"{ERASURE}/{fresh_id('era')}"
    facts = {"by": order.by, "before_ns" if order.by == "age" else "asked": order.asked}
    asked = Verdict("asked", order.reason, facts)
    first = ledger.decisions.record(ERASURE, subject, asked, actor=order.actor, expected=None)
    begun_s = time.monotonic()
    counts = asdict(store.erase(order.erasure))
    done = {**facts, **counts, "took_s": round(time.monotonic() - begun_s, 3)}
    verdict = Verdict("erased", f"{counts['traces']} traces with {counts['spans']} spans are gone.", done)
    ledger.decisions.record(ERASURE, subject, verdict, actor=order.actor, expected=first.decision_id)
    return {"erasure": subject, **done}
