"""Tidemill: the whole life cycle of an LLM application in one package."""

__version__ = "0.1.0"

__all__ = ["__version__"]
