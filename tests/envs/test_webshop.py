"""WebShop: files as they were scraped, pages to the letter, the reward by hand, the shopper.

The shop of most tests is written in the official formats, odd rows included.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from miniact import UserError
from miniact.envs import make_env
from miniact.envs.webshop.catalogue import catalogue
from miniact.envs.webshop.data import Data, Product, Wish, open_folder, parse
from miniact.envs.webshop.env import ACTIONS, OVER, WebShop
from miniact.envs.webshop.expert import choices, key_words, queries
from miniact.envs.webshop.goals import (
    COLOURS,
    NO_LIMIT,
    Goal,
    make_goals,
    normal_colour,
    nouns,
    reward,
    same_option,
    spacy_nouns,
    type_reward,
)
from miniact.envs.webshop.search import open_index, words

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("bm25s", "rapidfuzz", "Stemmer")),
    reason='needs the extra: pip install "miniact[webshop]"',
)

LAMP = {
    "asin": "B000000001",
    "name": "Brass Reading Lamp",
    "category": "garden",
    "query": " Reading Lamp ",
    "product_category": "Home › Light › Table Lamps",
    "pricing": "$24.50",
    "small_description": ["Dims in three steps", "Cord of 2 m"],
    "full_description": "A lamp for the desk.",
    "customization_options": {
        "Color": [{"value": " Aged Brass ", "image": "x.jpg"}, {"value": "Black/White"}],
        "size": None,
        "Style": [{"value": "Clamp", "image": None}],
    },
    "images": ["x.jpg"],
    "brand": "Halm",
}
ODD_ROWS = [
    {"asin": "nan", "name": "no number"},
    {"asin": "B0000000011", "name": "too long a number"},
    {**LAMP, "name": "the same lamp again"},
    {  # a range of prices, one string of features, NaN and null where nothing was found
        "asin": "B000000002",
        "name": "Oak Reading Lamp",
        "query": "reading lamp",
        "product_category": "Home › Light › Floor Lamps",
        "pricing": "$1,030.00 - $1,050.5",
        "small_description": "Stands on the floor",
        "full_description": float("nan"),
        "customization_options": "",
        "images": [],
    },
    {"asin": "B000000003", "name": "Desk & Chair", "customization_options": {}, "pricing": None},
]
NOTES = {
    "B000000001": {
        "attributes": ["easy to clean", "energy saving"],
        "instruction": "Show me lamps, easy to clean",
        "instruction_attributes": ["easy to clean"],
    },
    "B000000002": {"attributes": []},
}
WISHES = {
    "B000000001": [
        {
            "instruction": "i need a brass lamp that is easy to clean.",
            "instruction_attributes": ["easy to clean"],
            "instruction_options": ["aged brass", "clamp"],
            "worker_id": "A1",
        },
        {"instruction": "any lamp", "instruction_attributes": [], "instruction_options": []},
        {
            "instruction": "a lamp with dims in three steps",
            "instruction_attributes": ["dims in three steps"],
            "instruction_options": {"color": "aged brass"},
        },
    ],
    "B000000009": [{"instruction": "not in the shop", "instruction_attributes": ["red"]}],
}


def write_shop(folder: Path, rows: list | None = None, tail: str = "", **files) -> str:
    """The three official files in a folder."""
    contents = {
        f"items_shuffle{tail}.json": [LAMP, *ODD_ROWS] if rows is None else rows,
        f"items_ins_v2{tail}.json": NOTES,
        "items_human_ins.json": WISHES,
    }
    for name, value in {**contents, **files}.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return str(folder)


def many_lamps(n: int) -> list[dict]:
    """n products of one kind; they are alike but for their numbers."""
    return [{**LAMP, "asin": f"B{i:09d}"} for i in range(1, n + 1)]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIACT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> str:
    return write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def env(shop) -> WebShop:
    """At the first goal of the odd shop, the one with two options."""
    env = WebShop(data=shop)
    number = next(i for i, g in enumerate(env._shop.goals) if len(g.options) == 2)
    env.reset(f"{split_of(env, number)}/{number}")
    return env


def split_of(env: WebShop, number: int) -> str:
    return next(s for s in env.splits if number in env._numbers(s))


def product(**fields) -> Product:
    plain = Product(
        "B1", "Steel Mug", "", (), "mug", frozenset({"Home", "Kitchen"}), 9.0, "$9.0", {}, ()
    )
    return replace(plain, **fields)


# ---- the files ----


def test_what_the_loader_makes_of_odd_rows(shop):
    data = parse(open_folder(shop))
    lamp, oak, desk = data.products
    assert lamp.options == {"color": ("aged brass", "black | white"), "style": ("clamp",)}
    assert (lamp.query, lamp.price, lamp.price_tag) == ("reading lamp", 24.5, "$24.5")
    assert lamp.categories == {"Home", "Light", "Table Lamps"}
    assert lamp.attributes == ("easy to clean", "energy saving")
    assert oak.bullets == ("Stands on the floor",)
    assert (oak.description, oak.options, oak.attributes) == ("", {}, ())
    assert oak.price_tag == "$1030.0 to $1050.5" and 1030 < oak.price < 1050.5
    assert (desk.price, desk.price_tag, desk.query) == (100.0, "$100.0", "")
    assert (desk.bullets, desk.attributes) == ((), ("DUMMY_ATTR",))
    assert data.human == {
        lamp.asin: [
            Wish(
                "i need a brass lamp that is easy to clean",
                ("easy to clean",),
                ("aged brass", "clamp"),
            ),
            Wish("a lamp with dims in three steps", ("dims in three steps",), ("aged brass",)),
        ]
    }
    assert data.annotated == {lamp.asin: Wish("Show me lamps, easy to clean", ("easy to clean",))}


@pytest.mark.parametrize(
    ("pricing", "tag"),
    [
        ("$8.39", "$8.39"),
        ("$1,299.00", "$1299.0"),
        ("$5$8.5", "$5.0 to $8.5"),
        ("$5$8$9", "$5.0 to $8.0"),
        ("", "$100.0"),
        ("see cart", "$100.0"),
        ("$.", "$100.0"),
    ],
)
def test_price_tags(tmp_path, pricing, tag):
    folder = write_shop(tmp_path, [{**LAMP, "pricing": pricing}])
    assert parse(open_folder(folder)).products[0].price_tag == tag


def test_the_search_engine_reads_title_description_first_bullet_and_options(shop):
    assert parse(open_folder(shop)).products[0].document() == (
        "brass reading lamp a lamp for the desk. dims in three steps "
        "color: aged brass, black | white, and style: clamp"
    )


def test_the_full_catalogue_is_taken_before_the_small_one_if_it_is_complete(tmp_path):
    folder = write_shop(tmp_path, tail="_1000")
    assert "items_shuffle_1000.json" in open_folder(folder).names[0]
    write_shop(tmp_path)
    assert "items_shuffle.json" in open_folder(folder).names[0]
    (tmp_path / "items_ins_v2.json").unlink()
    assert "items_shuffle_1000.json" in open_folder(folder).names[0]


def test_half_characters_of_scraped_text_become_question_marks(tmp_path):
    folder = write_shop(tmp_path, [{**LAMP, "name": "Lamp \ud83d"}])
    assert parse(open_folder(folder)).products[0].title == "Lamp ?"


# ---- bad input ----


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match=r"data: no folder .*nowhere.*built-in") as error:
        WebShop(data=str(tmp_path / "nowhere"))
    one_line(error)


@pytest.mark.parametrize(
    "name", ["items_shuffle_1000.json", "items_ins_v2_1000.json", "items_human_ins.json"]
)
def test_a_file_that_is_missing_or_ends_early(tmp_path, name):
    folder = write_shop(tmp_path, tail="_1000")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{name}: not complete JSON .*download") as error:
        WebShop(data=folder)
    one_line(error)
    (tmp_path / name).rename(tmp_path / f"{name}.part")
    wanted = name.replace("_1000", "") if "shuffle" in name else name
    with pytest.raises(UserError, match=f"has no .*{wanted}.*complete") as error:
        WebShop(data=folder)
    one_line(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, r"items_shuffle.json: item 0 \(B000000001\): name: expected a string, got 3"),
        ({"asin": 7}, r"item 0: asin: expected a string, got 7"),
        ({"pricing": 3.5}, r"pricing: expected a string, got 3.5"),
        ({"small_description": [1]}, r"small_description: expected a string, got 1"),
        ({"small_description": {}}, r"small_description: expected a list, got {}"),
        ({"customization_options": [1]}, r"customization_options: expected an object"),
        ({"customization_options": {"a": 1}}, r"customization_options: a: expected a list"),
        ({"customization_options": {"a": ["x"]}}, r"customization_options: a: expected an object"),
        ({"customization_options": {"a": [{"value": 1}]}}, r"a: value: expected a string, got 1"),
    ],
)
def test_a_product_of_a_wrong_type(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        WebShop(data=write_shop(tmp_path, [{**LAMP, **change}]))
    one_line(error)


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("items_shuffle", {}, r"items_shuffle.json: expected a list"),
        ("items_shuffle", ["x"], r"items_shuffle.json: item 0: expected an object, got 'x'"),
        ("items_shuffle", [{"asin": "B1"}], r"item 0 \(B1\): no field 'name'"),
        ("items_shuffle", [], r"no products"),
        ("items_ins_v2", [], r"items_ins_v2.json: expected an object"),
        ("items_ins_v2", {LAMP["asin"]: []}, r"items_ins_v2.json: item B000000001: expected an"),
        ("items_ins_v2", {LAMP["asin"]: {"attributes": 1}}, r"B000000001: attributes: expected"),
        ("items_human_ins", {LAMP["asin"]: {}}, r"items_human_ins.json: item B0.*: expected a"),
        ("items_human_ins", {LAMP["asin"]: [1]}, r"item B000000001: record 0: expected an object"),
        ("items_human_ins", {LAMP["asin"]: [{"instruction": 1}]}, r"record 0: instruction: expect"),
        ("items_human_ins", {}, r"no human goal .* one of the 3 products"),
    ],
)
def test_a_file_of_a_wrong_shape(tmp_path, file, value, message):
    folder = write_shop(tmp_path, **{f"{file}.json": value})
    with pytest.raises(UserError, match=message) as error:
        WebShop(data=folder)
    one_line(error)


def test_options_and_ids_that_do_not_exist(shop):
    with pytest.raises(UserError, match="goals is 'robot', expected human or synthetic"):
        WebShop(goals="robot")
    with pytest.raises(UserError, match="max_steps is 0"):
        WebShop(max_steps=0)
    env = WebShop(data=shop)
    for bad in (
        "train/9",
        "test/1",
        "dev",
        "train/01",
        "train/-1",
        "train/1²",
        "train/" + "9" * 99,
    ):
        with pytest.raises(UserError, match="unknown task id") as error:
            env.reset(bad)
        assert len(one_line(error)) < 250


@pytest.mark.parametrize("module", ["bm25s", "rapidfuzz", "Stemmer"])
def test_no_extra_is_a_user_error(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r'pip install "miniact\[webshop\]"') as error:
        make_env("webshop")
    one_line(error)


# ---- goals ----


def test_the_order_of_goals_is_the_originals():
    """Seed 233 over the products' order: the numbers of goals are the official ones."""
    item = product()
    wishes = [Wish(str(i), ("x",)) for i in range(1000)]
    goals = make_goals(Data([item], {item.asin: wishes}, {}), "human")
    expected = list(range(1000))
    random.seed(233)
    random.shuffle(expected)
    assert [int(goal.instruction.split(",")[0]) for goal in goals] == expected


def test_price_limits():
    """The larger of two of the next four multiples of ten; none where there are no two."""
    seen = Counter()
    for i in range(400):
        item = product(asin=f"B{i}", price=20.0)
        (goal,) = make_goals(Data([item], {item.asin: [Wish("a mug", ("x",))]}, {}), "human")
        assert goal.instruction == f"a mug, and price lower than {goal.price_upper:.2f} dollars"
        seen[goal.price_upper] += 1
    assert set(seen) == {40.0, 50.0, 60.0}  # never 30, the smallest of the four
    assert seen[40.0] < seen[50.0] < seen[60.0]  # 1 : 2 : 3
    for price, limited in [(979.9, True), (980.0, False), (5000.0, False)]:
        item = product(price=price)
        (goal,) = make_goals(Data([item], {item.asin: [Wish("a mug", ("x",))]}, {}), "human")
        assert (goal.price_upper < NO_LIMIT) == limited == ("price lower" in goal.instruction)


def test_synthetic_goals_ask_for_every_combination(shop):
    goals = make_goals(parse(open_folder(shop)), "synthetic")
    (limit,) = {goal.price_upper for goal in goals}
    price = f", and price lower than {limit:.2f} dollars"
    start = "Show me lamps, easy to clean with color: "
    assert {goal.instruction: goal.options for goal in goals} == {
        f"{start}aged brass, and style: clamp{price}": ("aged brass", "clamp"),
        f"{start}black | white, and style: clamp{price}": ("black | white", "clamp"),
    }
    assert WebShop(data=shop, goals="synthetic").tasks("dev", 9, 0) == ["dev/0"]


def goals_of(n: int) -> WebShop:
    """An environment that believes it has n goals."""
    env = WebShop()
    env._shop = env._shop._replace(goals=[env._shop.goals[0]] * n)
    return env


def test_splits():
    official = goals_of(12_087)
    assert official._numbers("test") == range(500)
    assert official._numbers("dev") == range(500, 1500)
    assert official._numbers("train") == range(1500, 12_087)
    for n in (1, 2, 3, 7, 600, 2999, 3000, 3001):
        small = goals_of(n)
        assert [i for s in ("test", "dev", "train") for i in small._numbers(s)] == list(range(n))
    assert [len(goals_of(600)._numbers(s)) for s in WebShop.splits] == [300, 200, 100]


def test_tasks_follow_the_seed():
    env = WebShop()
    some = env.tasks("train", 50, seed=1)
    assert len(set(some)) == 50 and some == env.tasks("train", 50, seed=1)
    assert some != env.tasks("train", 50, seed=2) and some[:10] == env.tasks("train", 10, seed=1)
    every = env.tasks("train", 10**6, seed=1)
    assert sorted(every) == sorted(f"train/{i}" for i in env._numbers("train"))
    assert env.tasks("test", 0, seed=0) == env.tasks("test", -1, seed=0) == []


# ---- the reward ----


def tagged(text: str) -> list[str]:
    """A noun tagger for tests: the words in upper case."""
    return [word.lower() for word in text.split() if word.isupper()]


@pytest.mark.parametrize(
    ("bought", "wanted", "r_type"),
    [
        ("MUG", "MUG", 1.0),
        ("MUG", "plain", 0.5),  # no nouns: title counts as 0.2
        ("CUP", "MUG", 0.0),
        ("MUG b", "MUG A B C", 1.0),  # 1/4 > 0.2
        ("MUG b", "MUG A B C D", 0.5),  # 1/5 is not
        ("MUG b", "MUG A B C D E F G H I", 0.5),  # 1/10 is not below 0.1
        ("MUG b", "MUG A B C D E F G H I J", 0.1),  # 1/11 is
        ("MUG b", "MUG MUG MUG MUG A", 0.5),  # repeats count below only: 1/5
    ],
)
def test_type_of_another_kind_by_its_title(bought, wanted, r_type):
    one = product(title=bought, query="cup", categories=frozenset({"Home", "Kitchen"}))
    two = product(title=wanted, query="mug", categories=frozenset({"Home", "Garden"}))
    assert type_reward(one, two, tagged) == r_type


@pytest.mark.parametrize(
    ("query", "categories", "r_type"),
    [
        ("mug", {"A"}, 1.0),
        ("cup", {"Home", "Garden", "C"}, 1.0),
        ("cup", {"Home", "C"}, 0.5),
        ("cup", {"Garden"}, 0.5),
    ],
)
def test_type_by_search_and_categories(query, categories, r_type):
    one = product(title="MUG", query=query, categories=frozenset(categories))
    two = product(title="MUG A B C D", query="mug", categories=frozenset({"Home", "Garden", "X"}))
    assert type_reward(one, two, tagged) == r_type
    other = replace(one, title="CUP")  # what shares no noun is worth nothing, whatever else is
    assert type_reward(other, two, tagged) == 0
    little = replace(two, title="MUG A B C D E F G H I J")
    assert type_reward(one, little, tagged) == 0.1


def wish(item: Product, attributes=(), options=(), limit=50.0) -> Goal:
    return Goal("", item, tuple(attributes), tuple(options), limit)


def test_reward_by_hand():
    mug = product(
        attributes=("dishwasher safe", "hand painted"),
        bullets=("Holds HALF a litre",),
        description="Keeps warm.",
        price=20.0,
    )
    goal = wish(mug, ["dishwasher safe", "half a litre"], ["sky blue", "large"], limit=20.0)
    everything = ["navy blue", "large"]  # both are blue
    assert reward(mug, everything, goal, nouns) == 1
    assert reward(mug, ["large", "blue", "red"], goal, nouns) == 1
    assert reward(mug, ["large"], goal, nouns) == pytest.approx(4 / 5)
    assert reward(mug, [], goal, nouns) == pytest.approx(3 / 5)
    dear = replace(mug, price=20.01)
    assert reward(dear, everything, goal, nouns) == pytest.approx(4 / 5)
    plain = replace(mug, attributes=("painted by hand",), bullets=())
    assert reward(plain, everything, goal, nouns) == pytest.approx(3 / 5)
    half = replace(
        mug, title="Steel Bowl Of Many More Things", query="bowl", categories=frozenset()
    )
    far = wish(product(title="Steel A1 Ab Cd Ef Gh Ij"), ["dishwasher safe"])  # 1 noun of 6
    assert reward(half, [], far, nouns) == pytest.approx(0.5 * 2 / 2)
    assert reward(product(title="Rug", query="rug"), everything, goal, nouns) == 0


def test_attributes_match_as_sets_of_words_or_as_text():
    goal = wish(product(), ["machine wash"])
    for attributes, matches in [
        (("machine wash",), True),
        (("wash machine",), True),
        (("cold machine wash",), True),  # has all the words
        (("machine washed",), True),  # 92 of 100
        (("machine",), True),  # the goal has all of its words
        (("hand wash",), False),
        ((), False),
    ]:
        score = reward(product(attributes=attributes), [], goal, nouns)
        assert score == (1.0 if matches else 0.5), attributes
    for field in ("title", "description"):
        bought = product(**{field: "Steel mug for Machine Washing"})
        assert reward(bought, [], goal, nouns) == 1
    assert reward(product(bullets=("into the machine", "washing up")), [], goal, nouns) == 1


def test_options_match_up_to_the_shade():
    assert normal_colour("") == "" and normal_colour("2 pack") == "2 pack"
    assert normal_colour("violet lavender") == "lavender"  # by alphabet, not by place
    assert normal_colour("123alabaster") == "alabaster"  # inside words too
    assert normal_colour("tall") == "tall" and normal_colour("stand") == "tan"
    assert sorted(COLOURS) == COLOURS and len(COLOURS) == 102
    assert same_option("sky blue", "navy blue") and not same_option("navy", "blue")
    assert same_option("x-large", "large")  # as sets of words
    assert not same_option("2 pack", "4 pack") and not same_option("7", "8")
    assert same_option("SIZE 7 (wide)", "size 7")


def test_the_default_nouns():
    title = (
        "Listed 2-Pack of the 4K Steel-Mugs, Hand Painted by D.o.n. for Kitchen & Café, very Big"
    )
    assert nouns(title) == ["pack", "steel", "mugs", "hand", "d.o.n", "kitchen", "café"]
    assert nouns("Feed, bed and red seed") == ["feed", "bed", "red", "seed"]
    assert nouns("2 x 4!") == []


def test_nouns_from_spacy(tmp_path):
    spacy = pytest.importorskip("spacy")
    model = spacy.blank("en")
    ruler = model.add_pipe("attribute_ruler")
    for word, tag in [("Steel", "PROPN"), ("mug", "NOUN"), ("paints", "VERB")]:
        ruler.add([[{"ORTH": word}]], {"POS": tag})
    model.to_disk(tmp_path / "model")
    tagger = spacy_nouns(str(tmp_path / "model"))
    assert tagger("Steel mug that paints") == ["steel", "mug"]
    env = WebShop(spacy_model=str(tmp_path / "model"))
    assert env._nouns is tagger


def test_a_missing_spacy_model_is_a_user_error(monkeypatch):
    with pytest.raises(UserError, match=r"cannot load 'no_such_model' .* spacy download") as error:
        WebShop(spacy_model="no_such_model")
    one_line(error)


# ---- the pages ----

WISH = "i need a brass lamp that is easy to clean, and price lower than {:.2f} dollars"
TOP = "Instruction: [SEP] " + WISH + " [SEP] Back to Search [SEP] "


def test_every_page_to_the_letter(env):
    limit = env._goal.price_upper
    task, turn = env.reset(
        f"{split_of(env, env._shop.goals.index(env._goal))}/{env._shop.goals.index(env._goal)}"
    )
    assert task == f"{WISH.format(limit)}\n{ACTIONS}"
    top = TOP.format(limit)
    assert turn.observation == (
        f"WebShop [SEP] Instruction: [SEP] {WISH.format(limit)} [SEP] Search"
    )
    assert env.step("search[Reading LAMPS]").observation == (
        f"{top}Page 1 (Total results: 2) [SEP] Next > [SEP] "
        "B000000002 [SEP] Oak Reading Lamp [SEP] $1030.0 to $1050.5 [SEP] "
        "B000000001 [SEP] Brass Reading Lamp [SEP] $24.5"
    )
    item = (
        f"{top}< Prev [SEP] color [SEP] aged brass [SEP] black | white [SEP] style [SEP] clamp "
        "[SEP] Brass Reading Lamp [SEP] Price: $24.5 [SEP] Rating: N.A. [SEP] Description [SEP] "
        "Features [SEP] Reviews [SEP] Buy Now"
    )
    assert env.step("click[B000000001]").observation == item
    assert env.step("click[black | white]").observation == item  # a choice does not show
    assert env.step("click[Description]").observation == f"{top}< Prev [SEP] A lamp for the desk."
    assert env.step("click[< Prev]").observation == item
    assert env.step("click[features]").observation == (
        f"{top}< Prev [SEP] Dims in three steps [SEP] Cord of 2 m"
    )
    env.step("click[< prev]")
    assert env.step("click[reviews]").observation == f"{top}< Prev"
    env.step("click[< prev]")
    turn = env.step("click[Buy Now]")
    assert turn.observation == (
        "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in your MTurk "
        "interface.) [SEP] Purchased [SEP] asin [SEP] B000000001 [SEP] options [SEP] "
        '{"color": "black | white"} [SEP] attrs [SEP] None [SEP] category [SEP] None [SEP] query '
        "[SEP] None [SEP] product category [SEP] None [SEP] Target [SEP] asin [SEP] options [SEP] "
        "attrs [SEP] price upper [SEP] instuction text [SEP] category [SEP] product category [SEP] "
        "query [SEP] Goal [SEP] None [SEP] Reward [SEP] Your score (min 0.0, max 1.0) [SEP] 0.5 "
        "[SEP] Reward Details [SEP] None"
    )
    assert (turn.done, turn.success, turn.score) == (True, False, 0.5)  # 2 of 4: no option


def test_an_item_without_options_description_and_features(env):
    env.step("search[chair]")
    top = TOP.format(env._goal.price_upper)
    assert env.step("click[b000000003]").observation == (
        f"{top}< Prev [SEP] Desk & Chair [SEP] Price: $100.0 [SEP] Rating: N.A. [SEP] "
        "Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )
    for page in ("description", "features"):
        assert env.step(f"click[{page}]").observation == f"{top}< Prev"
        env.step("click[< prev]")


def test_paging(tmp_path):
    env = WebShop(data=write_shop(tmp_path, many_lamps(63)), max_steps=99)
    env.reset("train/1")
    shown = []
    turn = env.step("search[lamp]")
    for page in range(1, 6):
        head, *cells = turn.observation.split(f"Page {page} (Total results: 50) [SEP] ")[1].split(
            "Next > [SEP] "
        )
        assert head == ("" if page == 1 else "< Prev [SEP] ")
        shown += cells[0].split(" [SEP] ")[::3]
        turn = env.step("click[Next >]")
    assert shown == [f"B{i:09d}" for i in range(1, 51)]  # equals, in the order of the catalogue
    assert turn.observation.endswith("Page 6 (Total results: 50) [SEP] < Prev [SEP] Next >")
    assert env.admissible() == ("click[< prev]", "click[back to search]", "click[next >]")
    assert "Page 5 (" in env.step("click[< prev]").observation
    env.step("click[< prev]")
    env.step("click[B000000035]")
    assert "Page 4 (" in env.step("click[< prev]").observation  # back to where it was opened
    assert not env.step("click[B000000001]").applied  # of another page
    assert "Page 1 (" in env.step("search[lamp]").observation


def test_what_keeps_the_chosen_options(env):
    def bought() -> dict:
        done = env.step("click[buy now]").observation
        return json.loads(done.split("options [SEP] ")[1].split(" [SEP] ")[0])

    def start(*actions: str) -> None:
        number = env._shop.goals.index(env._goal)
        env.reset(f"{split_of(env, number)}/{number}")
        for action in ("search[lamp]", "click[b000000001]", "click[clamp]", *actions):
            assert env.step(action).applied, action

    start("click[aged brass]", "click[features]", "click[< prev]")
    assert bought() == {"color": "aged brass", "style": "clamp"}
    start("click[aged brass]", "click[black | white]")
    assert bought() == {"color": "black | white", "style": "clamp"}
    start("click[< prev]", "click[b000000001]")
    assert bought() == {}
    start("click[back to search]", "search[lamp]", "click[b000000001]")
    assert bought() == {}
    start("search[lamp]", "click[b000000001]", "click[aged brass]")
    assert bought() == {"color": "aged brass"}


def test_the_receipt_escapes_like_the_originals_template(tmp_path):
    row = {**LAMP, "customization_options": {"Fit": [{"value": "<men's> & é"}]}}
    env = WebShop(data=write_shop(tmp_path, [row]))
    env.reset("train/1")
    for action in ("search[lamp]", f"click[{LAMP['asin']}]", "click[<MEN'S> & É]"):
        assert env.step(action).applied
    shown = env.step("click[buy now]").observation
    assert r'{"fit": "\u003cmen\u0027s\u003e \u0026 \u00e9"}' in shown


# ---- actions ----


@pytest.mark.parametrize(
    "action",
    [
        *("search", "search[]", "click[search]", "click[]", "click[buy now]", "buy now", "[lamp]"),
        *("click[< prev]", "search lamp", "search[a [b]]", "look", "click[b000000001]"),
        *("find[lamp]", "search[lamp] and click[buy now]", "search [lamp]", "please search[lamp]"),
    ],
)
def test_what_does_not_apply_shows_the_page_again(env, action):
    first = env._last.observation
    turn = env.step(action)
    assert (turn.observation, turn.applied, turn.done) == (first, False, False)


@pytest.mark.parametrize(
    "action", ["search[lamp]", "  search[lamp]\n", "search[LAMP].", "search[lamp] (to begin with)"]
)
def test_what_applies(env, action):
    turn = env.step(action)
    assert turn.applied and "Page 1 (Total results: 2)" in turn.observation


def test_a_search_that_finds_nothing(env):
    turn = env.step("search[zzz the]")
    assert turn.applied and turn.observation.endswith("Page 1 (Total results: 0) [SEP] Next >")
    assert env.expert_action() == "click[back to search]"


def test_what_can_be_clicked(env):
    assert env.admissible() is None
    env.step("search[lamp]")
    assert env.admissible() == (
        *("click[b000000001]", "click[b000000002]", "click[back to search]", "click[next >]"),
    )
    env.step("click[b000000001]")
    assert env.admissible() == (
        *("click[< prev]", "click[aged brass]", "click[back to search]", "click[black | white]"),
        *("click[buy now]", "click[clamp]", "click[description]", "click[features]"),
        "click[reviews]",
    )
    env.step("click[features]")
    assert env.admissible() == ("click[< prev]", "click[back to search]")
    env.step("click[< prev]")
    env.step("click[buy now]")
    assert env.admissible() == ()


def test_labels_with_brackets_blanks_and_the_names_of_buttons(tmp_path):
    values = ["a [b]", "c/", "two\nlines", "Buy Now", "Features", "", "same"]
    options = {"x": [{"value": v} for v in values], "y": [{"value": "same"}]}
    env = WebShop(data=write_shop(tmp_path, [{**LAMP, "customization_options": options}]))
    env.reset("train/1")
    env.step("search[lamp]")
    env.step("click[b000000001]")
    for action in env.admissible():
        trial = WebShop(data=str(tmp_path))
        trial.reset("train/1")
        trial.step("search[lamp]")
        trial.step("click[b000000001]")
        assert trial.step(action).applied, action
    for label in ("a [b]", "c |", "two lines"):
        env.step(f"click[{label}]")
        assert env._chosen == {"x": label}
    env.step("click[same]")  # the last option that has the value
    assert env._chosen == {"x": "two lines", "y": "same"}
    assert env.step("click[features]").observation.endswith("Cord of 2 m")
    env.step("click[< prev]")
    assert env.step("click[buy now]").done


def test_the_end(shop):
    env = WebShop(data=shop, max_steps=2)
    assert env.step("search[lamp]").observation == OVER and env.admissible() == ()
    env.reset("train/1")
    assert not env.step("nonsense").done
    turn = env.step("search[lamp]")
    assert (turn.done, turn.success, turn.score, turn.applied) == (True, False, 0, True)
    after = env.step("click[b000000001]")
    assert (after.observation, after.done, after.applied) == (OVER, True, False)
    assert env.expert_action() is None


def test_long_junk_is_fast_and_harmless(env):
    for text in ("search[" + "lamp " * 100_000 + "]", "click[" * 50_000, "search[\ud800]"):
        assert isinstance(env.step(text).observation, str)


# ---- the search engine ----


def test_words():
    assert words("The Women's running-shoes, size 7 (3.5)") == [
        *("women", "run", "shoe", "size", "7", "3", "5")
    ]
    assert words("to be or not to be") == []


def test_search_ranks_by_bm25():
    """Lucene's formula, computed by hand."""
    from math import log

    documents = ["red mug", "red red cup", "blue cup", "tea"]
    index = open_index(documents)
    assert index.search("zzz") == index.search("") == index.search("the") == []
    assert index.search("mug") == [0]  # no hit has a score of zero, whatever the number of hits
    mean = sum(map(len, map(words, documents))) / 4

    def score(query: str, i: int) -> float:
        document = words(documents[i])
        total = 0.0
        for word in words(query):
            n, f = sum(word in words(d) for d in documents), document.count(word)
            idf = log(1 + (4 - n + 0.5) / (n + 0.5))
            total += idf * f / (f + 0.9 * (1 - 0.4 + 0.4 * len(document) / mean))
        return total

    for query in ("red", "cup", "red cup", "blue red", "tea mug", "red red tea"):
        expected = sorted((-score(query, i), i) for i in range(4) if score(query, i))
        assert index.search(query) == [i for _, i in expected], query


def test_equals_stand_in_the_order_of_the_catalogue():
    index = open_index(["red mug", "red cup", "red red"] * 30)
    best, others = list(range(2, 90, 3)), [i for i in range(90) if i % 3 != 2]
    assert index.search("red") == [*best, *others[:20]]


def index_files() -> dict[Path, int]:
    files = Path(os.environ["MINIACT_CACHE"]).rglob("index-*/*")
    return {file: file.stat().st_mtime_ns for file in files}


def test_the_index_is_kept_and_known_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIACT_CACHE", str(tmp_path))
    documents = ["red mug", "blue cup"]
    open_index(documents)
    kept = index_files()
    assert kept and not list(tmp_path.rglob("*.part"))
    assert open_index(documents).search("cup") == [1]
    assert index_files() == kept  # read, not built
    assert open_index(["blue cup", "red mug"]).search("cup") == [0]
    assert len({file.parent for file in index_files()}) == 2
    for file in kept:  # arrays and JSON, which need no pickle
        assert file.suffix in (".npy", ".json", ".txt")


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "empty folder"])
def test_a_damaged_index_is_built_again(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("MINIACT_CACHE", str(tmp_path))
    documents = ["red mug", "blue cup"]
    open_index(documents)
    for file in index_files():
        whole = file.read_bytes()
        if damage == "cut":
            file.write_bytes(whole[:-1])
        elif damage == "flip":
            file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        elif damage == "remove":
            file.unlink()
        else:
            for other in file.parent.iterdir():
                other.unlink()
        assert open_index(documents).search("cup") == [1], file.name
        if damage != "empty folder":
            assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_a_user_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIACT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot keep the search index .*MINIACT_CACHE") as error:
        open_index(["a mug"])
    one_line(error)


# ---- the built-in catalogue and the expert ----


def test_the_catalogue():
    files = catalogue()
    data = parse(files)
    assert len(data.products) == len(files.products) == 608
    assert len({p.query for p in data.products}) == 38
    assert len(make_goals(data, "human")) == 608 * 3
    kinds = Counter(bool(p.options) for p in data.products)
    assert kinds[False] == 38  # one of each kind has none
    assert any(" to $" in p.price_tag for p in data.products)
    assert any(p.price_tag == "$100.0" for p in data.products)
    for item in data.products:
        for labels in item.options.values():  # the reward can tell every two values apart
            for one in labels:
                assert [two for two in labels if same_option(one, two)] == [one]


def test_the_expert_solves_every_goal_of_the_catalogue():
    env = WebShop()
    steps, paged = [], 0
    for split in env.splits:
        for task in env.tasks(split, 10**6, seed=0):
            _, turn = env.reset(task)
            actions = []
            while not turn.done:
                actions.append(env.expert_action())
                turn = env.step(actions[-1])
                assert turn.applied
            assert turn.success and turn.score == 1, task
            steps.append(len(actions))
            paged += "click[next >]" in actions
    assert len(steps) == 1824 and max(steps) <= 10
    assert paged >= 20  # now and then the product is not on the first page


def test_the_expert_recovers_from_anything():
    env = WebShop(max_steps=60)
    for i, task in enumerate(env.tasks("train", 40, seed=0)):
        rng, (_, turn) = random.Random(i), env.reset(task)
        for _ in range(25):
            options = env.admissible() or ("search[desk]", "search[color]", "search[zzz]")
            turn = env.step(rng.choice([o for o in options if o != "click[buy now]"]))
        while not turn.done and (action := env.expert_action()):
            turn = env.step(action)
        assert turn.success, task


def test_what_the_expert_searches_for():
    lamp = product(title="Brass Lamp", description="for a desk", options={"color": ("red",)})
    goal = Goal(
        "I'm looking for a brass lamp in red, 40 w, and price lower than 30.00 dollars",
        *(lamp, (), (), 30.0),
    )
    assert queries(goal) == ["brass lamp red 40 w", "brass lamp red"]
    assert key_words("please find me the thing that i need!") == ["thing"]


def test_what_the_expert_chooses():
    lamp = product(
        options={"color": ("sky blue", "navy blue", "red"), "size": ("large", "x-large")}
    )
    assert choices(wish(lamp, options=["navy blue", "large"])) == {
        "color": "navy blue",
        "size": "large",
    }
    assert choices(wish(lamp, options=["x-large", "green"])) == {"size": "x-large"}
    assert choices(wish(lamp, options=["red", "red"])) == {"color": "red"}
    twice = product(options={"a": ("one", "two"), "b": ("two",)})
    assert choices(wish(twice, options=["two"])) == {"b": "two"}  # as a click finds it


def test_an_expert_without_a_search_that_finds_it_gives_up(tmp_path):
    rows = [{**LAMP, "name": "Zyx", "full_description": "", "small_description": []}]
    rows[0]["customization_options"] = {}
    env = WebShop(data=write_shop(tmp_path, rows))
    env.reset("train/1")
    assert env.expert_action() is None


PLAY_IN_A_PROCESS = """
import hashlib, random
from miniact.envs import make_env
env, digest = make_env("webshop"), hashlib.sha256()
for split in env.splits:
    for task in env.tasks(split, 12, seed=1):
        rng, (text, turn) = random.Random(task), env.reset(task)
        while not turn.done:
            listed, expert = env.admissible(), env.expert_action()
            digest.update(repr((text, turn, listed, expert)).encode())
            turn = env.step(rng.choice([*(listed or ()), expert, expert, expert]))
print(digest.hexdigest())
"""


def test_nothing_depends_on_the_hash_seed(tmp_path):
    digests = set()
    for seed in ("0", "1"):
        variables = {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", PLAY_IN_A_PROCESS],
            env={**os.environ, **variables, "MINIACT_CACHE": str(tmp_path / seed)},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1
