from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.shop import Shop, write_questions
from tidemill.cli.evaluate import parse_rule
from tidemill.evaluation import GateRule, RuleKind
from tidemill.kernel import InvalidInput


def careless_release(shop: Shop) -> str:
    """A second release whose prompt makes the model answer wrongly."""
    shop.change(
        "prompts",
        "answer",
        "messages",
        to=[{"role": "system", "content": "Be careless."}, {"role": "user", "content": "{{question}} {{context}}"}],
    )
    shop.ok("apply")
    return str(shop.json("release", "create", "shop")["ref"])


def test_evaluates_a_release_and_shows_the_report(shop: Shop) -> None:
    (report,) = shop.json("eval", "list")
    assert report["ref"] == "report/shop@1"
    assert report["content"]["metrics"]["exact"]["mean"] == 1.0
    assert report["content"]["metrics"]["recall@1"]["mean"] == 1.0
    assert report["content"]["answers"]["errors"] == 0
    assert report["content"]["answers"]["cost_usd"] == pytest.approx(40 * 6 * 100 / 1e6)
    text = shop.ok("eval", "show", "shop@1")
    assert "release/shop@1 on 40 cases" in text
    assert "95 % interval" in text
    rows = shop.json("eval", "show", "shop@1", "--rows")["rows"]
    assert len(rows) == 40
    assert "A flat tyre costs 12 euros." in shop.ok("eval", "show", "shop@1", "--rows")
    assert "exact 1.00" in shop.ok("eval", "list")


def test_evaluates_a_split_and_a_sample(shop: Shop) -> None:
    given = ("eval", "run", "shop", "questions", "--split", "heldout", "--sample", "5", "--name", "few")
    content = shop.json(*given)["content"]
    assert content["metrics"]["exact"]["n"] == 5
    assert content["metrics"]["recall@1"]["n"] == 20


def test_the_gate_answers_by_its_exit_code(shop: Shop) -> None:
    second = careless_release(shop)
    shop.ok("eval", "run", second, "questions")
    same = shop.json("gate", "shop@1", "shop@1", "--rule", "exact:non_inferior:0.3")
    assert same["value"] == "PASS"
    assert shop.json("gate", "shop@1", "shop@1", "--rule", "exact:superior", code=4)["value"] == "INSUFFICIENT"
    worse = shop.call("gate", "shop@2", "shop@1", "--rule", "exact:non_inferior:0.1")
    assert worse.code == 1
    assert worse.out.startswith("FAIL")
    assert shop.json("gate", "shop@1", "--rule", "exact:at_least:0.5")["value"] == "PASS"
    assert shop.json("gate", "shop@2", "shop@1", code=1)["value"] == "FAIL"
    few = shop.json("gate", "shop@1", "shop@1", "--minimum", "41", "--rule", "exact:non_inferior:0.3", code=4)
    assert few["value"] == "INSUFFICIENT"
    kept = [one["value"] for one in shop.json("audit", "list", "--kind", "gate")]
    assert kept == ["PASS", "INSUFFICIENT", "FAIL", "PASS", "FAIL", "INSUFFICIENT"]


def test_reads_rules() -> None:
    assert parse_rule("mrr:superior", 30) == GateRule("mrr", RuleKind.SUPERIOR)
    assert parse_rule("recall@5:non_inferior:0.1", 7) == GateRule("recall@5", margin=0.1, minimum=7)
    assert parse_rule("exact:at_least:0.6", 30) == GateRule("exact", RuleKind.AT_LEAST, floor=0.6)


@pytest.mark.parametrize("text", ["", "mrr", "mrr:better", "mrr:non_inferior:x", "mrr:superior:0.1", ":superior"])
def test_refuses_what_is_no_rule(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_rule(text, 30)


def test_refuses_what_cannot_be_judged(shop: Shop) -> None:
    assert "has no metric 'bleu'" in shop.refused("gate", "shop@1", "shop@1", "--rule", "bleu:superior")
    assert "only one report" in shop.refused("gate", "shop@1")
    assert "no 'report/other'" in shop.refused("gate", "other", "shop@1")


def test_refuses_question_files_line_by_line(shop: Shop, tmp_path: Path) -> None:
    file = write_questions(tmp_path / "q.jsonl", 2)
    for line, what in (("{", "line 3 is not JSON"), ("[]", "line 3 is not a JSON object"), ('{"q": 1}', "line 3")):
        write_questions(file, 2)
        with file.open("a", encoding="utf-8") as opened:
            opened.write(line + "\n")
        assert what in shop.refused("eval", "run", "shop", "--file", str(file))
    assert "no question file" in shop.refused("eval", "run", "shop", "--file", str(tmp_path / "none.jsonl"))
    assert "--file" in shop.refused("eval", "run", "shop")


def test_a_model_server_that_is_down_is_said_so(shop: Shop) -> None:
    shop.change("models", "scripted", "url", to="http://127.0.0.1:9/v1")
    shop.ok("models", "pull", "scripted")
    release = shop.json("release", "create", "shop")["ref"]
    before = shop.json("eval", "list")
    message = shop.refused("eval", "run", release, "questions", "--name", "down")
    assert "No model server answers at http://127.0.0.1:9/v1: Connection refused." in message
    assert shop.json("eval", "list") == before


def test_the_projects_own_model_server_is_named(shop: Shop) -> None:
    shop.change("runtime", "enabled", to=True)
    shop.change("releases", "shop", "retrieval", "mode", to="hybrid")
    release = shop.json("release", "create", "shop")["ref"]
    assert "tidemill runtime" in shop.refused("eval", "run", release, "questions")
