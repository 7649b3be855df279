"""``router show`` and ``router train``: what is learned, from a file and from real traces, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.cli.shop import Shop
from tidemill.gateway.routing import FEATURES
from tidemill.kernel import fresh_span_id, fresh_trace_id
from tidemill.telemetry import Content, Score, SegmentWriter, Span

SUMS = "Compute the total of {a} times {b} plus {c}, step by step."
TALK = "Tell me something nice about {a} cats in {b} words."
STARTED_NS = 1_790_000_000_000_000_000


def requests(count: int) -> list[dict[str, Any]]:
    """Sums are what the small model cannot do."""
    rng, found = Random(0), []
    for _ in range(count):
        hard = rng.random() < 0.4
        text = (SUMS if hard else TALK).format(a=rng.randint(2, 99), b=rng.randint(2, 99), c=rng.randint(2, 99))
        small = float(rng.random() < (0.2 if hard else 0.95))
        found.append({"input": text, "small": small, "large": 1.0, "small_usd": 0.0001, "large_usd": 0.002})
    return found


def file_of(folder: Path, lines: list[dict[str, Any]]) -> str:
    path = folder / "scored.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    return str(path)


def test_what_is_learned_from_a_file_goes_into_the_project_file(bare_shop: Shop, tmp_path: Path) -> None:
    file = file_of(tmp_path, requests(1200))
    said = bare_shop.ok("router", "train", "--file", file, "--max-loss", "0.05")
    assert said.startswith("PASS: ")
    assert "better than a random mix" in said
    assert "choice: learned" in said
    told = bare_shop.json("router", "train", "--file", file, "--max-loss", "0.05")
    assert told["verdict"]["value"] == "PASS"
    assert told["saved"] > 0.4
    assert len(told["learned"]["weights"]) == len(FEATURES) + 1
    bare_shop.change("models", "big", to={"kind": "chat", "url": "http://127.0.0.1:9/v1"})
    bare_shop.change("releases", "shop", to={"model": "scripted"})
    bare_shop.change(
        "releases", "shop", "router", to={"models": ["big"], "choice": "learned", "learned": told["learned"]}
    )
    shown = bare_shop.json("router", "show", "shop", "--ask", SUMS.format(a=53, b=64, c=35))
    assert (shown["models"], shown["choice"]) == (["scripted", "big"], "learned")
    assert [*shown["weights"]] == [*FEATURES, "intercept"]
    assert shown["asked"]["model"] == "big"
    assert shown["asked"]["score"] >= shown["threshold"]
    text = bare_shop.ok("router", "show", "shop", "--ask", TALK.format(a=53, b=64))
    assert "It goes to scripted first" in text
    assert "reasoning_words" in text


def test_rules_are_shown_and_asked(bare_shop: Shop) -> None:
    rules = [{"field": "messages", "pattern": "(?i)translate", "model": "big"}]
    bare_shop.change("models", "big", to={"kind": "chat", "url": "http://127.0.0.1:9/v1"})
    bare_shop.change("releases", "shop", to={"model": "scripted", "router": {"models": ["big"], "rules": rules}})
    said = bare_shop.ok("router", "show", "shop", "--ask", "Translate it.")
    assert "ordered of scripted, big" in said
    assert "big first where messages matches (?i)translate" in said
    assert "It goes to big first." in said
    bare_shop.change("releases", "shop", "router", to={"models": ["big"], "choice": "weighted"})
    assert "weighted does not look at the request." in bare_shop.ok("router", "show", "shop", "--ask", "Translate it.")


def test_too_little_is_insufficient(bare_shop: Shop, tmp_path: Path) -> None:
    file = file_of(tmp_path, requests(60))
    called = bare_shop.call("router", "train", "--file", file, "--max-loss", "0.001")
    assert called.code == 4
    assert called.out.startswith("INSUFFICIENT: no threshold could be shown")
    assert "choice: learned" not in called.out


def test_mistakes(bare_shop: Shop, tmp_path: Path) -> None:
    assert "too few" in bare_shop.refused("router", "train", "--file", file_of(tmp_path, requests(59)))
    assert "either --file or --endpoint" in bare_shop.refused("router", "train")
    assert "--large NAME@7" in bare_shop.refused("router", "train", "--endpoint", "shop")
    bad = file_of(tmp_path, [{"input": "x", "small": 1, "large": 1}, {"input": "x", "small": "much"}])
    assert "line 2 is no scored request" in bare_shop.refused("router", "train", "--file", bad)
    assert "cannot be read" in bare_shop.refused("router", "train", "--file", str(tmp_path / "none.jsonl"))
    assert "one model and no router" in bare_shop.refused("router", "show", "shop")
    assert "no release 'none'" in bare_shop.refused("router", "show", "none")


@pytest.mark.parametrize("named", [True, False], ids=["scored by span", "feedback on the live answer"])
def test_traces_that_both_models_answered_are_learned_from(shop: Shop, named: bool) -> None:
    large = shop.json("release", "show", "shop@1")["digest"]
    writer = SegmentWriter(shop.folder / ".tidemill" / "segments" / "test", project="shop", tenant="default")
    for number, line in enumerate(requests(300)):
        trace_id = fresh_trace_id()
        messages = json.dumps([{"role": "user", "content": line["input"]}])
        for release, arm, which in ((large, "control", "large"), ("sha256:" + "5" * 64, "shadow", "small")):
            span = Span(
                trace_id, fresh_span_id(), "shop", "default", "chat shop", "chat", STARTED_NS + number,
                STARTED_NS + 9999,
                endpoint="shop", release=release, arm=arm, cost_usd=line[f"{which}_usd"],
            )  # fmt: skip
            writer.finished(span, Content(messages, "an answer"))
            score = Score(
                score_id=fresh_span_id(), trace_id=trace_id, name="quality", value=line[which], source="judge",
                at_ns=STARTED_NS, project="shop", tenant="default",
                span_id=span.span_id if named or arm == "shadow" else None,
            )  # fmt: skip
            writer.score(score)
    writer.close()
    called = shop.call("router", "train", "--endpoint", "shop", "--large", "shop@1", "--max-loss", "0.2", "--json")
    assert called.code == 0, called
    told = json.loads(called.out)
    assert told["requests"] == 300
    assert told["quality"]["large"] == 1.0
    assert told["saved"] > 0.2
    other = shop.refused("router", "train", "--endpoint", "shop", "--large", "shop@1", "--score", "helpfulness")
    assert "0 scored requests are too few" in other
