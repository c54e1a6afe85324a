"""Chat templates: each gets what it expects, on any day."""

from __future__ import annotations

import datetime

import pytest
from tokenizers.processors import TemplateProcessing
from transformers.utils import chat_template_utils

from miniact import UserError
from miniact.method.template import Template

USER = [{"role": "user", "content": "hello"}]
SYSTEM = [{"role": "system", "content": "be brief"}, *USER]

# in the manner of the families named, as short as can be
DEEPSEEK = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    "[BOS]{% for m in messages %}<User>{{ m.content }}{% endfor %}<Assistant>"
    "{{ '<think>' if thinking else '</think>' }}"
)
GRANITE = (
    "{% if thinking %}<system>Write down how you think.{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)
DATED = (
    "{% if strftime_now is defined %}{% set now = strftime_now('%d %b %Y') %}"
    "{% else %}{% set now = '26 Jul 2024' %}{% endif %}"
    "{% set form = '%A, %-d %B' | replace('-', '') %}Today is {{ now }}, {{ strftime_now(form) }}."
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}<model>"
)
PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
TOOLS = "{% for t in tools or [] %}{{ t.name }};{% endfor %}{{ messages[0].content }}"


@pytest.fixture
def template(make_tokenizer):
    return lambda source: Template(make_tokenizer(source))


def test_a_switch_may_be_called_thinking(template):
    deepseek, granite = template(DEEPSEEK), template(GRANITE)
    assert deepseek.render(USER, thinking=True) == "[BOS]<User>hello<Assistant><think>"
    assert deepseek.render(USER) == "[BOS]<User>hello<Assistant></think>"
    assert granite.render(USER, True) == "<system>Write down how you think.<user>hello<assistant>"
    assert granite.render(USER) == "<user>hello<assistant>"
    assert deepseek.switches_thinking and granite.switches_thinking
    assert deepseek.opens_thought and deepseek.tags_thought
    assert not granite.opens_thought and not granite.tags_thought


def test_the_usual_switch(switch_tokenizer, tokenizer):
    switched, plain = Template(switch_tokenizer), Template(tokenizer)
    assert switched.switches_thinking and switched.tags_thought and not switched.opens_thought
    assert not plain.switches_thinking and not plain.tags_thought
    assert plain.render(USER, True) == plain.render(USER, False)


def test_a_date_is_the_same_on_every_day(template, monkeypatch):
    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 12, 24)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert template(DATED).render(USER) == "Today is 01 Jan 2026, Thursday, 01 January.hello"
    # so transformers itself would print, and the prompt would be another one tomorrow
    own = template(DATED).tokenizer.apply_chat_template(USER, tokenize=False)
    assert own == "Today is 24 Dec 2031, Wednesday, 24 December.hello"


def test_pinning_the_date_takes_nothing_from_the_template(template):
    source = "\n{{ messages[0].content }}{{ strftime_now('%Y') }}"
    assert template(source).render(USER) == "\nhello2026"


def test_a_refused_system_message_goes_to_the_head_of_the_users(template):
    assert template(NO_SYSTEM).render(SYSTEM) == "<user>be brief\n\nhello<model>"


def test_what_a_template_refuses_is_said_in_a_line(template):
    with pytest.raises(UserError, match=r"^model\.path: .* refuses messages of user, user \(take"):
        template(NO_SYSTEM).render([*USER, *USER])


def test_a_template_that_drops_the_text_is_refused(template):
    with pytest.raises(UserError, match="leaves out the text of a message"):
        template(PARTS)


def test_tools_are_shown(template):
    assert template(TOOLS).render(USER, tools=[{"name": "look"}, {"name": "go"}]) == "look;go;hello"
    assert template(TOOLS).render(USER) == "hello"


def test_without_a_template_bos_stands_where_the_tokenizer_puts_it(make_tokenizer):
    tokenizer = make_tokenizer("", control=("<s>",))
    bos = tokenizer.convert_tokens_to_ids("<s>")
    bare = Template(tokenizer).encode("hello")
    assert bare == tuple(tokenizer("hello")["input_ids"]) and bos not in bare
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|im_end|>", special_tokens=[("<s>", bos), ("<|im_end|>", 257)]
    )
    assert Template(tokenizer).encode("hello") == (bos, *bare)  # and no end token behind it
    tokenizer.chat_template = "<s>{{ messages[0].content }}"
    assert Template(tokenizer).encode("<s>hello") == (bos, *bare)  # only once


def test_without_a_template_messages_are_plain_text(template):
    assert template("").render(SYSTEM) == "be brief\n\nhello\n\nAnswer:"
