"""Azure OpenAI: OpenAI's format under other paths, with the key in another header.

Two forms of the API (Microsoft's reference "Azure OpenAI in Azure AI Foundry Models", 2026-11):

- dated, with the option ``api_version``: ``/openai/deployments/{deployment}/chat/completions?api-version=2024-10-21``;
- ``v1``, without it: base URL ``https://{resource}.openai.azure.com/openai/v1``, the deployment in ``model``.

Options of a target: ``api_version``, ``deployment`` (the target's model when left out), ``auth`` (``api-key``, or
``bearer`` for a token of Entra ID) and ``leave_out``.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import msgspec

from tidemill.models.providers.compatible import MULTIPART, PATHS, CompatibleDialect, chat_table
from tidemill.models.providers.dialect import Credentials, Place, ProviderRequest
from tidemill.models.providers.pivot import check_operation

NAME: Final = "azure"
FIELDS: Final = chat_table(NAME, {"model": "the deployment: in the path, or in `model` of the v1 API"}, {})


class AzureDialect(CompatibleDialect):
    """OpenAI's models at Azure."""

    __slots__ = ()

    def request(
        self,
        operation: str,
        body: bytes,
        place: Place,
        credentials: Credentials,
        *,
        now_s: float,  # noqa: ARG002 - the interface's; nothing is signed with a time here
    ) -> ProviderRequest:
        """Put the deployment into the path and the key into its header; see ``Dialect.request``."""
        check_operation(self, operation)
        headers = _authorisation(place, credentials)
        path = _path(operation, place)
        if operation in MULTIPART:
            return ProviderRequest(path, headers, body)
        fields = self.fields(operation, body, place)
        fields["model"] = msgspec.Raw(msgspec.json.encode(_deployment(place)))
        return ProviderRequest(path, (("content-type", "application/json"), *headers), msgspec.json.encode(fields))


def _deployment(place: Place) -> str:
    return place.options.get("deployment") or place.model


def _authorisation(place: Place, credentials: Credentials) -> tuple[tuple[str, str], ...]:
    if not credentials.api_key:
        return ()
    if place.options.get("auth") == "bearer":
        return (("authorization", f"Bearer {credentials.api_key}"),)
    return (("api-key", credentials.api_key),)


def _path(operation: str, place: Place) -> str:
    version = place.options.get("api_version")
    if not version:
        return place.base_path + PATHS[operation]
    root = place.base_path if place.base_path.endswith("/openai") else place.base_path + "/openai"
    if operation != "responses":  # the only one that is not below a deployment
        root += f"/deployments/{quote(_deployment(place), safe='')}"
    return f"{root}{PATHS[operation]}?api-version={quote(version, safe='')}"


DIALECTS: Final = {NAME: AzureDialect(NAME, frozenset(PATHS) - {"moderation"})}
