from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tidemill.kernel import ArtifactKind, Choice, InvalidInput, ReleaseParts, Scope
from tidemill.kernel.settings import Settings, parse_settings
from tidemill.ledger import Ledger, open_ledger
from tidemill.loop.project import _entry
from tidemill.loop.recipes import release_parts
from tidemill.loop.targets import choice_of, model_target, release_targets
from tidemill.models import ModelEntry

TODAY = date(2026, 6, 1)


def project(**more: Any) -> Settings:
    models = {
        "small": {"url": "http://one/v1", "licence": "MIT", "input_usd_per_mtok": 1.0, "quality": 0.6},
        "large": {
            "url": "https://api.example.com",
            "dialect": "anthropic",
            "api_key": "env:KEY",
            "upstream_model": "big-1",
            "options": {"version": "1"},
            "prices": [
                {"since": "2026-01-01", "input_usd_per_mtok": 3, "output_usd_per_mtok": 15},
                {"since": "2026-05-01", "input_usd_per_mtok": 2, "output_usd_per_mtok": 10, "request_usd": 0.001},
                {"since": "2026-07-01", "input_usd_per_mtok": 1, "output_usd_per_mtok": 5},
            ],
        },
    }
    return parse_settings({"project": "shop", "models": models, **more})


def entry(settings: Settings, name: str) -> dict[str, Any]:
    return ModelEntry.from_json(_entry(settings, name, settings.models[name])).as_json()


def test_the_row_of_the_price_table_that_has_begun_holds() -> None:
    settings = project()
    large = model_target(settings, entry(settings, "large"), TODAY)
    assert (large.dialect, large.model, large.api_key_ref, large.options) == (
        "anthropic", "big-1", "env:KEY", {"version": "1"}
    )  # fmt: skip
    assert (large.prices.version, large.prices.input_usd_per_mtok, large.prices.request_usd) == ("2026-05-01", 2, 0.001)
    assert model_target(settings, entry(settings, "large"), date(2026, 8, 1)).prices.version == "2026-07-01"
    assert model_target(settings, entry(settings, "large"), date(2025, 8, 1)).prices.version == ""
    small = model_target(settings, entry(settings, "small"), TODAY)
    assert (small.prices.input_usd_per_mtok, small.quality, small.dialect) == (1.0, 0.6, "openai")


def test_a_release_with_a_router_has_several_targets(tmp_path: Path) -> None:
    router = {
        "models": ["large"],
        "choice": "cheapest",
        "quality_floor": 0.5,
        "rules": [{"field": "tools", "pattern": "search", "model": "large"}],
    }
    settings = project(releases={"mix": {"model": "small", "router": router}})
    with open_ledger(f"sqlite:///{tmp_path / 'l.db'}", blobs=str(tmp_path / "b"), scope=Scope("shop")) as ledger:
        _register(ledger, settings)
        parts = release_parts(settings, ledger, "mix")
        assert ReleaseParts.from_json(parts.as_json()) == parts
        assert list(parts.artifacts()) == ["model", "model_2"]
        assert [one.name for one in release_targets(settings, ledger, parts, TODAY)] == ["small", "large"]
        choice = choice_of(parts)
        assert (choice.kind, choice.quality_floor) == (Choice.CHEAPEST, 0.5)
        assert choice.rules == (("tools", "search", "large"),)
        plain = release_parts(project(releases={"mix": {"model": "small"}}), ledger, "mix")
        assert choice_of(plain).kind is Choice.ORDERED


@pytest.mark.parametrize(
    ("router", "what"),
    [
        ({"models": ["small"]}, "twice"),
        ({"models": ["large"], "rules": [{"field": "user", "pattern": "x", "model": "huge"}]}, "names 'huge'"),
    ],
)
def test_a_router_that_makes_no_sense_is_refused(tmp_path: Path, router: dict[str, Any], what: str) -> None:
    settings = project(releases={"mix": {"model": "small", "router": router}})
    with open_ledger(f"sqlite:///{tmp_path / 'l.db'}", blobs=str(tmp_path / "b"), scope=Scope("shop")) as ledger:
        _register(ledger, settings)
        with pytest.raises(InvalidInput, match=what):
            release_parts(settings, ledger, "mix")


def _register(ledger: Ledger, settings: Settings) -> None:
    for name in settings.models:
        ledger.artifacts.publish(ArtifactKind.MODEL, name, {"entry": entry(settings, name)})
