"""Tidemill: the whole life cycle of an LLM application in one package.

``import tidemill as tm`` traces any Python program: ``tm.configure()``, ``@tm.trace``, ``with tm.span(…)``,
``tm.score(…)``. They are loaded when they are first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidemill.tm import configure, current, flush, score, span, trace

__version__ = "0.1.0"

__all__ = ["__version__", "configure", "current", "flush", "score", "span", "trace"]


def __getattr__(name: str) -> Any:
    """Load the tracing part when it is first named."""
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'tidemill' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module("tidemill.tm"), name)
