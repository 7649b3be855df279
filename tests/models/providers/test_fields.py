"""Every field of OpenAI's chat request is served or refused by name at every provider; none is dropped in silence."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from openai.types.chat import completion_create_params

from tidemill.kernel import NotFound
from tidemill.models.providers import (
    DIALECTS,
    Credentials,
    Place,
    ProviderRequest,
    UnsupportedField,
    anthropic,
    azure,
    bedrock,
    compatible,
    dialect,
    gemini,
    mistral,
)
from tidemill.models.providers.dialect import UnsupportedOperation
from tidemill.models.providers.fields import CHAT_FIELDS, FieldTable

TABLES: dict[str, FieldTable] = {
    "anthropic": anthropic.FIELDS,
    "azure": azure.FIELDS,
    "bedrock": bedrock.FIELDS,
    "gemini": gemini.FIELDS,
    "mistral": mistral.FIELDS,
    "ollama": compatible.OLLAMA_FIELDS,
    "openai": compatible.OPENAI_FIELDS,
    "vllm": compatible.VLLM_FIELDS,
}
TOOL = {"type": "function", "function": {"name": "ring", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {}}}}
#: A value that asks for something, of each field.
ASKING: dict[str, Any] = {
    "model": "another",
    "messages": [{"role": "user", "content": "Why?"}],
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_completion_tokens": 50,
    "max_tokens": 50,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "stop": ["END"],
    "seed": 7,
    "n": 2,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "logit_bias": {"5": 1},
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [TOOL],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "functions": [{"name": "ring"}],
    "function_call": "auto",
    "response_format": SCHEMA,
    "reasoning_effort": "low",
    "verbosity": "low",
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "prediction": {"type": "content", "content": "a"},
    "web_search_options": {"search_context_size": "low"},
    "user": "ada",
    "safety_identifier": "ada",
    "metadata": {"team": "a"},
    "store": True,
    "service_tier": "default",
    "moderation": {"model": "omni-moderation-latest"},
    "prompt_cache_key": "a",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
}
#: What a dialect serves by doing nothing, and why that is enough.
NOTHING_TO_DO = {
    "model": "the target says the model",
    "stream_options": "the provider always tells the usage",
    "user": "the gateway itself uses it",
}
#: Fields that need others beside them.
BESIDE: dict[str, dict[str, Any]] = {
    "stream_options": {"stream": True},
    "tool_choice": {"tools": [TOOL]},
    "parallel_tool_calls": {"tools": [TOOL]},
    "top_logprobs": {"logprobs": True},
}
PLACE = Place("/v1", "models.example", "model-1", {"region": "eu-west-1", "api_version": "2024-10-21"})
CREDENTIALS = Credentials("k")


def sent(name: str, request: dict[str, Any]) -> ProviderRequest:
    body = json.dumps({"model": "shop", "messages": [{"role": "user", "content": "When?"}], **request}).encode()
    return DIALECTS[name].request("chat", body, PLACE, CREDENTIALS, now_s=1.79e9)


def test_the_list_of_fields_is_that_of_openais_library() -> None:
    names = set(inspect.get_annotations(completion_create_params.CompletionCreateParamsBase)) | {"stream"}
    assert set(CHAT_FIELDS) == names


def test_every_dialect_has_a_table() -> None:
    assert set(TABLES) == set(DIALECTS)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_names_every_field_once(name: str) -> None:
    table = TABLES[name]
    assert table.provider == name
    assert set(CHAT_FIELDS) <= {*table.served, *table.refused}
    assert set(table.served) & set(table.refused) == set()
    assert all(table.served.values())
    assert [reason for reason in table.refused.values() if not reason or reason.endswith(".")] == []


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, table in sorted(TABLES.items()) for field in sorted(table.refused)]
)
def test_a_refused_field_is_refused_by_its_name(name: str, field: str) -> None:
    with pytest.raises(UnsupportedField) as refused:
        sent(name, {field: ASKING[field]})
    assert refused.value.field == field
    assert TABLES[name].refused[field] in refused.value.message


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name, table in sorted(TABLES.items()) for field in table.served if field in ASKING],
)
def test_a_served_field_reaches_the_provider(name: str, field: str) -> None:
    beside = BESIDE.get(field, {})
    without = sent(name, beside)
    with_it = sent(name, {**beside, field: ASKING[field]})
    if field in NOTHING_TO_DO and without == with_it:
        return
    assert (with_it.path, with_it.body) != (without.path, without.body)


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"anthropic", "bedrock", "gemini"}))
def test_a_field_that_nobody_knows_is_passed_on(name: str) -> None:
    assert json.loads(sent(name, {"colour": "blue"}).body)["colour"] == "blue"


@pytest.mark.parametrize("name", ["anthropic", "bedrock", "gemini"])
def test_a_field_that_nobody_knows_is_refused_where_it_has_no_place(name: str) -> None:
    with pytest.raises(UnsupportedField) as refused:
        sent(name, {"colour": "blue"})
    assert refused.value.field == "colour"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_what_asks_for_nothing_is_no_reason_to_refuse(name: str) -> None:
    neutral = {
        "n": 1, "logit_bias": {}, "logprobs": False, "frequency_penalty": 0.0, "store": False, "seed": None,
        "tools": [], "modalities": ["text"], "response_format": {"type": "text"}, "service_tier": "auto",
    }  # fmt: skip
    sent(name, neutral)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_an_operation_that_is_not_offered_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedOperation, match="does not serve"):
        DIALECTS[name].request("fine_tuning", b"{}", PLACE, CREDENTIALS, now_s=0.0)


def test_an_unknown_dialect_names_those_there_are() -> None:
    with pytest.raises(NotFound, match="anthropic"):
        dialect("acme")


def test_secrets_do_not_show() -> None:
    assert "sesame" not in repr(Credentials("sesame", {"aws_secret_access_key": "sesame"}))
