from __future__ import annotations

from tests.cli.shop import Shop
from tests.cli.test_proving import careless_release


def first_live(shop: Shop) -> str:
    return str(shop.json("rollout", "start", "shop", "shop@1")["rollout"])


def test_creates_a_release_once_for_the_same_parts(shop: Shop) -> None:
    again = shop.json("release", "create", "shop")
    assert (again["ref"], again["new"]) == ("release/shop@1", False)
    assert again["parts"] == {"model": "model/scripted@1", "prompt": "prompt/answer@1", "index": "index/shop@1"}
    shown = shop.json("release", "show", "shop@1")
    assert (shown["notes"], shown["serves"]) == (["the first"], [])
    assert "index/shop@1" in shop.ok("release", "show", "shop")
    assert "release/shop@1" in shop.ok("release", "list")


def test_says_what_a_release_still_needs(bare_shop: Shop) -> None:
    assert "tidemill release create" in bare_shop.ok("release", "list")
    assert "tidemill models pull scripted" in bare_shop.refused("release", "create", "shop")
    bare_shop.ok("models", "pull", "scripted")
    assert "tidemill apply" in bare_shop.refused("release", "create", "shop")
    assert "tidemill apply" in bare_shop.refused("rollout", "start", "shop", "shop")


def test_the_first_release_goes_live_at_once(shop: Shop) -> None:
    assert "tidemill rollout start" in shop.ok("rollout", "list")
    started = shop.json("rollout", "start", "shop", "shop@1")
    assert (started["state"], started["baseline"]) == ("promoted", None)
    assert shop.json("release", "list")[0]["serves"] == ["shop"]
    assert "nothing to roll out" in shop.refused("rollout", "start", "shop", "shop@1")


def test_a_later_release_must_pass_the_gate(shop: Shop) -> None:
    first_live(shop)
    second = careless_release(shop)
    assert "must pass a gate" in shop.refused("rollout", "start", "shop", second)
    both = shop.refused("rollout", "start", "shop", second, "--gate", "shop@1", "shop@1", "--override", "x")
    assert "either" in both
    wrong = shop.refused("rollout", "start", "shop", second, "--gate", "shop@1", "shop@1")
    assert "is about release/shop@1, not about release/shop@2" in wrong
    shop.ok("eval", "run", second, "questions")
    given = ("rollout", "start", "shop", second, "--gate", "shop@2", "shop@1", "--rule", "exact:non_inferior:0.1")
    out = shop.json(*given, code=1)
    assert out["state"] == "gated_out"
    overridden = shop.json("rollout", "override", out["rollout"], "--reason", "to see the canary catch it")
    assert overridden["state"] == "gated"
    assert "already has a rollout" in shop.refused("rollout", "start", "shop", second, "--override", "again")
    assert len(shop.json("rollout", "list", "--endpoint", "shop")) == 2


def test_a_gate_that_passes_lets_the_rollout_begin(shop: Shop) -> None:
    first_live(shop)
    shop.change("releases", "shop", "decoding", "max_tokens", to=33)
    second = shop.json("release", "create", "shop")["ref"]
    shop.ok("eval", "run", second, "questions")
    given = ("rollout", "start", "shop", second, "--gate", "shop@2", "shop@1", "--rule", "exact:non_inferior:0.3")
    called = shop.call(*given)
    assert called.code == 0
    assert called.out.startswith("PASS")
    (_, rollout) = shop.json("rollout", "list")
    assert rollout["state"] == "gated"


def test_people_move_a_rollout_with_a_reason(shop: Shop) -> None:
    first_live(shop)
    second = careless_release(shop)
    rollout = shop.json("rollout", "start", "shop", second, "--override", "to try it")["rollout"]
    assert shop.json("rollout", "hold", rollout, "--reason", "wait")["state"] == "held"
    assert shop.json("rollout", "resume", rollout, "--reason", "go on")["state"] == "gated"
    refused = shop.refused("rollout", "promote", rollout, "--reason", "now")
    assert "cannot happen to a rollout that is gated" in refused
    assert "needs a reason" in shop.refused("rollout", "cancel", rollout, "--reason", " ")
    assert "is cancelled" in shop.ok("rollout", "cancel", rollout, "--reason", "enough")
    story = shop.ok("rollout", "explain", rollout)
    assert "to try it" in story
    assert "enough" in story
    assert shop.json("rollout", "show", rollout)["sessions"] == 0
    assert "may       do nothing more" in shop.ok("rollout", "show", rollout)
    assert shop.json("rollout", "explain", rollout)["now"] is None


def test_a_reason_cannot_move_the_cursor(shop: Shop) -> None:
    first_live(shop)
    rollout = shop.json("rollout", "start", "shop", careless_release(shop), "--override", "a\x1b[2Jb")["rollout"]
    story = shop.ok("rollout", "explain", rollout)
    assert "\x1b" not in story
    assert "a\\x1b[2Jb" in story


def test_issues_lists_and_revokes_keys(shop: Shop) -> None:
    assert "tidemill keys issue" in shop.ok("keys", "list")
    key = shop.json("keys", "issue", "website")["key"]
    assert key.startswith("tm-")
    assert key not in shop.ok("keys", "list")
    assert "already" in shop.refused("keys", "issue", "website")
    shop.ok("keys", "revoke", "website", "--reason", "leaked")
    assert shop.json("keys", "list")[0]["revoked_at"]
    assert "no live API key" in shop.refused("keys", "revoke", "website", "--reason", "twice")
    assert shop.ok("keys", "issue", "website").startswith("tm-")
