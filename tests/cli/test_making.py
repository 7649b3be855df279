from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

from tests.cli.shop import Shop
from tidemill.cli.entry import run


def test_builds_a_data_set_and_keeps_what_was_left_out(bare_shop: Shop) -> None:
    (bare_shop.folder / "documents" / "torn.md").write_bytes(b"caf\xe9")
    assert bare_shop.json("data", "list") == []
    assert "tidemill data build" in bare_shop.ok("data", "list")
    built = bare_shop.json("data", "build", "shop")
    assert (built["ref"], built["cached"]) == ("dataset/shop@1", False)
    excluded = bare_shop.json("data", "rows", built["excluded"]["ref"])
    assert "UTF-8" in excluded[0]["value"]["verdict"]["reason"]
    assert bare_shop.json("data", "build", "shop")["cached"]
    assert "(unchanged)" in bare_shop.ok("data", "build", "shop")


def test_shows_data_sets_and_their_rows(shop: Shop) -> None:
    rows = shop.json("data", "rows", "shop", "--limit", "2")
    assert [sorted(row) for row in rows] == [["row_id", "sources", "value"]] * 2
    assert "2 of 3 rows" in shop.ok("data", "rows", "dataset/shop@1", "--limit", "2")
    shown = shop.json("data", "show", "shop@1")
    assert shown["content"]["rows"]["count"] == 3
    assert shown["versions"] == [1]
    assert "documents" in shop.ok("data", "show", shown["digest"])
    assert {one["ref"] for one in shop.json("data", "list")} == {"dataset/shop@1", "dataset/questions@1"}


def test_searches_an_index(shop: Shop) -> None:
    hits = shop.json("index", "search", "shop", "flat tyre", "--top-k", "1")
    assert [hit["source"] for hit in hits] == ["file:documents/repairs.md"]
    assert "1. " in shop.ok("index", "search", "index/shop@1", "flat tyre")
    assert "no passage" in shop.ok("index", "search", "shop", "zeppelin")
    assert shop.json("index", "list")[0]["content"]["mode"] == "bm25"
    shop.ok("index", "build", "shop")
    assert shop.json("index", "build", "shop")["cached"] == ["documents", "index"]
    assert "sparse" in shop.refused("index", "search", "shop", "tyre", "--mode", "sparse")
    assert "no vectors" in shop.refused("index", "search", "shop", "tyre", "--mode", "dense")


def test_a_vector_index_asks_for_its_model_first(bare_shop: Shop) -> None:
    bare_shop.change("indexes", "shop", "mode", to="hybrid")
    assert "tidemill models pull all-minilm-l6-v2" in bare_shop.refused("index", "build", "shop")
    bare_shop.change("runtime", "embedding", to=None)
    assert "runtime.embedding" in bare_shop.refused("index", "build", "shop")


def test_lists_pulls_and_shows_models(shop: Shop, tmp_path: Path) -> None:
    models = {one["name"]: one["pulled"] for one in shop.json("models", "list")}
    assert models["scripted"] == "model/scripted@1"
    assert models["all-minilm-l6-v2"] is None
    assert "scripted" in shop.ok("models", "list")
    assert shop.json("models", "show", "scripted")["pulled"][0]["ref"] == "model/scripted@1"
    assert "models pull smollm2" in shop.ok("models", "show", "smollm2-135m-instruct")
    assert [one["ref"] for one in shop.json("models", "pull", "scripted")] == ["model/scripted@1"]
    (tmp_path / "weights").mkdir()
    given = shop.refused("models", "pull", "all-minilm-l6-v2", "--from", str(tmp_path / "weights"))
    assert "model.safetensors" in given
    assert "Name it" in shop.refused("models", "pull", "--from", str(tmp_path))


def test_compares_and_labels_prompts(shop: Shop) -> None:
    shop.change("prompts", "answer", "no_answer", to="Ask a colleague.")
    shop.ok("apply")
    assert "Ask a colleague." in shop.ok("prompt", "diff", "answer@1", "answer@2")
    assert shop.json("prompt", "diff", "answer@1", "answer@1")["diff"] == ""
    assert "{{question}}" in shop.ok("prompt", "show", "answer@1")
    move = ("prompt", "label", "answer@2", "production", "--reason", "better")
    assert shop.json(*move)["was"] is None
    assert "points at version 1" in shop.ok("prompt", "label", "answer@1", "production", "--reason", "no, worse")
    assert "Nothing was moved" in shop.refused(*move, "--expected", "2")
    assert shop.json("prompt", "list")[0]["labels"] == {"applied": 2, "production": 1}
    assert shop.json("prompt", "show", "answer@production")["ref"] == "prompt/answer@1"
    why = [one["evidence"]["why"] for one in shop.json("audit", "list", "--subject", "prompt/answer@production")]
    assert why == ["better", "no, worse"]


def test_init_names_the_commands_that_lead_to_a_served_release(bare_shop: Shop, tmp_path: Path) -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        assert run(["init", str(tmp_path / "shop2"), "--name", "shop"]) == 0
    listed = [line.split("  ", 2)[1].split() for line in out.getvalue().splitlines() if line.startswith("  tidemill ")]
    bare_shop.change("runtime", to={"enabled": False, "chat": "scripted", "embedding": None})
    assert listed.pop() == ["tidemill", "up"]
    for _, *arguments in listed:
        bare_shop.ok(*arguments)
    assert bare_shop.json("release", "list")[0]["serves"] == ["shop"]
