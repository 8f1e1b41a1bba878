"""Chat templates run in a sandbox and in a process with limits, with what Hugging Face gives them."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from time import monotonic

import pytest

from cluster.text import ChatTemplate, ChatTemplateError

_MESSAGES = [{"role": "user", "content": "hi"}]


def _children() -> list[int]:
    """The processes that run templates for this one."""
    me = os.getpid()
    found = []
    for task in Path(f"/proc/{me}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"template_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


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
    "source",
    [
        "{% for m in %}",
        "{{ messages[0].content.missing.deeper }}",
        "{{ ''.__class__.__mro__[1].x() }}",
        "{{ raise_exception.__globals__['os'].environ.PATH }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ '{0.__class__.__mro__[1].__subclasses__}'.format('').x }}",
        "{{ messages.append(1) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 'x' * 10 ** 10 }}",
        "{% set a = 'x' * 2 ** 29 %}{{ a + a }}",
        "{% set a = 'x' * 2 ** 24 %}{{ a }}{{ a }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% if 1 %}" * 1000 + "{% endif %}" * 1000,
        "{{ " + "[" * 100_000,
    ],
)
def test_a_broken_or_hostile_template_is_an_error_of_the_template(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source, {}).render(_MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 7 ** (10 ** 9) }}",  # computed while it is compiled
        "{% set r = range(90000) %}" + "{% for _ in r %}" * 4 + "{% endfor %}" * 4,
        "{{ (messages | length + 6) ** (10 ** 9) }}",  # one operation, from which the interpreter does not come back
    ],
)
def test_what_never_ends_is_ended(source: str) -> None:
    began = monotonic()
    with pytest.raises(ChatTemplateError, match=r"took more than 2 s"):
        ChatTemplate(source, {}).render(_MESSAGES)
    assert monotonic() - began < 20


def test_the_next_conversation_does_not_suffer_from_one_that_was_ended() -> None:
    template = ChatTemplate(
        "{% if messages[0].content == 'bad' %}{{ (messages | length + 6) ** (10 ** 9) }}{% endif %}ok", {}
    )
    with pytest.raises(ChatTemplateError):
        template.render([{"role": "user", "content": "bad"}])
    assert template.render(_MESSAGES) == "ok"


def test_threads_share_a_template_and_long_conversations_pass() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    texts = [f"{number}é😀" * 40_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: template.render([{"role": "user", "content": text}]), texts)) == texts


def test_its_process_sees_no_secrets_and_goes_with_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHALANX_SECRET", "s3cret")
    before = set(_children())
    template = ChatTemplate("x", {})
    (process,) = set(_children()) - before
    assert b"s3cret" not in Path(f"/proc/{process}/environ").read_bytes()
    del template
    gc.collect()
    assert process not in _children()


def test_dates_and_json() -> None:
    assert ChatTemplate("{{ messages | tojson }}", {}).render(_MESSAGES) == '[{"role": "user", "content": "hi"}]'
    template = ChatTemplate("{{ strftime_now('%Y') }}", {})
    assert len(template.render(_MESSAGES)) == 4
    assert template.render(_MESSAGES, datetime(1999, 1, 1)) == "1999"
