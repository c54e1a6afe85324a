"""An invented shop in WebShop's file formats, so that the environment runs without a download.

`catalogue()` makes some products of each kind and WISHES instructions for each product. Everything
is drawn from catalogue.yaml with a fixed seed: same tables, same bytes. As in the scraped data,
some products have no price, a range of prices, no options, or features that are one string; these
go through the same reader.

Products of one kind share words, features and options, so that a search finds many of them and the
agent has to look for the one that has it all.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from miniact.envs.webshop.data import Files

SEED = 7
PER_KIND = 16
WISHES = 3


class Kind(NamedTuple):
    path: str  # "Shoes › Sports › Running"
    noun: str  # "running shoes"
    prices: tuple[int, int]  # dollars
    before: list[str]  # "lightweight"
    after: list[str]  # "rubber sole"
    options: list[str]  # names in the table of options


def catalogue(per_kind: int = PER_KIND) -> Files:
    """The three files, the same in every process; per_kind: products of each of the kinds."""
    rng = random.Random(SEED)
    products: list[dict[str, Any]] = []
    annotations: dict[str, Any] = {}
    human: dict[str, Any] = {}
    for kind in _kinds():
        for i in range(per_kind):
            asin = "B0" + "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789", k=8))
            before, after = rng.sample(kind.before, 3), rng.sample(kind.after, 2)
            row = {"asin": asin, **_product(rng, kind, before, after)}
            products.append(row if i else {**row, "customization_options": None})
            wishes = [_wish(rng, kind, products[-1], before, after) for _ in range(WISHES)]
            human[asin] = wishes
            annotations[asin] = {
                "attributes": [*before, *after],
                "instruction": f"Show me {kind.noun}, {before[0]} and {before[1]}, with {after[0]}",
                "instruction_attributes": [before[0], before[1], after[0]],
            }
    rng.shuffle(products)
    return Files(products, annotations, human, ("products", "annotations", "human instructions"))


@functools.cache
def _tables() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes())


def _kinds() -> Iterator[Kind]:
    for path, nouns in _tables()["kinds"].items():
        for noun, text in nouns.items():
            prices, options, *features = text.split(" | ")
            low, high = map(int, prices.split("-"))
            before, after = (names.split(", ") for names in features)
            yield Kind(path, noun, (low, high), before, after, options.split())


def _product(rng: random.Random, kind: Kind, before: list[str], after: list[str]) -> dict[str, Any]:
    tables = _tables()
    brand, place = rng.choice(tables["brands"].split()), rng.choice(tables["places"])
    title = f"{brand} {before[0]} {kind.noun} with {after[0]} for {place}".title()
    description = (
        f"{kind.noun.capitalize()} by {brand}, made for {place}. {rng.choice(tables['claims'])} "
        f"{before[1]}, and it comes with {after[1]}."
    )
    # The search engine sees the first bullet only: who wants before[2] finds other products first.
    bullets = [f"With {' and '.join(after)}.", f"{', '.join(before).capitalize()}."]
    low = round(rng.uniform(*kind.prices), 2)
    pricing = rng.choices([f"${low}", f"${low}${round(low * 1.4, 2)}", ""], [8, 1, 1])[0]
    options = {}
    for option in kind.options:
        name, *values = tables["options"][option]
        kept = sorted(rng.sample(range(len(values)), min(len(values), rng.randint(3, 5))))
        options[name] = [{"value": values[i], "image": None} for i in kept]
    return {
        "name": title,
        "category": kind.path.split(" › ")[0].lower(),
        "query": kind.noun,
        "product_category": kind.path,
        "pricing": pricing,
        "small_description": bullets if rng.random() < 0.9 else " ".join(bullets),
        "full_description": description,
        "customization_options": options,
        "images": [],
    }


def _wish(
    rng: random.Random, kind: Kind, row: dict[str, Any], before: list[str], after: list[str]
) -> dict[str, Any]:
    """A person's instruction: one to three features, and a value for each option."""
    first = rng.sample(before, rng.randint(1, 2))
    second = rng.sample(after, rng.randint(0, 1))
    what = " ".join([_article(kind.noun, first[0]), *first, kind.noun])
    if second:
        what += f" with {second[0]}"
    options = [rng.choice(rows)["value"] for rows in (row["customization_options"] or {}).values()]
    text = rng.choice(_tables()["openings"]).format(what)
    for value in options:
        text += f", {rng.choice(_tables()['choices']).format(value)}"
    return {
        "instruction": f"{text}.",
        "instruction_attributes": [*first, *second],
        "instruction_options": options,
    }


def _article(noun: str, word: str) -> str:
    """'some' before a plural, else the article that the next word wants."""
    if noun.endswith("s") and not noun.endswith("ss"):
        return "some"
    return "an" if word[0] in "aeio" else "a"  # "a unisex …"
