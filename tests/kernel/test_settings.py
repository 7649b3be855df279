from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.kernel import NotFound, SettingsError
from tidemill.kernel.settings import load_settings, parse_settings, resolve_secret, settings_schema


def write(folder: Path, text: str) -> Path:
    (folder / "tidemill.yaml").write_text(text)
    return folder


def test_defaults_and_paths(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "project: helpdesk\n"), {})
    assert settings.ledger_url == f"sqlite:///{tmp_path}/.tidemill/ledger.db"
    assert settings.scope.project == "helpdesk"
    assert settings.gateway.port == 8410


def test_the_environment_wins(tmp_path: Path) -> None:
    write(tmp_path, "project: helpdesk\ngateway: {port: 1}\n")
    settings = load_settings(tmp_path, {"TIDEMILL_GATEWAY__PORT": "9000", "TIDEMILL_TENANT": "acme", "PATH": "x"})
    assert (settings.gateway.port, settings.tenant) == (9000, "acme")


def test_variables_of_the_test_suite_are_not_settings(tmp_path: Path) -> None:
    load_settings(write(tmp_path, "project: helpdesk\n"), {"TIDEMILL_TEST_POSTGRES_URL": "x"})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("project: a\ngatway: {}\n", "no setting 'gatway'; did you mean 'gateway'"),
        ("project: a\ngateway: {prot: 1}\n", "'gateway.prot'; did you mean 'port'"),
        ("project: a\nendpoints: {e: {release: r, rolout: {}}}\n", "did you mean 'rollout'"),
        ("project: a\nendpoints: {e: {release: r, rollout: {margin: {}}}}\n", "did you mean 'margins'"),
        ("tenant: a\n", "'project' is missing"),
        ("project: a\ngateway: {port: 70000}\n", "'gateway.port' is 70000"),
        ("- a\n", "holds no settings"),
        ("project: [\n", "is not YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(SettingsError, match=part):
        load_settings(write(tmp_path, text), {})


def test_unknown_variable_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "project: a\n")
    with pytest.raises(SettingsError, match="did you mean 'port'"):
        load_settings(tmp_path, {"TIDEMILL_GATEWAY__PROT": "1"})


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="tidemill init"):
        load_settings(tmp_path, {})


def test_secrets_are_references(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    assert resolve_secret("env:KEY", {"KEY": "v"}) == "v"
    assert resolve_secret(f"file:{tmp_path / 'key'}") == "s3cret"
    with pytest.raises(SettingsError, match="in place"):
        resolve_secret("sk-1234", {})
    with pytest.raises(SettingsError, match="export KEY"):
        resolve_secret("env:KEY", {})


def test_empty_sections_are_sections(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "project: a\nprompts:\n"), {}).prompts == {}


def test_schema_is_closed_and_described() -> None:
    schema = settings_schema()
    assert schema["additionalProperties"] is False
    for name, section in {"Settings": schema, **schema["$defs"]}.items():
        for key, field in section.get("properties", {}).items():  # enumerations have none
            assert field.get("description") or "$ref" in field, f"{name}.{key} is not described"


def test_settings_are_immutable() -> None:
    settings = parse_settings({"project": "a"})
    with pytest.raises(ValueError, match="frozen"):
        settings.gateway.port = 1  # type: ignore[misc]


def test_the_gateways_base_url_says_whether_it_speaks_tls(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "project: helpdesk\n"), {}).gateway.base_url == "http://127.0.0.1:8410/v1"
    write(tmp_path, "project: helpdesk\ngateway: {tls_certificate: c.pem, tls_key: k.pem}\n")
    assert load_settings(tmp_path, {}).gateway.base_url == "https://127.0.0.1:8410/v1"
