"""The command line. ``main`` is the console script; each command is in its own module, imported when called."""

from tidemill.cli.entry import main

__all__ = ["main"]
