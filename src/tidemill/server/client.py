"""A client of the control plane's API for the command line: standard library only, so that it is light."""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import ProxyHandler, Request, build_opener

from tidemill.kernel import Conflict, InvalidInput, NotFound, Unavailable, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FAMILIES: Final[dict[int, type[UserError]]] = {404: NotFound, 409: Conflict, 503: Unavailable}
_PATIENCE_S: Final = 30.0
#: A proxy named by the environment must not see what goes to this machine itself, the token least of all.
_direct: Final = build_opener(ProxyHandler({}))


class ControlClient:
    """Speaks to a running control plane.

    Args:
        base_url: e.g. ``http://127.0.0.1:8400``.
        token_file: where the local token stands.
    """

    def __init__(self, base_url: str, token_file: Path) -> None:
        self._base_url = base_url
        self._token_file = token_file

    def get(self, path: str, **query: str | int | list[str] | None) -> Any:
        """Ask for a JSON document. ``None`` values are left out.

        Raises:
            Unavailable: no control plane answers there.
            UserError: what the control plane says is wrong.
        """
        given = {name: value for name, value in query.items() if value is not None}
        suffix = "?" + urlencode(given, doseq=True) if given else ""
        return self._call(Request(self._base_url + quote(path, safe="/:@%") + suffix))  # noqa: S310 - our own http:// API

    def get_path(self, path: str) -> Any:
        """Ask for a path that already carries its query. Raises as ``get``."""
        return self._call(Request(self._base_url + path))  # noqa: S310 - our own http:// API

    def post(self, path: str, body: Mapping[str, Any], *, patience_s: float = _PATIENCE_S) -> Any:
        """Send a JSON document and return the answer; wait so long for it. Raises as ``get``."""
        data = json.dumps(body).encode()
        request = Request(self._base_url + quote(path), data, {"Content-Type": "application/json"})  # noqa: S310 - our own http:// API
        return self._call(request, patience_s)

    def _call(self, request: Request, patience_s: float = _PATIENCE_S) -> Any:
        try:
            request.add_header("Authorization", f"Bearer {self._token_file.read_text()}")
            with _direct.open(request, timeout=patience_s) as answer:
                return json.load(answer)
        except HTTPError as error:
            with error:
                raise _refusal(error) from None
        except (OSError, HTTPException, ValueError):  # not there, gone in the middle, or something else on the port
            raise Unavailable(f"No control plane answers at {self._base_url}.", hint="Start it: tidemill up") from None


def _refusal(error: HTTPError) -> UserError:
    try:
        problem = json.load(error)["error"]
        message, hint = str(problem["message"]), problem["hint"]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        message, hint = f"The control plane answered {error.code}.", None
    default = Unavailable if error.code >= 500 else InvalidInput
    return _FAMILIES.get(error.code, default)(message, hint=hint)
