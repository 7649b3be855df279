"""Prompts: versioned message templates with worked examples, and the choice of those examples."""

from tidemill.prompts.examples import choose_examples
from tidemill.prompts.prompt import Example, Message, Prompt, diff, render
from tidemill.prompts.registry import load_prompt, publish_prompt

__all__ = ["Example", "Message", "Prompt", "choose_examples", "diff", "load_prompt", "publish_prompt", "render"]
