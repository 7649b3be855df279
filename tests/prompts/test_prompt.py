"""Prompts: what is rendered, what is refused, what changed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput
from tidemill.prompts import Example, Message, Prompt, diff, render

ANSWER = Prompt(
    name="answer",
    messages=(
        Message("system", "Answer from the text."),
        Message("user", "{{context}}\n\nQuestion: {{question}}"),
    ),
    examples=(Example("Who?", "Ada.", "Ada wrote it."),),
    config={"no_answer": "I do not know."},
)


def test_examples_become_turns_made_with_the_users_template() -> None:
    messages = render(ANSWER, {"context": "Text.", "question": "What?"})
    assert messages == [
        {"role": "system", "content": "Answer from the text."},
        {"role": "user", "content": "Ada wrote it.\n\nQuestion: Who?"},
        {"role": "assistant", "content": "Ada."},
        {"role": "user", "content": "Text.\n\nQuestion: What?"},
    ]


def test_examples_stand_where_a_template_wants_them() -> None:
    system = Message("system", "{{#examples}}Q: {{question}} A: {{answer}}\n{{/examples}}")
    prompt = Prompt(name="p", messages=(system, Message("user", "{{question}}")), examples=ANSWER.examples)
    assert render(prompt, {"question": "What?"}) == [
        {"role": "system", "content": "Q: Who? A: Ada.\n"},
        {"role": "user", "content": "What?"},
    ]
    assert prompt.variables == {"question"}


@given(st.text(st.sampled_from("{}#/^! contexquesi\n")))
def test_no_text_of_a_user_opens_a_tag(text: str) -> None:
    messages = render(ANSWER, {"context": "SECRET", "question": text})
    assert messages[-1]["content"] == f"SECRET\n\nQuestion: {text}"


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(InvalidInput, match="'context'"):
        render(ANSWER, {"question": "x"})


def test_prompts_survive_writing() -> None:
    assert Prompt.from_json("answer", ANSWER.as_json()) == ANSWER
    assert ANSWER.variables == {"context", "question"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"messages": []}, "last message"),
        ({"messages": [{"role": "system", "content": "x"}]}, "last message"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "wizard"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": "{{#a}}"}]}, "never closed"),
        ({"messages": [{"role": "user", "content": "x"}], "exmples": []}, "exmples"),
        ({}, "messages are missing"),
    ],
)
def test_what_is_not_a_prompt_is_refused(value: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Prompt.from_json("p", value)


def test_diff_shows_the_lines_that_changed() -> None:
    value = ANSWER.as_json()
    value["messages"][0]["content"] = "Answer in one line."
    value["config"] = {"no_answer": "No."}
    changed = Prompt.from_json("answer", value)
    lines = diff(ANSWER, changed).splitlines()
    assert "-Answer from the text." in lines
    assert "+Answer in one line." in lines
    assert "+no_answer = 'No.'" in lines
    assert diff(ANSWER, ANSWER) == ""
