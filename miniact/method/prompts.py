"""States and pairs → prompts, replies → actions and choices.

An action prompt shows s_i and asks for the next action. A critic prompt shows s_i and the candidate
actions in a given order, and asks which is better. A reflection prompt (Early Experience) shows
what each action led to as well, and asks why the expert's is better. All go through the model's own
chat template.

    tags form    reasoning … <action>go to shelf 1</action>      reasoning … <choice>2</choice>
    plain form   go to shelf 1                                   2  (or the chosen action itself)
    chat form    the turns of the dialogue, and tool calls, in the template's own form: chat.py

Text from the environment is data: anything in it that looks like one of our tags or like one of the
tokenizer's control tokens is written with a backslash (`<\\choice>`), so it can end no turn and
start no answer; a line of it that begins like one of the prompt's own gets a backslash as well, so
that it can forge no turn. Only the sampled reply is ever parsed.
"""

from __future__ import annotations

import functools
import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from miniact import UserError
from miniact.config.sections import PromptConfig
from miniact.method.chat import Chat
from miniact.method.quoting import escape, escape_calls, unescape
from miniact.method.rewards import same_action
from miniact.method.template import Message, Template
from miniact.method.wording import Wording
from miniact.types import Sample, State


def _tagged(name: str, text: str) -> str:
    return f"<{name}>{escape(text)}</{name}>"


def _inside(name: str, reply: str) -> str | None:
    """The content of the one <name>…</name> after the reasoning; None for none or several."""
    if "</think>" in reply:
        reply = reply.rpartition("</think>")[2]
    elif "<think>" in reply:
        return None  # the reasoning never ended
    found = re.findall(rf"<{name}>((?:(?!</?{name}>).)*)</{name}>", reply, re.DOTALL)
    return unescape(found[0]) if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class Prompt:
    tokens: tuple[int, ...]
    dropped: int  # history turns that were left out to fit the limits


class Prompter:
    """Writes prompts for one tokenizer and reads the replies.

    Raises UserError when task and current observation alone exceed the limit, and for a wording
    that cannot be used.
    """

    def __init__(self, tokenizer: Any, config: PromptConfig) -> None:
        self.tokenizer, self.config, self.wording = tokenizer, config, Wording(config)
        self.template = Template(tokenizer)
        self.chat = Chat(self.template, self._harmless) if config.form == "chat" else None
        self._shorten = functools.lru_cache(maxsize=1024)(self._shorten_text)
        control = [t for t in tokenizer.get_added_vocab() if len(t.strip()) > 1]  # no runs of space
        # matches only the first character of a token, so that overlapping tokens are all found
        starts = [f"{re.escape(t[0])}(?={re.escape(t[1:])})" for t in sorted(control)]
        self._control = re.compile("|".join(starts)) if starts else None
        line_start = r"(?:\A|(?<=[\n\r\v\f\x85\u2028\u2029]))(?=\s*(?:{}))"
        self._line = re.compile(line_start.format("|".join(self.wording.heads())))
        # a text that ends like the start of one would join with what the template puts after it
        heads = sorted({re.escape(t[:n]) for t in control for n in range(1, len(t))})
        self._open_end = re.compile(rf"(?:{'|'.join(heads)})\Z") if heads else None

    @property
    def writes_tags(self) -> bool:
        """Whether the tokenizer has words for the tags; one of whole words may have none."""
        tags = "".join(f"<{name}></{name}>" for name in ("think", "action", "choice"))
        return self.tokenizer.unk_token_id not in self.tokenizer(tags)["input_ids"]

    def check_tags(self) -> None:
        """UserError for the form of tags with a tokenizer that cannot write them."""
        if self.config.form == "tags" and not self.writes_tags:
            raise UserError(
                "prompt.form: tags: this model's tokenizer cannot write <think>, <action> and "
                "<choice>; expected a model that can, or prompt.form=plain without thinking"
            )

    # ---- writing -------------------------------------------------------------------------------

    def action(self, state: State, thinking: bool = False) -> Prompt:
        """The prompt that asks for the next action in `state`."""
        return self._fit(state, self._ask_action(thinking), thinking)

    def sent(
        self, state: State, thinking: bool = False
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """(messages, tools) that a server must be sent to show the model the action prompt."""
        turns = len(state.history) + state.earlier - self.action(state, thinking).dropped
        messages = self._messages(self.shortened(state), turns, self._ask_action(thinking))
        return messages, self._tools(state)

    def critic(self, state: State, actions: Sequence[str], thinking: bool = False) -> Prompt:
        """The prompt that asks which of `actions` (in the order given) is better in `state`."""
        return self._fit(state, self._ask_choice(actions, thinking), thinking)

    def reflection(
        self, state: State, taken: tuple[str, str], others: Sequence[tuple[str, str]]
    ) -> Prompt:
        """The prompt that asks why `taken` is better: (action, what it led to), and so the others.

        Nothing in it names the expert or numbers an action, so that a reflection can be imitated
        by a model that will see neither.
        """
        return self._fit(state, self._ask_reflection(taken, others), thinking=False)

    def render_action(self, action: str) -> str:
        """The reply that stands for an action, without reasoning: the target of imitation."""
        if self.chat:
            return self.chat.render(action)
        return action if self.config.form == "plain" else _tagged("action", action)

    def render_choice(self, choice: int) -> str:
        """The reply that names the candidate at index `choice`, which is shown as choice + 1."""
        number = str(choice + 1)
        return number if self.config.form == "plain" else _tagged("choice", number)

    def render_thought(self, thought: str) -> str:
        """Reasoning as it stands before an answer, in the form in which this model thinks.

        Where the chat template knows thoughts: <think>…</think>; else the text itself. The empty
        thought is the one with which such templates switch thinking off.
        """
        thought = self._harmless(thought.strip())
        if self.template.tags_thought:
            opening = "" if self.template.opens_thought else "<think>\n"
            return f"{opening}{thought}\n</think>\n\n"
        return f"{thought}\n" if thought else ""

    def reply_tokens(self, text: str) -> tuple[int, ...]:
        """Tokens of a reply to imitate, the end token included: stopping is trained too.

        Control tokens in the text itself (from a foreign log, say) are spelled out, never made.
        """
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return (*ids, self.tokenizer.eos_token_id)

    def begin_tokens(self, text: str) -> tuple[int, ...]:
        """Tokens of the beginning of a reply that the model is to go on with."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    # ---- reading -------------------------------------------------------------------------------

    def parse_action(self, reply: str) -> str | None:
        """The action in a reply, exactly as written; None if the reply holds no single answer."""
        if self.chat:
            return self.chat.parse(reply)
        answer = reply if self.config.form == "plain" else _inside("action", reply)
        return answer if answer is not None and answer.strip() else None

    def action_in(self, answer: Sample) -> str | None:
        """The action in a sampled answer; one without tags that was cut off is none."""
        bare = self.config.form != "tags"
        return None if bare and answer.stop == "length" else self.parse_action(answer.text)

    def parse_choice(self, reply: str, actions: Sequence[str], rule: str = "words") -> int | None:
        """Index of the chosen candidate: named by its number or by its own text; None otherwise."""
        answer = reply if self.config.form == "plain" else _inside("choice", reply)
        if answer is None:
            return None
        numbers = {str(i + 1): i for i in range(len(actions))}
        if answer.strip() in numbers:
            return numbers[answer.strip()]
        same = [i for i, action in enumerate(actions) if same_action(action, answer, rule)]
        return same[0] if len(same) == 1 else None

    def parse_thought(self, reply: str) -> str | None:
        """The reasoning before the answer; None if it never came to an end."""
        thought, end, _ = reply.rpartition("</think>")
        if not end and not self.template.tags_thought and not self.chat:
            thought, end, _ = re.split("(<action>|<choice>|$)", reply, maxsplit=1)
        return thought.replace("<think>", "", 1).strip() if end else None

    def parse_reflection(self, reply: str) -> tuple[str, str] | None:
        """(the reasoning, the action that it ends in); None if the reply holds no single action."""
        action = _inside("action", reply)
        if action is None or not action.strip():
            return None
        return reply.rpartition("</think>")[2].partition("<action>")[0].strip(), action

    # ---- the words -----------------------------------------------------------------------------

    def quote(self, text: str) -> str:
        """Foreign text made harmless: it holds no tag of ours, no control token, and none of its
        lines begins like one of the prompt's: it can forge no turn."""
        return self._harmless(self._line.sub(r"\\", text))

    def _harmless(self, text: str) -> str:
        text = escape_calls(text) if self.config.form == "chat" else escape(text)
        if self._control:
            text = self._control.sub(lambda m: m[0] + "\\", text)
        if self._open_end and self._open_end.search(text):
            text += "\\"
        return text

    def shortened(self, state: State) -> State:
        """The state as it is shown with prompt.too_long: shorten. What happens to a text depends
        on nothing else, so that a prompt still goes on from the one before."""
        if self.config.too_long != "shorten" or not self.config.max_tokens:
            return state
        past = tuple((self._shorten(seen), action) for seen, action in state.history)
        task, seen = map(self._shorten, (state.task, state.observation))
        return replace(state, task=task, history=past, observation=seen)

    def _shorten_text(self, text: str) -> str:
        """A text of at most a quarter of a prompt: of a longer one, both ends and a mark."""
        most, keep, shown = self.config.max_tokens // 4, len(text), text
        while len(shown.encode()) > most:  # else it cannot have more tokens
            tokens = len(self.tokenizer(self.quote(shown), add_special_tokens=False)["input_ids"])
            if tokens <= most:
                break
            keep = int(0.95 * keep * most / tokens)
            head, tail = text[: keep - keep // 2], text[len(text) - keep // 2 :]
            # the tail begins no line, so that it cannot pass for another speaker's
            shown = f"{head}\n[… {len(text) - keep} characters are left out here …] {tail}"
            if not keep:
                break
        return shown

    def _ask_action(self, thinking: bool) -> str:
        if self.chat:  # it is simply the model's turn
            return ""
        return self.wording.fill("action, thinking" if thinking else "action")

    def _ask_choice(self, actions: Sequence[str], thinking: bool) -> str:
        lines = [
            self.wording.fill("candidate", number=i, action=self.quote(action))
            for i, action in enumerate(actions, start=1)
        ]
        section = "choice of two" if len(actions) == 2 else "choice of more"
        section += ", thinking" if thinking else ""
        return self.wording.fill(section, candidates="\n".join(lines))

    def _ask_reflection(self, taken: tuple[str, str], others: Sequence[tuple[str, str]]) -> str:
        first, *rest = (
            self.wording.fill("outcome", action=self.quote(action), outcome=self.quote(outcome))
            for action, outcome in (taken, *others)
        )
        action = self.quote(taken[0])
        return self.wording.fill("reflection", taken=first, others="\n".join(rest), action=action)

    def _body(self, state: State, turns: int, question: str) -> str:
        """Task, the last `turns` turns of history, observation; then what is asked.

        Each turn is written once and never rewritten, so the next state's prompt begins with this
        one up to its newest observation: backends compute what prompts share only once.
        """
        fill, quote = self.wording.fill, self.quote
        missing = len(state.history) - turns + state.earlier
        lines = [fill("task", task=quote(state.task))]
        lines += [fill("left out", count=missing)] if missing else []
        for observation, action in state.history[len(state.history) - turns :]:
            lines.append(fill("observation", observation=quote(observation)))
            lines.append(fill("action taken", action=quote(action)))
        lines.append(fill("observation", observation=quote(state.observation)))
        if self.config.show_admissible and state.admissible:
            lines.append(fill("admissible", actions=", ".join(map(quote, state.admissible))))
        return "\n".join([*lines, question] if question else lines)

    def _messages(self, state: State, turns: int, question: str) -> list[Message]:
        """The same as messages: one of the user, or in the form `chat` those of the dialogue."""
        if self.chat is None:
            return [{"role": "user", "content": self._body(state, turns, question)}]
        missing = len(state.history) - turns + state.earlier
        left_out = self.wording.fill("left out", count=missing) if missing else ""
        listed = state.admissible if self.config.show_admissible else None
        shown = self.wording.fill("admissible", actions=", ".join(listed)) if listed else ""
        asked = "\n".join(part for part in (shown, question) if part)
        return self.chat.messages(state, turns, left_out, asked)

    def _tools(self, state: State) -> list[dict[str, Any]] | None:
        """Definitions of tools for the template, if it is to show them."""
        return self.chat.tools(state) if self.chat and self.chat.own_tools else None

    def _fit(self, state: State, question: str, thinking: bool) -> Prompt:
        """As much of the newest history as the limits allow; it slides in blocks (`slide`)."""
        state = self.shortened(state)
        limit, past = self.config.max_tokens or math.inf, len(state.history)

        def shown(turns: int) -> tuple[int, ...]:
            messages = self._messages(state, turns, question)
            return self.template.encode(
                self.template.render(messages, thinking, self._tools(state))
            )

        most = min(past, self.config.history)
        tokens = shown(most)
        if len(tokens) > limit:  # the largest number of turns in [0, most) that fits
            if (shortest := len(shown(0))) > limit:
                raise UserError(
                    f"{state.id}: task and current observation alone take {shortest} tokens, more "
                    f"than prompt.max_tokens {limit}; raise it, or set "
                    "prompt.show_admissible: false"
                )
            most = bisect_left(range(1, most), True, key=lambda n: len(shown(n)) > limit)
        left_out = slide(past + state.earlier - most, most)
        turns = past + state.earlier - left_out
        return Prompt(tokens if turns == past and not left_out else shown(turns), left_out)


def slide(least: int, fit: int) -> int:
    """How many of the oldest turns to leave out, if at least `least` must be and `fit` would fit.

    Always one turn more would move the head of every prompt, and nothing could be shared with the
    prompt before. So it is a multiple of a power of two, the largest up to half of what fits: most
    prompts go on from the one before, and at least half of what fits is shown.

    >>> [slide(least, fit=10) for least in range(10)]
    [0, 4, 4, 4, 4, 8, 8, 8, 8, 12]
    """
    block = 1 << max(fit // 2, 1).bit_length() - 1
    return -(-least // block) * block
