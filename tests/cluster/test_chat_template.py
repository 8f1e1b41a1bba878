"""Chat templates run in a sandbox, with what Hugging Face gives them."""

from __future__ import annotations

import pytest

from cluster.text import ChatTemplate, ChatTemplateError

_MESSAGES = [{"role": "user", "content": "hi"}]


def test_special_tokens_and_the_generation_prompt_are_there() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
        {"bos_token": "<s>"},
    )
    assert template.render(_MESSAGES) == "<s>hi>"


def test_a_refusal_reaches_the_caller() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        template.render(_MESSAGES)


@pytest.mark.parametrize(
    "source", ["{% for m in %}", "{{ messages[0].content.missing.deeper }}", "{{ ''.__class__.__mro__[1].x() }}"]
)
def test_a_broken_or_hostile_template_is_an_error_of_the_template(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source, {}).render(_MESSAGES)


def test_dates_and_json() -> None:
    assert ChatTemplate("{{ messages | tojson }}", {}).render(_MESSAGES) == '[{"role": "user", "content": "hi"}]'
    assert len(ChatTemplate("{{ strftime_now('%Y') }}", {}).render(_MESSAGES)) == 4
