import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput
from tidemill.models import render, render_messages, template_variables


def test_values_and_dotted_names() -> None:
    assert render("{{a}} {{ b.c }}!", {"a": 1, "b": {"c": "x"}}) == "1 x!"


def test_sections_repeat_over_lists_and_see_outer_names() -> None:
    text = "{{#passages}}\n[{{n}}] {{text}} ({{lang}})\n{{/passages}}\nQ: {{question}}"
    passages = [{"n": 1, "text": "one"}, {"n": 2, "text": "two"}]
    rendered = render(text, {"passages": passages, "question": "why?", "lang": "en"})
    assert rendered == "[1] one (en)\n[2] two (en)\nQ: why?"


def test_lists_of_plain_items_inverted_sections_and_comments() -> None:
    assert render("{{#xs}}<{{.}}>{{/xs}}", {"xs": ["a", "b"]}) == "<a><b>"
    assert render("{{^xs}}none{{/xs}}", {"xs": []}) == "none"
    assert render("{{^xs}}none{{/xs}}", {"xs": [0]}) == ""
    assert render("a\n{{! note }}\nb", {}) == "a\nb"
    assert render("{{#flag}}yes{{/flag}}", {"flag": True}) == "yes"
    assert render("{{#user}}{{name}}{{/user}}", {"user": {"name": "Ida"}}) == "Ida"
    assert render("{{x}}", {"x": None}) == ""


@given(st.text())
def test_a_value_is_never_read_as_a_template(value: str) -> None:
    assert render("<{{x}}>", {"x": value + "{{y}}{{#x}}"}) == f"<{value}{{{{y}}}}{{{{#x}}}}>"


@given(st.text(alphabet=st.characters(exclude_characters="{}")))
def test_text_without_tags_stays_as_it_is(text: str) -> None:
    assert render(text, {}) == text


@given(st.text(alphabet="ab {}#^/!.\n"))
def test_any_text_renders_or_is_refused(text: str) -> None:
    try:
        render(text, {"a": "1", "b": ["2"]})
    except InvalidInput:
        return


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{{#a}}x", "never closed"),
        ("x{{/a}}", "no section is open"),
        ("{{#a}}\n{{/b}}", "line 2"),
        ("{{a b}}", "does not hold a name"),
        ("{{nobody}}", "no value for 'nobody'; the values given are a"),
        ("{{a}}", "is a list"),
        ("{{a.b.c}}", "no value for 'a.b.c'"),
    ],
)
def test_mistakes_are_told(text: str, part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        render(text, {"a": []})


def test_variables_are_what_the_caller_must_give() -> None:
    text = "{{q}}{{#passages}}{{title}}{{/passages}}{{^passages}}{{fallback}}{{/passages}}{{a.b}}"
    assert template_variables(text) == {"q", "passages", "fallback", "a"}


def test_messages_keep_their_other_keys() -> None:
    messages = [{"role": "system", "content": "Hi {{x}}", "name": "n"}]
    assert render_messages(messages, {"x": "y"}) == [{"role": "system", "content": "Hi y", "name": "n"}]
