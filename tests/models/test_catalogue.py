import json
from dataclasses import replace
from pathlib import Path

import pytest

from tidemill.kernel import InvalidInput, NotFound
from tidemill.models import BUILT_IN, MINILM, SMOLLM2, Catalogue, ModelEntry, ProviderSource, Quantization


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: entry.name)
def test_an_entry_survives_json(entry: ModelEntry) -> None:
    again = ModelEntry.from_json(json.loads(json.dumps(entry.as_json())))
    assert again == entry
    assert again.digest == entry.digest


def test_built_in_entries_pin_every_file_and_state_a_licence() -> None:
    for entry in BUILT_IN:
        assert entry.licence == "Apache-2.0"
        assert not isinstance(entry.source, ProviderSource)
        assert all(file.digest for file in entry.source.files)


def test_the_digest_is_about_the_bytes() -> None:
    assert replace(SMOLLM2, input_usd_per_mtok=3.0, notes="x").digest == SMOLLM2.digest
    assert SMOLLM2.quantized("q8_0").digest != SMOLLM2.quantized("q4_0").digest


def test_a_quantization_must_suit_the_kind() -> None:
    with pytest.raises(InvalidInput, match="cannot be served as 'int8'"):
        SMOLLM2.quantized(Quantization.INT8)
    with pytest.raises(InvalidInput, match="the choices are"):
        MINILM.quantized("q2")


def test_a_providers_entry() -> None:
    entry = ModelEntry.from_json(
        {
            "name": "big",
            "kind": "chat",
            "licence": "proprietary",
            "source": {
                "type": "provider",
                "url": "https://llm.example.com/v1",
                "model": "big-1",
                "api_key_ref": "env:KEY",
            },
            "input_usd_per_mtok": 2.5,
        }
    )
    assert not entry.has_weights
    assert ModelEntry.from_json(entry.as_json()) == entry
    with pytest.raises(InvalidInput, match="no files"):
        entry.from_folder(Path("x"))


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({"name": "m", "kind": "chat"}, r"source\.type must be one of wheel, hub"),
        (
            {"name": "m", "kind": "picture", "source": {"type": "folder", "path": "x"}},
            "the choices are chat, embedding",
        ),
        ({"name": "m", "kind": "chat", "source": {"type": "folder", "pth": "x"}}, "pth"),
        ({"name": "m", "kind": "chat", "colour": 1, "source": {"type": "folder", "path": "x"}}, "colour"),
        ({"name": "M!", "kind": "chat", "source": {"type": "folder", "path": "x"}}, "cannot name a model"),
    ],
)
def test_bad_entries_are_told(value: dict[str, object], part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        ModelEntry.from_json(value)


def test_a_projects_entry_wins_and_near_names_are_told() -> None:
    own = replace(MINILM, context_tokens=128)
    catalogue = Catalogue.of([own])
    assert catalogue.get(MINILM.name) is own
    assert catalogue.get(SMOLLM2.name) is SMOLLM2
    with pytest.raises(NotFound, match=r"did you mean smollm2-135m-instruct"):
        catalogue.get("smollm-135m")
