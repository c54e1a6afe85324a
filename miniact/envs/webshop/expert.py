"""What WebShop's expert searches for and chooses: all of it follows from the instruction's facts.

It knows the product that a goal was written for, as a person does who recognises it in a list; what
to type and which options to take it reads from the goal.
"""

from __future__ import annotations

import re

from miniact.envs.webshop import WORDS
from miniact.envs.webshop.goals import Goal, ratio, same_option
from miniact.envs.webshop.search import words

_PRICE = re.compile(r", and price lower than [\d.]+ dollars$")
_FILLER = frozenset(WORDS["filler"])


def queries(goal: Goal) -> list[str]:
    """What to search for: the words of the instruction; or of these, those that fit the product."""
    asked = key_words(goal.instruction)
    known = set(words(goal.product.document()))
    return [" ".join(asked), " ".join(word for word in asked if known.issuperset(words(word)))]


def key_words(instruction: str) -> list[str]:
    """The words of an instruction that are worth searching for, without its price limit.

    >>> " ".join(key_words("i need a washable rug, and price lower than 40.00 dollars"))
    'washable rug'
    """
    tokens = re.findall(r"\w+", _PRICE.sub("", instruction).lower())
    return [word for word in tokens if word not in _FILLER and words(word)]


def choices(goal: Goal) -> dict[str, str]:
    """{option: value} to choose for the goal's product: the best fit for each value asked for."""
    options = goal.product.options.items()
    owner = {label: name for name, labels in options for label in labels}  # as a click finds it
    chosen: dict[str, str] = {}
    for wanted in goal.options:
        fitting = [
            (label == wanted, ratio(label, wanted), label)
            for label, name in owner.items()
            if name not in chosen and same_option(label, wanted)
        ]
        if fitting:
            label = max(fitting)[-1]
            chosen[owner[label]] = label
    return chosen
