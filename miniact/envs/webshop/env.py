"""WebShop (Yao et al., 2022): a shop of real products, searched and clicked through as text.

A compact re-implementation of the original's text environment: its data files, pages, actions,
goals and reward, without its web server, Java and spaCy. What differs is listed here:
- the search engine is ours (`search.py`), and so is the default noun tagger of the reward
  (`goals.py`); prices that the original draws at random are drawn from fixed seeds;
- the task tells the two forms of action, which the original leaves to the prompt;
- labels that hold brackets can be clicked; an episode ends after `max_steps` actions.

As in the original, a page does not show which options are chosen, an action that does not apply
shows the page again, and the words after search[ work on every page.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from miniact import UserError
from miniact.envs import OVER, Turn, check_extra, check_names
from miniact.envs.webshop.catalogue import catalogue
from miniact.envs.webshop.data import Product, open_folder, parse
from miniact.envs.webshop.expert import choices, queries
from miniact.envs.webshop.goals import Goal, make_goals, nouns, reward, spacy_nouns
from miniact.envs.webshop.search import Index, open_index

ON_A_PAGE = 10  # results
SUB_PAGES = ("Description", "Features", "Reviews")
ACTIONS = "Answer with search[words], or with click[…] and a button, product or option of the page."
_RECEIPT = (
    "Thank you for shopping with us!|Your code:|None|(Paste it in your MTurk interface.)|Purchased|"
    "asin|{asin}|options|{options}|attrs|None|category|None|query|None|product category|None|"
    "Target|asin|options|attrs|price upper|instuction text|category|product category|query|"
    "Goal|None|Reward|Your score (min 0.0, max 1.0)|{score}|Reward Details|None"
)
TEST, DEV = 500, 1000  # goals of the official splits; the rest is train


class Shop(NamedTuple):
    """What all environments over the same data share."""

    products: list[Product]
    places: dict[str, int]  # of the products in this list, by their number
    engine: Index
    goals: list[Goal]


@functools.lru_cache(maxsize=2)
def open_shop(data: str, goals: str) -> Shop:
    """Load a data folder ('' is the built-in catalogue) once per process."""
    loaded = parse(open_folder(data) if data else catalogue())
    all_goals = make_goals(loaded, goals)
    engine = open_index([product.document() for product in loaded.products])
    places = {product.asin: i for i, product in enumerate(loaded.products)}
    return Shop(loaded.products, places, engine, all_goals)


class WebShop:
    """WebShop as an `Env`. A task id is "<split>/<official goal number>": "test/12".

    `data`: a folder with the official files; empty: the built-in catalogue of invented products.
    `goals`: "human" instructions, or "synthetic" ones that are made from the attributes.
    `spacy_model`: take the nouns of the reward from this spaCy model, as the original does.

    Splits: test has the official goals 0-499, dev 500-1499, train the others. With fewer than 3,000
    goals the shares are a sixth, a third and a half. A task is solved by a purchase with reward 1.
    """

    splits = ("train", "dev", "test")

    def __init__(
        self,
        *,
        data: str = "",
        goals: str = "human",
        max_steps: int = 15,
        spacy_model: str = "",
    ) -> None:
        if max_steps < 1:
            raise UserError(f"env.options: max_steps is {max_steps}, expected 1 or more")
        if goals not in ("human", "synthetic"):
            raise UserError(f"env.options: goals is {goals!r}, expected human or synthetic")
        check_extra("webshop", "bm25s", "rapidfuzz", "Stemmer")
        self._nouns = spacy_nouns(spacy_model) if spacy_model else nouns
        self._shop = open_shop(data, goals)
        self._max_steps = max_steps
        self._last = Turn(OVER, done=True)  # until the first reset

    def tasks(self, split: str, n: int, seed: int) -> list[str]:
        numbers = self._numbers(split)
        order = random.Random(f"{split}/{seed}").sample(numbers, len(numbers))
        return [f"{split}/{number}" for number in order[: max(n, 0)]]

    def reset(self, task_id: str) -> tuple[str, Turn]:
        split, _, number = task_id.partition("/")
        known = split in self.splits and re.fullmatch(r"0|[1-9][0-9]{0,8}", number)
        if not known or int(number) not in self._numbers(split):
            raise UserError(
                f"WebShop: unknown task id {task_id[:60]!r}, expected one like 'test/0'; "
                "tasks(split, n, seed) lists some"
            )
        self._goal = self._shop.goals[int(number)]
        self._target = self._shop.places[self._goal.product.asin]
        self._steps = 0
        self._page = "search"
        self._last = Turn(self._show())
        return f"{self._goal.instruction}\n{ACTIONS}", self._last

    def step(self, action: str) -> Turn:
        if self._last.done:
            return replace(self._last, observation=OVER, applied=False)
        self._steps += 1
        effect = self._effect(action)
        if effect is not None:
            effect()
        score = self._score if self._page == "done" else 0.0
        self._last = Turn(
            self._show(),
            done=self._page == "done" or self._steps >= self._max_steps,
            success=score == 1,
            score=score,
            applied=effect is not None,
        )
        return self._last

    def admissible(self) -> tuple[str, ...] | None:
        """The clicks. On the search page None: what to search for is open, so no list is complete.

        A search works on the other pages too, though they have no search box, and is not listed.
        """
        if self._last.done:
            return ()
        return tuple(sorted(f"click[{label}]" for label in self._buttons())) or None

    def close(self) -> None:
        self._last = Turn(OVER, done=True)

    def _numbers(self, split: str) -> range:
        """The numbers of a split's goals."""
        check_names("WebShop: unknown split", self.splits, split)
        n = len(self._shop.goals)
        first, second = min(TEST, n // 6), min(TEST + DEV, n // 2)
        return {"test": range(first), "dev": range(first, second), "train": range(second, n)}[split]

    # ----------------------------------------------------------- the actions and what they do

    def _effect(self, action: str) -> Callable[[], None] | None:
        match = re.match(r"\s*(search|click)\[(.+)\]", action)
        if match is None:
            return None
        name, argument = match[1], match[2].lower()
        if name == "click":
            return self._buttons().get(argument)
        return None if "[" in argument else partial(self._search, argument)

    def _buttons(self) -> dict[str, Callable[[], None]]:
        """Every label that can be clicked now, in lower case → the effect."""
        if self._page == "search":
            return {}
        buttons: dict[str, Callable[[], None]] = {}
        if self._page == "item":
            for name, labels in self._product.options.items():
                buttons |= {label: partial(self._choose, name, label) for label in labels}
            buttons |= {name.lower(): partial(self._go_to, name) for name in SUB_PAGES}
            buttons |= {"< prev": partial(self._turn_to, self._number), "buy now": self._buy}
        elif self._page == "results":
            buttons |= {p.asin.lower(): partial(self._open, p) for p in self._results()}
            if self._number > 1:
                buttons["< prev"] = partial(self._turn_to, self._number - 1)
            buttons["next >"] = partial(self._turn_to, self._number + 1)  # even on the last page
        else:
            buttons["< prev"] = partial(self._go_to, "item")
        return {**buttons, "back to search": partial(self._go_to, "search")}

    def _search(self, query: str) -> None:
        self._hits = self._shop.engine.search(query)
        self._turn_to(1)

    def _turn_to(self, number: int) -> None:
        self._page, self._number = "results", number

    def _open(self, product: Product) -> None:
        self._page, self._product = "item", product
        self._chosen: dict[str, str] = {}  # results open a product afresh: nothing stays chosen

    def _go_to(self, name: str) -> None:
        self._page = name

    def _choose(self, name: str, label: str) -> None:
        self._chosen[name] = label

    def _buy(self) -> None:
        self._page = "done"
        self._score = reward(self._product, list(self._chosen.values()), self._goal, self._nouns)

    def _results(self) -> list[Product]:
        shown = self._hits[(self._number - 1) * ON_A_PAGE : self._number * ON_A_PAGE]
        return [self._shop.products[i] for i in shown]

    # --------------------------------------------------------------------------------- the pages

    def _show(self) -> str:
        return " [SEP] ".join(filter(None, map(str.strip, self._segments())))

    def _segments(self) -> list[str]:
        """The texts of the page, in order; empty ones do not show."""
        wish = ["Instruction:", self._goal.instruction]
        if self._page == "search":
            return ["WebShop", *wish, "Search"]
        if self._page == "done":
            return self._receipt()
        head = [*wish, "Back to Search"]
        if self._page == "results":
            title = f"Page {self._number} (Total results: {len(self._hits)})"
            turn = ["< Prev", "Next >"] if self._number > 1 else ["Next >"]
            results = [t for p in self._results() for t in (p.asin, p.title, p.price_tag)]
            return [*head, title, *turn, *results]
        product = self._product
        head.append("< Prev")
        if self._page == "item":
            options = [t for name, labels in product.options.items() for t in (name, *labels)]
            facts = [product.title, f"Price: {product.price_tag}", "Rating: N.A."]
            return [*head, *options, *facts, *SUB_PAGES, "Buy Now"]
        texts = {"Description": [product.description], "Features": product.bullets, "Reviews": []}
        return [*head, *texts[self._page]]

    def _receipt(self) -> list[str]:
        """The last page: a form of which the original leaves most fields empty."""
        chosen = json.dumps(self._chosen, sort_keys=True)
        for mark in "<>&'":
            chosen = chosen.replace(mark, f"\\u{ord(mark):04x}")
        facts = {"asin": self._product.asin, "options": chosen, "score": self._score}
        return [cell.format(**facts) for cell in _RECEIPT.split("|")]

    # -------------------------------------------------------------------------------- the expert

    def expert_action(self) -> str | None:
        """The next action of a shopper who would know the right product on seeing it.

        It searches for the words of the instruction, leafs through the results, opens the product,
        chooses what the instruction asks for and buys. None if no search finds the product.
        """
        if self._last.done:
            return None
        if self._page == "search":
            query = self._expert_query()
            return None if query is None else f"search[{query}]"
        if self._page == "results":
            return f"click[{self._expert_turn()}]"
        if self._page != "item" or self._product is not self._goal.product:
            return "click[< prev]"
        wanted = choices(self._goal).items()
        missing = [label for name, label in wanted if self._chosen.get(name) != label]
        return f"click[{missing[0]}]" if missing else "click[buy now]"

    def _expert_query(self) -> str | None:
        """The first of the expert's queries that finds the product."""
        engine = self._shop.engine
        return next((q for q in queries(self._goal) if self._target in engine.search(q)), None)

    def _expert_turn(self) -> str:
        """What to click on a page of results."""
        if self._target not in self._hits:
            return "back to search"
        page = self._hits.index(self._target) // ON_A_PAGE + 1
        if page == self._number:
            return self._goal.product.asin.lower()
        return "next >" if page > self._number else "< prev"
