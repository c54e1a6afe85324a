"""WebShop's goals and its reward.

    r = r_type · (n_attr + n_opt + [price ≤ upper]) / (|A| + |O| + 1)

A → `goal.attributes`, O → `goal.options`, upper → `goal.price_upper`; n_attr and n_opt count those
that the purchase satisfies, r_type (0, 0.1, 0.5 or 1) says whether it is that kind of thing at all.

The original takes r_type's nouns from spaCy, whose models are on no package index. The default here
is `nouns`, a rule; `spacy_nouns` is the original's way for those who have a model.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from miniact import UserError
from miniact.envs.webshop import WORDS
from miniact.envs.webshop.data import Data, Product, Wish

SHUFFLE_SEED = 233  # the original's: goal number 12 is the same goal here and there
NO_LIMIT = 1_000_000.0  # dollars
Nouns = Callable[[str], list[str]]

COLOURS = WORDS["colours"]
_NO_NOUNS = frozenset(WORDS["no nouns"])


class Goal(NamedTuple):
    instruction: str  # ends with the price limit, if there is one
    product: Product  # the one that it was written for; others may do as well
    attributes: tuple[str, ...]
    options: tuple[str, ...]
    price_upper: float  # dollars


def make_goals(data: Data, kind: str) -> list[Goal]:
    """All goals in the official order. kind: "human", or "synthetic" (made from the attributes).

    Raises UserError if there is none.
    """
    wishes = _human(data) if kind == "human" else _synthetic(data)
    goals = [_limited(product, wish, i) for product, wish, i in wishes]
    if not goals:
        raise UserError(
            f"env.options: goals: no {kind} goal asks for an attribute of one of the "
            f"{len(data.products)} products; do the files belong together?"
        )
    random.Random(SHUFFLE_SEED).shuffle(goals)
    return goals


def _human(data: Data) -> Iterator[tuple[Product, Wish, int]]:
    for product in data.products:
        for i, wish in enumerate(data.human.get(product.asin, ())):
            yield product, wish, i


def _synthetic(data: Data) -> Iterator[tuple[Product, Wish, int]]:
    """A wish for each combination of a product's options; all of them have one price limit."""
    for product in data.products:
        if wish := data.annotated.get(product.asin):
            names = sorted(product.options)
            for values in itertools.product(*(product.options[name] for name in names)):
                chosen = ", and ".join(f"{n}: {v}" for n, v in zip(names, values))
                text = f"{wish.text} with {chosen}" if chosen else wish.text
                yield product, Wish(text, wish.attributes, values), 0


def _limited(product: Product, wish: Wish, number: int) -> Goal:
    """Add a price limit: the larger of two of the next four multiples of $10 above the price."""
    above = [10.0 * i for i in range(1, 100) if 10.0 * i > product.price][:4]
    if len(above) < 2:
        return Goal(wish.text, product, wish.attributes, wish.options, NO_LIMIT)
    upper = max(random.Random(f"limit/{product.asin}/{number}").sample(above, 2))
    text = f"{wish.text}, and price lower than {upper:.2f} dollars"
    return Goal(text, product, wish.attributes, wish.options, upper)


# -------------------------------------------------------------------------------------- the reward


def reward(bought: Product, chosen: Sequence[str], goal: Goal, nouns: Nouns) -> float:
    """The score of a purchase, 0..1: this product, with these values of its options."""
    attributes = sum(_has(bought, attribute) for attribute in goal.attributes)
    options = sum(any(same_option(c, o) for c in chosen) for o in goal.options)
    cheap = bought.price <= goal.price_upper
    share = (attributes + options + cheap) / (len(goal.attributes) + len(goal.options) + 1)
    return share * type_reward(bought, goal.product, nouns)


def type_reward(bought: Product, wanted: Product, nouns: Nouns) -> float:
    """r_type, from the searches and categories of the two, and from the nouns N of their titles.

    title = |N_bought ∩ N_wanted| / len N_wanted (0.2 without nouns; repeated nouns count below
    only). 0 if title is 0; 0.1 below 0.1; else 1 if the search is the same, if two categories are,
    or if title > 0.2; else 0.5.
    """
    theirs = nouns(wanted.title)
    shared = set(nouns(bought.title)) & set(theirs)
    title = len(shared) / len(theirs) if theirs else 0.2
    if title < 0.1:
        return 0.1 if title else 0.0
    alike = bought.query == wanted.query or len(bought.categories & wanted.categories) >= 2
    return 1.0 if alike or title > 0.2 else 0.5


def same_option(chosen: str, wanted: str) -> bool:
    """Whether a value of an option is what was asked for, up to the colour's shade."""
    return ratio(normal_colour(chosen), normal_colour(wanted)) > 85


def normal_colour(text: str) -> str:
    """The first colour, by alphabet, that occurs in the text; the text itself if none does.

    >>> normal_colour("sky blue"), normal_colour("x-large")
    ('blue', 'x-large')
    """
    return next((colour for colour in COLOURS if colour in text), text)


def ratio(a: str, b: str) -> int:
    """How alike two texts are as sets of words, 0..100; 100 if one has all words of the other."""
    from rapidfuzz import fuzz, utils

    return round(fuzz.token_set_ratio(a, b, processor=utils.default_process))


def _has(product: Product, attribute: str) -> bool:
    if any(ratio(own, attribute) > 85 for own in product.attributes):
        return True
    texts = (product.title, " ".join(product.bullets), product.description)
    return any(attribute in text.lower() for text in texts)


# ------------------------------------------------------------------------------------------- nouns


def nouns(title: str) -> list[str]:
    """The default noun tagger: all words but numbers, single letters, participles, common others.

    In titles, where most words are capitalised, a tagger takes nearly all words for nouns.

    >>> nouns("Dunmere 4K Padded Laptop Bag for Travel")
    ['dunmere', 'laptop', 'bag', 'travel']
    """
    tokens = re.findall(r"\w+(?:\.\w+)*", title.lower())
    return [w for w in tokens if re.fullmatch(r"[^\d_]{2,}", w) and not _is_other(w)]


def _is_other(word: str) -> bool:
    participle = len(word) > 4 and word.endswith("ed") and not word.endswith("eed")
    return participle or word in _NO_NOUNS


@functools.lru_cache(maxsize=2)
def spacy_nouns(model: str) -> Nouns:
    """The original's noun tagger: an installed spaCy model, by name or folder.

    Raises UserError if spaCy or the model is missing.
    """
    try:
        import spacy

        tagger = spacy.load(model)
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"env.options: spacy_model: cannot load {model!r} ({reason:.120}); run `pip install "
            "spacy` and `python -m spacy download en_core_web_sm`, or leave spacy_model empty"
        ) from None
    return lambda title: [t.text.lower() for t in tagger(title) if t.pos_ in ("NOUN", "PROPN")]
