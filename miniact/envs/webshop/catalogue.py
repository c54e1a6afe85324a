"""An invented shop in WebShop's file formats, so that the environment runs without a download.

`catalogue()` makes some products of each kind below and WISHES instructions for each product.
Everything is drawn from the tables of this file with a fixed seed: same code, same bytes. As in the
scraped data, some products have no price, a range of prices, no options, or features that
are one string; these go through the same reader.

Products of one kind share words, features and options, so that a search finds many of
them and the agent has to look for the one that has it all.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from miniact.envs.webshop.data import Files

SEED = 7
PER_KIND = 16
WISHES = 3

# Categories, and under them kinds of products. A kind takes two lines:
#   what it is called, and searched for | its prices in dollars | its options, keys of _OPTIONS
#       features that stand before the noun | features that follow "with"
_KINDS = """
Clothing › Outdoor › Jackets
rain jacket | 35-95 | color body
    waterproof, packable, breathable, machine washable | taped seams, zip pockets, adjustable hood
fleece vest | 20-60 | color body
    lightweight, quick drying, machine washable, sleeveless | zip pockets, high collar, elastic hem
Clothing › Everyday › Tops
linen shirt | 18-55 | color body
    slim fit, long sleeved, easy care, hand washable | button front, chest pocket, rounded hem
sleep shirt | 12-40 | color body
    loose fit, short sleeved, machine washable, stretchy | round neck, side slits, chest pocket
Clothing › Everyday › Bottoms
hiking trousers | 28-80 | color body
    quick drying, stretchy, water repellent, loose fit | zip pockets, elastic waist, double knees
pleated skirt | 16-50 | color body
    high waisted, knee length, hand washable, lined | elastic waist, hidden zipper, side pockets
Shoes › Sports › Running
running shoes | 40-130 | color shoe
    lightweight, breathable, slip resistant, wide toe | rubber sole, memory foam, reflective laces
Shoes › Home › Slippers
wool slippers | 15-45 | color shoe
    washable, closed toe, slip resistant, unisex | rubber sole, arch support, soft lining
Beauty › Hair › Care
hair conditioner | 6-28 | scent pack
    sulfate free, cruelty free, fragrance free, color safe | argan oil, coconut oil, tea tree
hair brush | 5-24 | color
    vegan, anti static, heat resistant, travel size | bamboo handle, soft bristles, cushioned base
Beauty › Skin › Care
face cream | 9-48 | volume
    paraben free, cruelty free, oil free, moisturizing | aloe vera, green tea, vitamin c
hand soap | 4-18 | scent pack
    fragrance free, sulfate free, biodegradable, gentle | aloe vera, olive oil, oat extract
lip balm | 3-14 | scent pack
    vegan, paraben free, long lasting, moisturizing | shea butter, bees wax, sun protection
Electronics › Audio › Headphones
wireless earbuds | 22-120 | color
    noise cancelling, sweat proof, fast charging, light | storage case, touch keys, clear sound
desk speaker | 25-140 | color
    portable, splash proof, hands free, rechargeable | deep bass, stereo sound, aux input
Electronics › Accessories › Power
phone charger | 9-40 | color plug
    fast charging, foldable, compact, overheat protected | usb port, status light, braided cable
hdmi cable | 6-30 | length
    high speed, gold plated, tangle free, heavy duty | braided cable, aluminium shell, dust cap
Electronics › Accessories › Bags
laptop sleeve | 12-45 | color screen
    water resistant, shock proof, slim fit, padded | carrying handle, zip pockets, soft lining
camera bag | 20-75 | color
    shock proof, lightweight, water resistant, padded | shoulder strap, rain cover, side pockets
Food › Snacks › Bars
oat bars | 6-26 | flavor pack
    gluten free, dairy free, non gmo, low sugar | dried fruit, natural flavors, whole grain
nut mix | 8-35 | flavor weight
    lightly salted, dry roasted, non gmo, vegan | dark chocolate, dried fruit, sea salt
Food › Drinks › Tea
herbal tea | 5-22 | flavor pack
    caffeine free, organic, sugar free, fair trade | ginger root, lemon peel, natural flavors
cold brew coffee | 9-38 | flavor weight
    organic, fair trade, sugar free, shelf stable | oat milk, chicory root, natural flavors
Food › Pantry › Sauces
tomato sauce | 4-19 | weight
    organic, gluten free, low sodium, slow cooked | fresh basil, roasted garlic, olive oil
Home › Furniture › Tables
side table | 35-160 | finish width
    easy to assemble, space saving, scratch proof, eco friendly | solid wood, steel frame, low shelf
standing desk | 120-420 | finish width
    height adjustable, easy to assemble, heavy duty, quiet | steel frame, cable tray, memory preset
Home › Furniture › Seating
accent chair | 70-260 | color
    mid century, easy to assemble, high density, stackable | wood legs, memory foam, lumbar support
storage bench | 60-210 | color width
    space saving, upholstered, easy to clean, fold away | wood legs, hinged lid, steel frame
Home › Bedroom › Bedding
duvet cover | 22-95 | color bed
    machine washable, fade proof, breathable, double sided | corner ties, hidden zipper, buttons
throw pillow | 9-38 | color
    machine washable, double sided, hypoallergenic, hand woven | hidden zipper, memory foam, tassels
Home › Decor › Floor
area rug | 30-190 | color rug
    easy to clean, non slip, stain resistant, hand woven | cotton backing, fringed edge, low pile
Home › Decor › Light
table lamp | 18-85 | finish
    energy efficient, dimmable, rust proof, easy to install | fabric shade, glass shade, usb port
wall sconce | 20-95 | finish
    energy efficient, battery powered, rust proof, easy to mount | glass shade, motion sensor, arm
Garden › Tools › Hand
pruning shears | 10-42 | color
    rust proof, left handed, heavy duty, spring loaded | steel blade, soft grip, safety lock
Garden › Tools › Water
garden hose | 18-80 | length
    kink free, leak proof, lightweight, expandable | brass fitting, spray nozzle, double layer
Toys › Games › Table
board game | 14-55 | players
    easy to learn, family friendly, cooperative, travel size | wooden pieces, colorful cards, box
Sports › Fitness › Mats
yoga mat | 12-70 | color thickness
    non slip, extra thick, latex free, easy to clean | carrying strap, alignment lines, double layer
water bottle | 10-45 | color volume
    leak proof, dishwasher safe, bpa free, double walled | carrying loop, straw lid, steel body
"""
_DARK = "black|navy|olive|burgundy|teal|charcoal|brown"
_LIGHT = "white|grey|beige|coral|mustard|lavender|pink"
_OPTIONS = {  # word in the table: (name on the page, its values)
    "color": ("color", f"{_DARK}|{_LIGHT}"),
    "body": ("size", "xs|small|medium|large|xl"),
    "shoe": ("size", "6|7|8|9|10|11"),
    "bed": ("size", "twin|queen|king"),
    "scent": ("scent", "lavender|lemon|rose|mint|vanilla|unscented"),
    "flavor": ("flavor name", "vanilla|peach|ginger|honey|cinnamon|raspberry|original"),
    "pack": ("pack", "single|2 pack|3 pack|6 pack"),
    "volume": ("capacity", "40 ml|120 ml|300 ml|750 ml"),
    "weight": ("weight", "6 oz|10 oz|24 oz"),
    "plug": ("style", "european|british|american"),
    "length": ("length", "3 ft|6 ft|15 ft|50 ft"),
    "screen": ("screen", "11 in|13 in|16 in"),
    "finish": ("finish", "walnut|white|black|natural|gold|bronze"),
    "width": ("width", "18 in|24 in|36 in|60 in"),
    "rug": ("dimensions", "2 x 3|5 x 7|8 x 10"),
    "players": ("players", "two|four|six"),
    "thickness": ("thickness", "4 mm|6 mm|15 mm"),
}
_BRANDS = """
Aldervik Brimora Caldessa Dunmere Elvanto Fernholt Galtrix Hollowby Ivermont Jorvane Kestralis
Lumidor Marrowick Nordvale Oakhurstly Pellandra Quillmark Rosvane Silverfen Tarnbrook Umberlie
Vantrelle Wexmoor Yarrowin
""".split()
_PLACES = ["every day", "work and travel", "small homes", "the weekend", "beginners", "long days"]
_CLAIMS = ["We made it", "Designed to be", "You will find it", "Tested and", "This one is"]
_OPENINGS = [
    "i am looking for {}",
    "i need {}",
    "i'd like to buy {}",
    "find me {}",
    "can you help me find {}",
    "my sister wants {}",
    "i want to get {}",
    "please show me {}",
]
_CHOICES = ["in {}", "and i want the {} one", "it should be {}", "the {} version please"]


class Kind(NamedTuple):
    path: str  # "Shoes › Sports › Running"
    noun: str  # "running shoes"
    prices: tuple[int, int]  # dollars
    before: tuple[str, ...]  # "lightweight"
    after: tuple[str, ...]  # "rubber sole"
    options: tuple[str, ...]  # keys of _OPTIONS


def catalogue(per_kind: int = PER_KIND) -> Files:
    """The three files, the same in every process; per_kind: products of each of the kinds."""
    rng = random.Random(SEED)
    products: list[dict[str, Any]] = []
    annotations: dict[str, Any] = {}
    human: dict[str, Any] = {}
    for kind in kinds():
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


def kinds() -> list[Kind]:
    found, path = [], ""
    lines = iter(_KINDS.strip().splitlines())
    for line in lines:
        if "›" in line:
            path = line
            continue
        noun, prices, options = line.split(" | ")
        before, after = (tuple(text.split(", ")) for text in next(lines).strip().split(" | "))
        low, high = map(int, prices.split("-"))
        found.append(Kind(path, noun, (low, high), before, after, tuple(options.split())))
    return found


def _product(rng: random.Random, kind: Kind, before: list[str], after: list[str]) -> dict[str, Any]:
    brand, place = rng.choice(_BRANDS), rng.choice(_PLACES)
    title = f"{brand} {before[0]} {kind.noun} with {after[0]} for {place}".title()
    description = (
        f"{kind.noun.capitalize()} by {brand}, made for {place}. {rng.choice(_CLAIMS)} "
        f"{before[1]}, and it comes with {after[1]}."
    )
    # The search engine sees the first bullet only: who wants before[2] finds other products first.
    bullets = [f"With {' and '.join(after)}.", f"{', '.join(before).capitalize()}."]
    low = round(rng.uniform(*kind.prices), 2)
    pricing = rng.choices([f"${low}", f"${low}${round(low * 1.4, 2)}", ""], [8, 1, 1])[0]
    options = {}
    for option in kind.options:
        name, listed = _OPTIONS[option]
        values = listed.split("|")
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
    text = rng.choice(_OPENINGS).format(what)
    for value in options:
        text += f", {rng.choice(_CHOICES).format(value)}"
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
