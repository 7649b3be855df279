"""Guardrails of another package: loaded by the name of their factory, or refused with a sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.gateway.conftest import KEY, RunningGateway, target
from tidemill.gateway.backing_options import BackingOptions, GuardrailOptions
from tidemill.gateway.guardrails import Guardrails, load_guardrails
from tidemill.gateway.testing import ScriptedUpstream
from tidemill.gateway.worker import Worker
from tidemill.kernel import Route, RoutePolicy, SettingsError

Start = Callable[..., RunningGateway]
MODULE = """
from tidemill.checks import Finding
from tidemill.gateway.guardrails import GuardrailPolicy, OnFinding, Stage, TextGuardrail


def find_code_name(text):
    at = text.find("Bluebird")
    return (Finding(at, at + 8, "code_name"),) if at >= 0 else ()


def guardrails():
    return {"code-names": TextGuardrail("code-names", find_code_name, on_finding=OnFinding.MASK)}


class Half:
    name, fingerprint = "half", "1"
    stages = frozenset()


def wrong_name():
    return {"other": guardrails()["code-names"]}


def half():
    return {"half": Half()}


class Mute:
    name, fingerprint, policy = "mute", "1", GuardrailPolicy()
    stages = frozenset({Stage.STREAM})


def mute():
    return {"mute": Mute()}


def a_list():
    return [guardrails()["code-names"]]


def broken():
    raise RuntimeError("no licence")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "own_guardrails.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("own_guardrails", None)
    sys.path[:] = [one for one in sys.path if one != str(tmp_path)]


def test_a_projects_own_guardrail_acts_on_traffic(start: Start, upstream: ScriptedUpstream, folder: Path) -> None:
    backing = BackingOptions(guardrails=GuardrailOptions(factory="own_guardrails:guardrails", folder=str(folder)))
    assert BackingOptions.decode(backing.encode()) == backing
    route = Route(
        endpoint="desk",
        tenant="default",
        releases=(target(upstream.url),),
        policy=RoutePolicy(guardrails=("code-names", "credentials")),
    )
    gateway = start(route, backing=backing)
    with openai.OpenAI(base_url=gateway.url, api_key=KEY, max_retries=0) as client:
        client.chat.completions.create(model="desk", messages=[{"role": "user", "content": "When is Bluebird due?"}])
    assert upstream.seen[-1].body["messages"] == [{"role": "user", "content": "When is <code_name> due?"}]
    assert gateway.records().span().attributes["tidemill.guardrail.code-names"] == "rewritten"


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("nowhere_at_all:guardrails", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("own_guardrails", "not written as 'module:factory'"),
        ("own_guardrails:nothing", "cannot be loaded: AttributeError"),
        ("own_guardrails:broken", "cannot be loaded: RuntimeError: no licence"),
        ("own_guardrails:a_list", "no mapping of names to guardrails: list"),
        ("own_guardrails:wrong_name", "'other' of 'own_guardrails:wrong_name' does not have that name"),
        ("own_guardrails:mute", "'mute' of 'own_guardrails:mute' has no method 'on_stream'"),
        ("own_guardrails:half", "'half' of 'own_guardrails:half' has no GuardrailPolicy"),
    ],
)
def test_what_is_no_registry_is_refused_with_a_sentence(folder: Path, factory: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_guardrails(factory, folder)
    assert said in str(refused.value)
    assert "gateway.guardrails" in str(refused.value)


def test_a_worker_does_not_start_without_its_guardrails(start: Start, folder: Path) -> None:
    options = start().options
    source = GuardrailOptions(factory="own_guardrails:broken", folder=str(folder))
    broken = type(options)(
        project="demo",
        tenant="default",
        snapshot_path=options.snapshot_path,
        segments_folder=options.segments_folder,
        state_folder=options.state_folder,
        backing=BackingOptions(guardrails=source),
    )
    with pytest.raises(SettingsError, match="no licence"):
        Worker(broken).open(loopback=True)


def test_a_library_is_never_shadowed_by_a_file_of_the_project(folder: Path) -> None:
    (folder / "json.py").write_text("raise RuntimeError('taken')")
    load_guardrails("own_guardrails:guardrails", folder)
    assert sys.path[-1] == str(folder)


def test_its_names_stand_beside_those_that_are_built_in(folder: Path) -> None:
    known = Guardrails(load_guardrails("own_guardrails:guardrails", folder))
    assert {"code-names", "pii", "credentials"} <= set(known.names)
