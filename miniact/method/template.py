"""The model's own chat template: from messages to the text and the tokens that it was trained on.

Templates differ in what they ask of their caller. Some switch thinking on and off, under one of two
names; some print today's date; some refuse a system message. Here each gets what it expects, so
that prompts.py need not know. A model without a template reads the text of the messages, behind the
token that its tokenizer begins every text with.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, NoReturn

from jinja2 import TemplateError

from miniact import UserError

Message = dict[str, Any]

SWITCHES = ("enable_thinking", "thinking")  # Qwen, GLM, SmolLM3 …; DeepSeek, Granite, Kimi …
# What a template is told when it asks for the date: a run that is resumed, or repeated, on another
# day must write the same prompts.
TODAY = datetime.date(2026, 1, 1)
_PINNED = (  # hides transformers' strftime_now; trim_blocks takes the newline behind it
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f".replace('%{code}', '{TODAY:%{code}}')" for code in "aAbBdejHIMSpmyY")
    + " }}{% endmacro %}\n"
)


class Template:
    """Renders messages for one tokenizer. Raises UserError for a template that cannot be used.

    exists: whether the tokenizer has a chat template
    switch: the name under which it does so, or ""
    switches_thinking: whether it can ask for a reply with, and for one without, a thought
    opens_thought: whether a prompt that asks for a thought itself ends in <think>
    tags_thought: whether this model writes its thoughts as <think>…</think>
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.exists = bool(getattr(tokenizer, "chat_template", None))
        self.switches_thinking = self.opens_thought = self.tags_thought = False
        self.switch = ""
        if self.exists:
            # a template ignores what it does not know, so a switch is what makes a difference
            working = (s for s in SWITCHES if self._probe(s, True) != self._probe(s, False))
            self.switch = next(working, "")
            self.switches_thinking = bool(self.switch)
            self.opens_thought = self._probe(self.switch, True).rstrip().endswith("<think>")
            mentions = "<think>" in str(tokenizer.chat_template)
            self.tags_thought = self.opens_thought or (self.switches_thinking and mentions)

    def render(
        self,
        messages: Sequence[Message],
        thinking: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        generation: bool = True,
    ) -> str:
        """The text up to where the reply to the last message starts; without `generation`, up to
        the end of the last message."""
        if not self.exists:
            return "\n\n".join([*(message["content"] for message in messages), "Answer:"])
        try:
            return self._apply(messages, thinking, tools, generation)
        except (TemplateError, TypeError, ValueError) as error:
            if messages[0]["role"] == "system" and len(messages) > 1:  # Gemma 2 has no such role
                return self.render(_without_system(messages), thinking, tools, generation)
            roles = ", ".join(message["role"] for message in messages)
            self._refuse(f"refuses messages of {roles} ({error})")

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a rendered text. A template writes the first token (BOS) itself."""
        tokens = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return tokens if self.exists else (*_first_tokens(self.tokenizer), *tokens)

    def _probe(self, switch: str, thinking: bool) -> str:
        """A short prompt, with this switch set."""
        self.switch = switch
        text = self.render([{"role": "user", "content": "hello"}], thinking)
        if "hello" not in text:  # it wants a list of parts: text, image, …
            self._refuse("leaves out the text of a message that is a plain string")
        return text

    def _refuse(self, why: str) -> NoReturn:
        raise UserError(
            f"model.path: the chat template of {self.tokenizer.name_or_path!r} {why}; set another "
            "one as chat_template in a copy of its tokenizer"
        ) from None

    def _apply(
        self,
        messages: Sequence[Message],
        thinking: bool,
        tools: Sequence[dict[str, Any]] | None,
        generation: bool,
    ) -> str:
        source = self.tokenizer.get_chat_template(None, tools)
        return self.tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            chat_template=_PINNED + source if "strftime_now" in source else source,
            tokenize=False,
            add_generation_prompt=generation,
            **({self.switch: thinking} if self.switch else {}),
        )


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The same messages, the system's text at the head of the first of the others."""
    system, first, *rest = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _first_tokens(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts in front of every text: BOS, or nothing."""
    bare, whole = (tokenizer("a", add_special_tokens=s)["input_ids"] for s in (False, True))
    ways = (n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
    return tuple(whole[: next(ways, 0)])
