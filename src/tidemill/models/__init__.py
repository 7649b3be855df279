"""Models: the catalogue, pulled weights, the local runtime, the client of any OpenAI-compatible server, templates.

Importing this package loads no model library: names that need one are imported when first used. The runtime is a
program, ``python -m tidemill.models.runtime``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidemill.models.catalogue import (
        BUILT_IN,
        MINILM,
        SMOLLM2,
        Catalogue,
        FolderSource,
        HubSource,
        ModelEntry,
        ModelKind,
        ProviderSource,
        Quantization,
        SourceFile,
        WheelSource,
    )
    from tidemill.models.embedder import LocalEmbedder
    from tidemill.models.pulling import Progress, model_files, prepare, pull
    from tidemill.models.templates import render, render_messages, template_variables
    from tidemill.models.transport import Embed, EventDecoder, ModelClient, UpstreamError

_HOME = {
    "BUILT_IN": "catalogue",
    "Catalogue": "catalogue",
    "Embed": "transport",
    "EventDecoder": "transport",
    "FolderSource": "catalogue",
    "HubSource": "catalogue",
    "LocalEmbedder": "embedder",
    "MINILM": "catalogue",
    "ModelClient": "transport",
    "ModelEntry": "catalogue",
    "ModelKind": "catalogue",
    "Progress": "pulling",
    "ProviderSource": "catalogue",
    "Quantization": "catalogue",
    "SMOLLM2": "catalogue",
    "SourceFile": "catalogue",
    "UpstreamError": "transport",
    "WheelSource": "catalogue",
    "model_files": "pulling",
    "prepare": "pulling",
    "pull": "pulling",
    "render": "templates",
    "render_messages": "templates",
    "template_variables": "templates",
}

__all__ = [
    "BUILT_IN",
    "MINILM",
    "SMOLLM2",
    "Catalogue",
    "Embed",
    "EventDecoder",
    "FolderSource",
    "HubSource",
    "LocalEmbedder",
    "ModelClient",
    "ModelEntry",
    "ModelKind",
    "Progress",
    "ProviderSource",
    "Quantization",
    "SourceFile",
    "UpstreamError",
    "WheelSource",
    "model_files",
    "prepare",
    "pull",
    "render",
    "render_messages",
    "template_variables",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
