"""Which dialects there are. A dialect's module is imported when a target first needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Final

from tidemill.kernel import NotFound
from tidemill.models.providers.dialect import Dialect

PASS_THROUGH: Final = "openai"
"""The word for a server that speaks OpenAI's own format: bytes pass unchanged, and no dialect is needed."""

# word -> module below this package, whose DIALECTS holds it
_MODULES: Final[dict[str, str]] = {
    "anthropic": "anthropic",
    "azure": "azure",
    "bedrock": "bedrock",
    "gemini": "gemini",
    "mistral": "mistral",
    "ollama": "compatible",
    "openai": "compatible",
    "vllm": "compatible",
}


class _Dialects(Mapping[str, Dialect]):
    """A mapping that imports what is asked for."""

    def __init__(self) -> None:
        self._loaded: dict[str, Dialect] = {}

    def __getitem__(self, name: str) -> Dialect:
        found = self._loaded.get(name)
        if found is None:
            module = import_module(f"tidemill.models.providers.{_MODULES[name]}")
            found = self._loaded[name] = module.DIALECTS[name]
        return found

    def __contains__(self, name: object) -> bool:
        return name in _MODULES

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


DIALECTS: Final[Mapping[str, Dialect]] = _Dialects()
"""Word -> dialect, each imported when first taken."""


def dialect(name: str) -> Dialect:
    """The dialect of that name.

    Raises:
        NotFound: there is none; the message lists those there are.
    """
    if name not in DIALECTS:
        raise NotFound(f"There is no provider dialect '{name}'.", hint="Use one of: " + ", ".join(DIALECTS) + ".")
    return DIALECTS[name]
