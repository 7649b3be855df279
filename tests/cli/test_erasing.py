"""``trace kept`` and ``trace erase`` over a store with traffic in it, while nothing runs and while it does."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.cli.shop import Shop
from tests.cli.test_watching import running_server
from tests.loop.traffic import fill, request, trace_id
from tidemill.kernel import Scope
from tidemill.loop.erasing import ERASURE, user_keys
from tidemill.loop.project import Places, open_project
from tidemill.server.keeping import DAY_NS
from tidemill.telemetry import Content, SegmentWriter, open_span_store

ADA = "ada.lovelace.4711"


def state(shop: Shop) -> Path:
    return shop.folder / ".tidemill"


@pytest.fixture
def busy(bare_shop: Shop) -> Shop:
    """A shop with forty old requests in the cold tier, and one of a person's in a segment."""
    with open_project(bare_shop.folder) as opened:
        store = open_span_store(opened.places.spans, Scope("shop"))
        fill(store, 40)
        store.compact(2**62 // DAY_NS * DAY_NS)
        store.close()
    say_something(bare_shop, 100, "quixotry")
    return bare_shop


def say_something(shop: Shop, number: int, said: str) -> None:
    (key,) = user_keys(Places(state(shop)), [ADA])
    with SegmentWriter(state(shop) / "segments" / f"test-{number}", project="shop", tenant="default") as writer:
        writer.finished(request(number, user_key=key), Content("[]", f"It is {said}."))


def everything(shop: Shop) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(state(shop).rglob("*")) if path.is_file())


def test_a_person_is_forgotten_while_nothing_runs(busy: Shop) -> None:
    kept = busy.json("trace", "kept")
    assert (kept["spans"], kept["last_turn"], kept["retention"]["hot_days"]) == (81, None, 7.0)
    assert "does not run" in busy.ok("trace", "kept")
    done = busy.json("trace", "erase", "--user", ADA, "--yes", "--reason", "A letter.")
    assert (done["by"], done["asked"], done["traces"], done["spans"]) == ("user", 1, 1, 1)
    assert busy.json("trace", "kept")["spans"] == 80
    assert "No trace" in busy.ok("trace", "list", "--text", "quixotry")
    assert "No span names them" in busy.ok("trace", "erase", "--user", ADA, "--yes")
    entries = busy.json("audit", "list", "--subject", done["erasure"])
    assert [(one["kind"], one["value"], one["reason"]) for one in entries] == [
        (ERASURE, "asked", "A letter."),
        (ERASURE, "erased", "1 traces with 1 spans are gone."),
    ]
    assert busy.json("audit", "verify")["ok"]
    found = everything(busy)
    assert ADA.encode() not in found
    assert b"quixotry" not in found


def test_traces_and_times(busy: Shop) -> None:
    done = busy.json("trace", "erase", "--trace", trace_id(3), "--trace", trace_id(4).upper(), "--yes")
    assert (done["traces"], done["spans"], done["scores"], done["partitions_rewritten"]) == (2, 4, 1, 1)
    assert "no trace" in busy.refused("trace", "show", trace_id(3))
    shown = busy.ok("trace", "erase", "--before", "2026-09-22", "--yes")
    assert "Erased 39 traces with 77 spans" in shown
    assert "tidemill audit list --subject erasure/era" in shown
    assert busy.json("trace", "kept")["spans"] == 0


def test_a_person_is_forgotten_while_the_control_plane_runs(busy: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    port = 0
    with open_project(busy.folder) as opened:
        port = opened.settings.server.port
    with running_server(busy, port):
        busy.json("trace", "list")  # drains
        say_something(busy, 101, "quandary")
        assert "waiting_bytes" in busy.json("trace", "kept")
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{ADA}\n\n"))
        done = busy.json("trace", "erase", "--user", "-", "--yes")
        assert (done["traces"], done["spans"]) == (2, 2)
        assert busy.json("trace", "kept")["spans"] == 80
        assert "No trace" in busy.ok("trace", "list", "--text", "quandary")
    found = everything(busy)
    assert not [gone for gone in (ADA, "quixotry", "quandary") if gone.encode() in found]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "one of them"),
        (("--user", "ada", "--before", "90d"), "one of them"),
        (("--user", "ada"), "--yes"),
        (("--trace", "nine", "--yes"), "no trace id"),
        (("--before", "2999-01-01", "--yes"), "still to come"),
        (("--user", "ada", "--reason", "ada asked", "--yes"), "names the person"),
        (("--user", "ada", "--reason", "", "--yes"), "reason"),
    ],
)
def test_a_mistake_gets_a_sentence_and_erases_nothing(
    bare_shop: Shop, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert said in bare_shop.refused("trace", "erase", *arguments)
    assert bare_shop.json("audit", "list", "--kind", ERASURE) == []


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "left"), [("n\n", 81), ("y\n", 80)])
def test_it_asks_first(busy: Shop, typed: str, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", _Terminal(typed))
    called = busy.call("trace", "erase", "--user", ADA)
    assert "Erase all that is kept of 1 person?" in called.out
    assert called.code == (0 if typed == "y\n" else 130)
    assert busy.json("trace", "kept")["spans"] == left
