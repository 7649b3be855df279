"""Serving: a release run as an application, in process or as an OpenAI-compatible HTTP upstream.

``python -m tidemill.serving`` is the process; ``tidemill.serving.testing`` has a scripted model server for tests.
"""

from tidemill.serving.answers import AppAnswer, RetrievalOptions, Usage, build_context, cite
from tidemill.serving.application import Application, LoadedRelease, ModelServer
from tidemill.serving.loading import load_release
from tidemill.serving.spans import TraceContext

__all__ = [
    "AppAnswer",
    "Application",
    "LoadedRelease",
    "ModelServer",
    "RetrievalOptions",
    "TraceContext",
    "Usage",
    "build_context",
    "cite",
    "load_release",
]
