"""The files of WebShop: products and shoppers' wishes, read in the official formats.

    items_shuffle*.json    [{asin, name, category, query, product_category, pricing, …}, …]
    items_ins_v2*.json     {asin: {attributes, instruction, instruction_attributes}}
    items_human_ins.json   {asin: [{instruction, instruction_attributes, instruction_options}, …]}

The data was scraped, so a field may be missing, null or NaN: it then counts as empty. A field of
another type, a file that ends early and a folder that is not complete are errors. Where a price is
given as a range, WebShop draws the price; here the draw is seeded by the product's number.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from miniact import UserError

ASIN_LENGTH = 10  # a longer product number is a scraping accident
NO_PRICE = 100.0  # dollars, for a product without a price
NO_ATTRIBUTES = ("DUMMY_ATTR",)  # of a product that was never annotated
HUMAN = "items_human_ins.json"
WHERE_FROM = "setup.sh of github.com/princeton-nlp/WebShop downloads the files"


@dataclass(frozen=True, slots=True)
class Product:
    asin: str  # its number, which is also its link on a page of results
    title: str
    description: str
    bullets: tuple[str, ...]
    query: str  # the search that found it
    categories: frozenset[str]
    price: float  # dollars: what a purchase costs
    price_tag: str  # what the pages show: "$8.39" or "$5.0 to $8.0"
    options: dict[str, tuple[str, ...]]  # {"color": ("black", "navy"), …}, in lower case
    attributes: tuple[str, ...]

    def document(self) -> str:
        """What the search engine knows: title, description, first bullet, options."""
        options = ", and ".join(f"{name}: {', '.join(v)}" for name, v in self.options.items())
        first = self.bullets[0] if self.bullets else ""
        return " ".join([self.title, self.description, first, options]).lower()


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants, in words and in facts; the price comes later."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] = ()


class Files(NamedTuple):
    """The contents of the three files, and the names that errors call them by."""

    products: Any
    annotations: Any
    human: Any
    names: tuple[str, str, str]


class Data(NamedTuple):
    products: list[Product]
    human: dict[str, list[Wish]]  # by product number
    annotated: dict[str, Wish]


def open_folder(folder: str) -> Files:
    """Load the three files. Of several catalogues in the folder, the first by name is taken."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(
            f"env.options: data: no folder {folder!r}; expected one with WebShop's files "
            f"({WHERE_FROM}), or data: '' for the built-in catalogue"
        )
    wanted = ["items_shuffle.json", "items_ins_v2.json", HUMAN]
    catalogues = sorted(path.glob("items_shuffle*.json"), key=lambda f: (len(f.name), f.name))
    for file in catalogues:
        tail = file.name.removeprefix("items_shuffle")
        wanted = [file.name, f"items_ins_v2{tail}", HUMAN]
        if (path / wanted[1]).is_file():
            break
    missing = [name for name in wanted if not (path / name).is_file()]
    if missing:
        raise UserError(
            f"env.options: data: {folder!r} has no {' and no '.join(missing)}: is the download "
            f"complete? {WHERE_FROM}"
        )
    products, annotations, human = (path / name for name in wanted)
    names = (str(products), str(annotations), str(human))
    return Files(_load(products), _load(annotations), _load(human), names)


def parse(files: Files) -> Data:
    """Check everything, and leave out rows without a product number of their own.

    Raises UserError naming the file, the item and the field.
    """
    annotations = _check(files.annotations, dict, files.names[1])
    human = _check(files.human, dict, files.names[2])
    data = Data([], {}, {})
    seen = set()
    for i, row in enumerate(_check(files.products, list, files.names[0])):
        where = f"{files.names[0]}: item {i}"
        asin = _text(_check(row, dict, where).get("asin"), f"{where}: asin")
        if asin in ("", "nan") or len(asin) > ASIN_LENGTH or asin in seen:
            continue
        seen.add(asin)
        note = _check(annotations.get(asin, {}), dict, f"{files.names[1]}: item {asin}")
        data.products.append(_product(row, asin, note, f"{where} ({asin})", files.names[1]))
        if wish := _annotated(note, f"{files.names[1]}: item {asin}"):
            data.annotated[asin] = wish
        if asin in human:
            data.human[asin] = list(_human(human[asin], f"{files.names[2]}: item {asin}"))
    if not data.products:
        raise UserError(f"{files.names[0]}: no products with an asin; expected at least one")
    return data


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: not complete JSON ({error}), {file.stat().st_size} bytes: is the download "
            f"complete? {WHERE_FROM}"
        ) from None


# ------------------------------------------------------------------------------ from row to object


def _product(row: dict, asin: str, note: dict, where: str, notes: str) -> Product:
    if "name" not in row:
        raise UserError(f"{where}: no field 'name'; expected the product's title")
    category = _text(row.get("product_category"), f"{where}: product_category")
    amounts = _amounts(_text(row.get("pricing"), f"{where}: pricing"))
    low, high = (*amounts, amounts[0])[:2]
    attributes = _texts(note.get("attributes"), f"{notes}: item {asin}: attributes")
    return Product(
        asin=asin,
        title=_text(row["name"], f"{where}: name"),
        description=_text(row.get("full_description"), f"{where}: full_description"),
        bullets=_texts(row.get("small_description"), f"{where}: small_description"),
        query=_text(row.get("query"), f"{where}: query").lower().strip(),
        categories=frozenset(part.strip() for part in category.split("›")),
        price=random.Random(f"price/{asin}").uniform(low, high) if low != high else low,
        price_tag=f"${low} to ${high}" if len(amounts) > 1 else f"${low}",
        options=_options(row.get("customization_options"), f"{where}: customization_options"),
        attributes=attributes if "attributes" in note else NO_ATTRIBUTES,
    )


def _amounts(pricing: str) -> list[float]:
    """'$1,299.00' → [1299.0]; '$5$8' and '$5 - $8' → [5.0, 8.0]; no price at all → [100.0]."""
    prices = [re.sub(r"[^0-9.]", "", part) for part in pricing.split("$")[1:]]
    return [float(text) for text in prices if re.fullmatch(r"\d+\.?\d*|\.\d+", text)] or [NO_PRICE]


def _options(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    options = {}
    for name, rows in _check(value or {}, dict, where).items():
        if rows is not None:
            at = f"{where}: {name}"
            rows = [_check(choice, dict, at) for choice in _check(rows, list, at)]
            values = [_text(choice.get("value"), f"{at}: value") for choice in rows]
            labels = [v.strip().replace("/", " | ").replace("\n", " ") for v in values]
            options[name.lower()] = tuple(label.strip().lower() for label in labels if label)
    return options


def _annotated(note: dict, where: str) -> Wish | None:
    text = _text(note.get("instruction"), f"{where}: instruction")
    attributes = _texts(note.get("instruction_attributes"), f"{where}: instruction_attributes")
    return Wish(text, attributes) if text and attributes else None


def _human(rows: Any, where: str) -> Iterator[Wish]:
    """The wishes of one product; one that asks for no attribute is left out, as in WebShop."""
    for i, row in enumerate(_check(rows, list, where)):
        at = f"{where}: record {i}"
        row = _check(row, dict, at)
        options = row.get("instruction_options")
        if isinstance(options, dict):
            options = list(options.values())
        wish = Wish(
            _text(row.get("instruction"), f"{at}: instruction").strip("."),
            _texts(row.get("instruction_attributes"), f"{at}: instruction_attributes"),
            _texts(options, f"{at}: instruction_options"),
        )
        if wish.attributes:
            yield wish


# ---------------------------------------------------------------------------------- checking types


def _check(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        name = {"dict": "an object", "list": "a list", "str": "a string"}[kind.__name__]
        raise UserError(f"{where}: expected {name}, got {value!r:.60}")
    return value


def _text(value: Any, where: str) -> str:
    """A string that UTF-8 can hold; nothing (null, NaN) is an empty one."""
    if value is None or value != value:
        return ""
    return _check(value, str, where).encode("utf-8", "replace").decode()


def _texts(value: Any, where: str) -> tuple[str, ...]:
    """A list of strings, or a string, which is a list of one; nothing is an empty list."""
    if value is None or value != value:
        return ()
    values = [value] if isinstance(value, str) else _check(value, list, where)
    return tuple(_text(v, where) for v in values)
