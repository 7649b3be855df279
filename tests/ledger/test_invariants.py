"""What holds whatever is done in whatever order: the chain, labels, contents, sequences."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from sqlalchemy import delete, update

from tidemill.kernel import ArtifactKind, Conflict, FakeClock, InvalidInput, Scope, Verdict
from tidemill.ledger import UNCHECKED, AuditHead, Ledger, Observation, artifact_digest, open_ledger
from tidemill.ledger.tables import chain_heads, decisions

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@contextmanager
def fresh_ledger() -> Iterator[Ledger]:
    folder = Path(tempfile.mkdtemp(prefix="tidemill-"))
    try:
        url = f"sqlite:///{folder}/ledger.db"
        with open_ledger(url, blobs="memory://", scope=Scope("demo"), clock=FakeClock()) as ledger:
            yield ledger
    finally:
        shutil.rmtree(folder)


def chain_of(ledger: Ledger, length: int) -> AuditHead:
    with ledger.database.write() as connection:
        for n in range(length):
            ledger.decisions.append(connection, "gate", f"s{n % 2}", Verdict(n, "r", {"n": [n, 0.1]}), "ann")
    return ledger.audit.head()


def edit(column: str, value: Any) -> Callable[[Ledger, int, int], None]:
    def tamper(ledger: Ledger, seq: int, _length: int) -> None:
        with ledger.database.write() as connection:
            which = ledger.database.mine(decisions) & (decisions.c.seq == seq)
            connection.execute(update(decisions).where(which).values({column: value}))

    return tamper


def remove(ledger: Ledger, seq: int, _length: int) -> None:
    with ledger.database.write() as connection:
        connection.execute(delete(decisions).where(ledger.database.mine(decisions), decisions.c.seq == seq))


def close_the_gap(ledger: Ledger, seq: int, length: int) -> None:
    """Remove an entry and number the rest anew."""
    remove(ledger, seq, length)
    with ledger.database.write() as connection:
        for later in range(seq + 1, length + 1):
            which = ledger.database.mine(decisions) & (decisions.c.seq == later)
            connection.execute(update(decisions).where(which).values(seq=later - 1))


def swap(ledger: Ledger, seq: int, length: int) -> None:
    other = seq % length + 1
    with ledger.database.write() as connection:
        for old, new in ((seq, 0), (other, seq), (0, other)):
            which = ledger.database.mine(decisions) & (decisions.c.seq == old)
            connection.execute(update(decisions).where(which).values(seq=new))


def cut_off(ledger: Ledger, seq: int, _length: int) -> None:
    with ledger.database.write() as connection:
        connection.execute(delete(decisions).where(ledger.database.mine(decisions), decisions.c.seq >= seq))


def garble(ledger: Ledger, seq: int, _length: int) -> None:
    with ledger.database.write() as connection:
        connection.exec_driver_sql("UPDATE decisions SET verdict = '{' WHERE seq = ?", (seq,))


TAMPERS = [
    edit("kind", "other"),
    edit("subject", "other"),
    edit("actor", "other"),
    edit("verdict", {"value": True, "reason": "other", "evidence": {}}),
    edit("at", FakeClock().now().replace(year=2020)),
    edit("decision_id", "dec_other"),
    edit("previous", "dec_other"),
    edit("hash", "sha256:" + "0" * 64),
    edit("previous_hash", "sha256:" + "0" * 64),
    remove,
    close_the_gap,
    swap,
    cut_off,
    garble,
]


@QUICK
@given(length=st.integers(2, 8), place=st.integers(0, 7), tamper=st.sampled_from(TAMPERS))
def test_whatever_was_done_to_the_chain_is_found(
    length: int, place: int, tamper: Callable[[Ledger, int, int], None]
) -> None:
    with fresh_ledger() as ledger:
        head = chain_of(ledger, length)
        assert ledger.audit.verify(head=head).ok
        seq = place % length + 1
        tamper(ledger, seq, length)
        report = ledger.audit.verify()
        assert not report.ok
        assert report.first_bad_seq is not None
        assert report.first_bad_seq <= max(seq, seq % length + 1)
        assert report.entries == report.first_bad_seq - 1


@QUICK
@given(length=st.integers(2, 6), kept=st.integers(0, 5))
def test_a_head_kept_elsewhere_finds_a_chain_that_was_cut_or_rewritten(length: int, kept: int) -> None:
    with fresh_ledger() as ledger:
        head = chain_of(ledger, length)
        seq = kept % length + 1
        earlier = ledger.audit.entries(after_seq=seq - 1, limit=1)[0]
        cut_off(ledger, seq, length)
        before = ledger.audit.entries()
        with ledger.database.write() as connection:  # one who can write everything cuts the head as well
            mine = ledger.database.mine(chain_heads)
            if before:
                end = {"seq": seq - 1, "hash": before[-1].hash}
                connection.execute(update(chain_heads).where(mine).values(**end))
            else:
                connection.execute(delete(chain_heads).where(mine))
        assert ledger.audit.verify().ok
        assert ledger.audit.verify(head=head).first_bad_seq == seq
        chain_of(ledger, length)  # and writes other entries in their place
        assert ledger.audit.verify().ok
        report = ledger.audit.verify(head=AuditHead(seq, earlier.hash))
        assert report.first_bad_seq == seq
        assert "kept" in report.reason


@given(seq=st.integers(0, 2**63), digits=st.text("0123456789abcdef", min_size=64, max_size=64))
def test_a_head_is_read_back(seq: int, digits: str) -> None:
    head = AuditHead.parse(f"{seq}:sha256:{digits}\n")
    assert AuditHead.parse(str(head)) == head
    with pytest.raises(InvalidInput):
        AuditHead.parse(f"x{head}")


@QUICK
@given(content=st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_content_comes_back_and_names_itself(sqlite_ledger: Ledger, content: dict[str, Any]) -> None:
    made = sqlite_ledger.artifacts.publish(ArtifactKind.PROMPT, "answer", content)
    read = sqlite_ledger.artifacts.by_digest(made.digest)
    assert read.content == made.content == content
    assert artifact_digest(read.kind, read.content, read.blobs) == made.digest
    assert sqlite_ledger.artifacts.publish(ArtifactKind.PROMPT, "answer", read.content) == made


class Labels(RuleBasedStateMachine):
    """Labels against a dictionary, through two handles on one store."""

    versions = Bundle("versions")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tidemill-"))
        url = f"sqlite:///{self.folder}/ledger.db"
        self.handles = [open_ledger(url, blobs="memory://", scope=Scope("demo")) for _ in range(2)]
        self.believed: dict[str, int] = {}
        self.moves = 0
        self.published = 0

    @rule(target=versions, which=st.integers(0, 1), n=st.integers(0, 5))
    def publish(self, which: int, n: int) -> int:
        version = self.handles[which].artifacts.publish(ArtifactKind.PROMPT, "answer", {"n": n}).version
        self.published = max(self.published, version)
        return version

    @rule(
        which=st.integers(0, 1), label=st.sampled_from(["live", "next"]), to=versions | st.none(),
        expected=versions | st.none(), right=st.booleans(),
    )  # fmt: skip
    def move(self, which: int, label: str, to: int | None, expected: int | None, right: bool) -> None:
        if right:
            expected = self.believed.get(label)
        artifacts = self.handles[which].artifacts
        try:
            artifacts.move_label(ArtifactKind.PROMPT, "answer", label, to, expected=expected, actor="a", reason="r")
        except Conflict:
            assert self.believed.get(label) != expected
            return
        assert self.believed.get(label) == expected
        self.moves += 1
        self.believed.pop(label, None)
        if to is not None:
            self.believed[label] = to

    @rule(version=consumes(versions))
    def read(self, version: int) -> None:
        assert self.handles[0].artifacts.get(f"prompt/answer@{version}").version == version

    @invariant()
    def both_handles_see_the_same(self) -> None:
        for handle in getattr(self, "handles", []):
            assert handle.artifacts.labels(ArtifactKind.PROMPT, "answer") == self.believed
            assert handle.audit.head().seq == self.moves
            listed = handle.artifacts.versions(ArtifactKind.PROMPT, "answer")
            assert [item.version for item in listed] == list(range(self.published, 0, -1))

    def teardown(self) -> None:
        for handle in getattr(self, "handles", []):
            assert handle.audit.verify().ok
            handle.close()
            shutil.rmtree(self.folder, ignore_errors=True)


TestLabels = Labels.TestCase
TestLabels.settings = settings(max_examples=10, stateful_step_count=20, deadline=None)


@QUICK
@given(batches=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=5), max_size=6))
def test_observations_are_the_units_in_the_order_of_their_first_coming(batches: list[list[str]]) -> None:
    with fresh_ledger() as ledger:
        now = ledger.clock.now()
        expected: list[str] = []
        for batch in batches:
            expected += [unit for unit in dict.fromkeys(batch) if unit not in expected]
            rows = [Observation(unit=unit, arm="control", metrics={}, at=now) for unit in batch]
            assert ledger.observations.append("rollout", rows) == len(expected)
        assert [(row.seq, row.unit) for row in ledger.observations.read("rollout")] == list(enumerate(expected, 1))


@QUICK
@given(beliefs=st.lists(st.sampled_from(["right", "wrong", "none", "unchecked"]), max_size=10))
def test_a_decision_is_written_only_on_the_one_its_writer_knows(beliefs: list[str]) -> None:
    with fresh_ledger() as ledger:
        written = []
        for belief in beliefs:
            newest = written[-1].decision_id if written else None
            expected = {"right": newest, "wrong": "dec_other", "none": None, "unchecked": UNCHECKED}[belief]
            with suppress(Conflict):
                written.append(ledger.decisions.record("gate", "s", Verdict(True, "r"), actor="a", expected=expected))
                assert expected is UNCHECKED or expected == newest
        assert ledger.decisions.list() == written
        assert ledger.audit.verify().entries == len(written)


def test_what_fails_half_way_leaves_nothing(sqlite_ledger: Ledger) -> None:
    ledger = sqlite_ledger

    def interrupted() -> None:
        with ledger.database.write() as connection:
            ledger.decisions.append(connection, "gate", "s", Verdict(True, "r"), "ann")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ledger.decisions.list() == []
    assert ledger.audit.verify().ok
    ledger.decisions.record("gate", "s", Verdict(True, "r"), actor="ann")
    assert ledger.audit.head().seq == 1
